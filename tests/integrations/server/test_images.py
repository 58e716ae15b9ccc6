"""Images on the wire: what is one, what it may be called, and what is never opened."""

from __future__ import annotations

import base64
import http.server
import json
import threading

import numpy as np
import pytest
from tests.engine.pictures import FORMATS, drawing, encoded

from nimbed import FakeEmbedder, Image

from .conftest import MODEL, PICTURES

PNG = encoded(drawing())
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
PICTURE = Image(PNG)


def ask(server, *inputs, **fields):
    return server.embed(model=PICTURES.id, input=list(inputs), **fields)


def got(answer):
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def wanted(*inputs, role="passage"):
    return FakeEmbedder(PICTURES).embed(list(inputs), input_type=role).vectors


def refused(answer):
    assert answer.status_code == 400, answer.text
    return answer.json()["message"]


@pytest.mark.parametrize("label", ["png", "jpeg", "x-whatever", "svg+xml"])
@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_is_what_its_bytes_are_whatever_it_is_called(plain, kind, label):
    data = encoded(drawing(), kind)
    url = f"data:image/{label};base64,{base64.b64encode(data).decode()}"
    np.testing.assert_allclose(got(ask(plain, url)), wanted(Image(data)), atol=1e-6)


@pytest.mark.parametrize(
    "tag",
    [
        '<img src="{}"/>',
        "<img src='{}'>",
        "<img src={} >",
        '<IMG alt="a cat" SRC="{}" width=3>',
        '  <img\nsrc="{}" />\n',
        "{}",
        " {}\n",
    ],
)
def test_an_img_tag_or_the_url_alone_is_an_image(plain, tag):
    np.testing.assert_allclose(got(ask(plain, tag.format(URL))), wanted(PICTURE), atol=1e-6)


@pytest.mark.parametrize(
    "form", ["a cat\n{}", '<img src="{}"> a cat', "  a cat {}  ", 'a cat<img src="{}"/>']
)
@pytest.mark.parametrize("modality", [None, "text_image"])
def test_words_beside_an_image_make_a_pair(plain, form, modality):
    answer = ask(plain, form.format(URL), modality=modality)
    np.testing.assert_allclose(got(answer), wanted(("a cat", PICTURE)), atol=1e-6)


def test_words_on_both_sides_stay_in_their_order(plain):
    answer = ask(plain, f"before {URL} after")
    np.testing.assert_allclose(got(answer), wanted(("before after", PICTURE)), atol=1e-6)


@pytest.mark.parametrize("modality", ["text", ["text"]])
def test_a_modality_that_is_said_is_believed(plain, modality):
    answer = ask(plain, f"about {URL}", modality=modality, input_type="query", truncate="END")
    np.testing.assert_allclose(got(answer), wanted(f"about {URL}", role="query"), atol=1e-6)


def test_every_input_may_have_a_modality_of_its_own(plain):
    answer = ask(
        plain,
        "a text",
        URL,
        f"a cat {URL}",
        modality=["text", "image", "text_image"],
        input_type="passage",
    )
    right = wanted("a text", PICTURE, ("a cat", PICTURE))
    np.testing.assert_allclose(got(answer), right, atol=1e-6)


def test_one_modality_in_an_array_is_meant_for_all(plain):
    answer = ask(plain, URL, URL, modality=["image"])
    np.testing.assert_allclose(got(answer), wanted(PICTURE, PICTURE), atol=1e-6)


def test_bare_base64_is_an_image_where_modality_says_so(plain):
    bare = base64.b64encode(PNG).decode()
    np.testing.assert_allclose(got(ask(plain, bare, modality="image")), wanted(PICTURE), atol=1e-6)


def test_images_and_texts_keep_their_order_in_one_request(plain):
    answer = ask(plain, "one", URL, "two", f"three {URL}")
    vectors = got(answer)
    texts = wanted("one", "two", role="query")
    np.testing.assert_allclose(vectors[[0, 2]], texts, atol=1e-6)
    np.testing.assert_allclose(vectors[[1, 3]], wanted(PICTURE, ("three", PICTURE)), atol=1e-6)


def test_a_text_too_long_beside_images_is_named_by_its_place_in_the_request(plain):
    message = refused(ask(plain, URL, "short", "word " * 600))
    assert message.endswith("(input[2])")


def test_a_text_cut_beside_images_is_disclosed_by_its_place_in_the_request(plain):
    answer = ask(plain, URL, "short", "word " * 600, truncate="END")
    assert answer.headers["x-nimbed-truncated"] == "2"


@pytest.mark.parametrize(
    ("text", "modality", "reason"),
    [
        (f"{URL} {URL}", None, "it holds 2 images"),
        (f'<img src="{URL}"> {URL}', "image", "it holds 2 images"),
        (f"a cat {URL}", "image", "modality is image, but it holds words too"),
        (URL, "text_image", "modality is text_image, but it holds an image alone"),
        ("a cat", "text_image", "modality is text_image, but it holds no data:image"),
        (URL[:60], None, "invalid base64"),
        ("data:image/png;base64,", None, "holds no bytes"),
        (f"data:image/png;base64,{base64.b64encode(b'%PDF-1.7').decode()}", None, "it is a PDF"),
        ("data:image/png,rawbytes", "image", "must be data:image/...;base64"),
        ("data:text/plain;base64,aGVsbG8=", "image", "not PNG, JPEG"),
        ("keine Übertragung", "image", "paths and addresses are not read"),
        ("\U0001f600", "image", "paths and addresses are not read"),
    ],
)
def test_what_is_no_image_is_refused_with_its_place_and_reason(plain, text, modality, reason):
    fields = {} if modality is None else {"modality": ["text", modality]}
    message = refused(ask(plain, "before", text, **fields))
    assert message.startswith("input[1]: ")
    assert reason in message


def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(serve):
    server = serve({PICTURES.id: FakeEmbedder(PICTURES)}, max_image_bytes=len(PNG))
    got(ask(server, URL))
    big = base64.b64encode(PNG + bytes(500)).decode()
    assert "larger than" in refused(ask(server, f"data:image/png;base64,{big}"))
    assert "larger than" in refused(ask(server, big, modality="image"))


def test_an_image_of_a_few_bytes_too_many_is_refused_too(serve):
    server = serve({PICTURES.id: FakeEmbedder(PICTURES)}, max_image_bytes=len(PNG) - 1)
    assert "larger than" in refused(ask(server, URL))


def test_an_image_is_never_a_query_by_a_suffix_either(plain):
    answer = plain.embed(model=f"{PICTURES.id}-query", input=[URL])
    assert 'input_type="query" is not supported with images' in refused(answer)


def test_a_model_of_texts_takes_a_data_url_for_a_text(plain):
    answer = plain.embed(input=[URL], input_type="query")
    right = FakeEmbedder().embed([URL], input_type="query").vectors
    np.testing.assert_allclose(got(answer), right, atol=1e-6)


@pytest.mark.parametrize("modality", ["image", "text_image"])
def test_a_model_of_texts_refuses_what_is_said_to_be_an_image(plain, modality):
    message = refused(plain.embed(input=[f"a {URL}"], modality=modality))
    assert "image" in message


def test_neither_paths_nor_addresses_are_read(plain, tmp_path):
    (tmp_path / "cat.png").write_bytes(PNG)
    path = str(tmp_path / "cat.png")
    asked = []

    class Trap(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PNG)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trap) as trap:
        threading.Thread(target=trap.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{trap.server_port}/cat.png"
        for source in (path, f"file://{path}", address, f'<img src="{address}"/>'):
            refused(ask(plain, source, modality="image"))
            refused(ask(plain, f"a cat {source}", modality="text_image"))
            # Said to be nothing, it is a text, and embedded as one.
            np.testing.assert_allclose(
                got(ask(plain, source)), wanted(source, role="query"), atol=1e-6
            )
        trap.shutdown()
    assert asked == []


def test_looking_for_images_is_linear_in_the_text(plain):
    # Each of these took hours or minutes with a pattern that tries again from every character.
    hostile = [
        "<img src=data:image/png;base64," + "A" * 2_000_000,
        "<img " + "src=data:image/png;base64,A " * 80_000,
        "<img " * 400_000 + "data:image/png;base64,A",
        "data:image/" * 200_000,
    ]
    for text in hostile:
        answer = plain.client.post(
            "/v1/embeddings",
            content=json.dumps({"model": PICTURES.id, "input": [text], "truncate": "END"}),
        )
        assert answer.status_code in (200, 400)
    assert plain.embed(model=MODEL).status_code == 200
