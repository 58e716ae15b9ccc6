"""Weaviate's nvidia modules, byte for byte: its acceptance cases A1 to A6 and A9."""

from __future__ import annotations

import base64
import concurrent.futures
import json

import numpy as np
import pytest
from tests.engine.pictures import drawing, encoded

from nimbed import FakeEmbedder, Image

from .go import GoError, Weaviate, embeddings
from .golden import CARD, CLIP, IMPORT, QUERY, body, clip, serving, wanted


@pytest.fixture(scope="module")
def server():
    with serving() as started:
        yield started


@pytest.fixture
def weaviate(server):
    client = Weaviate(server.port)
    yield client
    client.close()


def test_a1_golden_bodies_are_read_and_the_two_roles_differ(weaviate):
    stored = embeddings(weaviate.post("/v1/embeddings", IMPORT))
    np.testing.assert_allclose(
        stored, [wanted("OpenAI is a <research> company\tof é€", "passage")], atol=1e-6
    )
    asked = embeddings(weaviate.post("/v1/embeddings", QUERY))
    np.testing.assert_allclose(asked, [wanted("SpaceX", "query")], atol=1e-6)
    as_passage = embeddings(weaviate.post("/v1/embeddings", QUERY.replace(b"query", b"passage")))
    assert not np.allclose(asked, as_passage)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings",
        "//v1/embeddings",
        "/v1/v1/embeddings",
        "/v1//v1/embeddings",
        "/v1/embeddings/",
        "/nvidia/nv-embed-v1/v1/embeddings",
        "/nvidia/nv-embed-v1/v1/v1/embeddings",
    ],
)
def test_a2_every_path_that_weaviate_may_form_is_the_endpoint(weaviate, path):
    asked = embeddings(weaviate.post(path, QUERY, key="anything at all"))
    np.testing.assert_allclose(asked, [wanted("SpaceX", "query")], atol=1e-6)


def test_a2_a_path_may_name_an_alias(weaviate):
    small = embeddings(weaviate.post("/small/v1/embeddings", QUERY))
    np.testing.assert_allclose(small, [wanted("SpaceX", "query", dimensions=16)], atol=1e-6)


def test_a3_ten_texts_a_request_keep_their_order_under_concurrency(server):
    def import_ten(worker):
        client = Weaviate(server.port)
        try:
            for turn in range(5):
                texts = [f"object {worker}.{turn}.{n}" for n in range(10)]
                answer = client.post("/v1/embeddings", body(texts))
                right = [wanted(text, "passage") for text in texts]
                np.testing.assert_allclose(embeddings(answer), right, atol=1e-6)
                indices = [item["index"] for item in json.loads(answer.body)["data"]]
                assert indices == list(range(10))
        finally:
            client.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(import_ten, range(8)))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"model":"nvidia/nv-embed-v1"}', 400),
        (body([""]), 400),
        (body(["a"], model="nvidia/other"), 404),
        (body(["a"], role="document"), 400),
    ],
)
def test_a4_errors_hold_strings_wherever_go_looks(weaviate, sent, status):
    answer = weaviate.post("/v1/embeddings", sent)
    assert answer.status == status
    said = json.loads(answer.body)
    assert {type(said[name]) for name in ("object", "message", "title", "detail")} == {str}
    with pytest.raises(GoError, match=f"failed with status: {status}"):
        embeddings(answer)


def test_a4_a_text_that_is_too_long_is_refused_in_the_words_that_users_look_for(weaviate):
    long = "word " * 600
    answer = weaviate.post("/v1/embeddings", body(["short", "short", "short", long]))
    with pytest.raises(GoError) as shown:
        embeddings(answer)
    assert str(shown.value) == (
        "connection to NVIDIA API failed with status: 400 error: Input length 601 exceeds maximum "
        "allowed token size 512 (input[3])"
    )


def test_a4_a_name_or_the_server_may_cut_although_weaviate_says_none(serve, weaviate):
    long = "word " * 600
    right = [wanted(long, "passage", truncate="END")]
    answer = weaviate.post("/v1/embeddings", body([long], model="cut"))
    np.testing.assert_allclose(embeddings(answer), right, atol=1e-6)
    assert answer.headers["x-nimbed-truncate"] == "END; source=alias"
    everywhere = Weaviate(serve({CARD.id: FakeEmbedder(CARD)}, truncate="END").port)
    answer = everywhere.post("/v1/embeddings", body([long]))
    everywhere.close()
    np.testing.assert_allclose(embeddings(answer), right, atol=1e-6)
    assert answer.headers["x-nimbed-truncate"] == "END; source=server"


def test_a5_multi2vec_needs_no_role_for_texts_and_a_name_may_give_one(weaviate):
    plain = embeddings(weaviate.post("/v1/embeddings", clip(["a text"])))
    np.testing.assert_allclose(plain, [wanted("a text", "query", CLIP)], atol=1e-6)
    stored = embeddings(weaviate.post("/v1/embeddings", clip(["a text"], "stored")))
    np.testing.assert_allclose(stored, [wanted("a text", "passage", CLIP)], atol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a5_an_image_called_png_is_what_its_bytes_are(weaviate, kind):
    data = encoded(drawing(), kind)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    got = embeddings(weaviate.post("/v1/embeddings", clip([url])))
    np.testing.assert_allclose(got, [wanted(Image(data), "passage", CLIP)], atol=1e-6)


def test_a5_an_image_that_is_none_is_400(weaviate):
    url = f"data:image/png;base64,{base64.b64encode(b'no picture').decode()}"
    with pytest.raises(GoError, match=r"400 error: input\[0\]: .*not PNG"):
        embeddings(weaviate.post("/v1/embeddings", clip([url])))


def test_a6_a_name_chooses_size_and_type_and_the_answer_is_plain_numbers(weaviate):
    small = embeddings(weaviate.post("/v1/embeddings", body(["a text"], model="small")))
    np.testing.assert_allclose(small, [wanted("a text", "passage", dimensions=16)], atol=1e-6)
    (int8,) = embeddings(weaviate.post("/v1/embeddings", body(["a text"], model="int8")))
    assert len(int8) == CARD.dimensions
    assert {type(value) for value in int8} == {int}
    right = wanted("a text", "passage", embedding_type="int8", int8_scale="nim")
    np.testing.assert_array_equal(int8, right)


def test_a6_signs_rank_in_weaviates_hamming_distance_as_bits_do(weaviate):
    texts = [f"text {n}" for n in range(10)]
    signs = np.array(embeddings(weaviate.post("/v1/embeddings", body(texts, model="bits"))))
    assert signs.shape == (10, CARD.dimensions)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    bits = FakeEmbedder(CARD).embed(texts, input_type="passage", embedding_type="ubinary").vectors
    unequal = (signs[:1] != signs).sum(1)  # Weaviate's Hamming: unequal float32 values
    np.testing.assert_array_equal(unequal, np.bitwise_count(bits[:1] ^ bits).sum(1))


def test_a9_unknown_fields_are_tolerated_and_nims_other_endpoints_exist(weaviate):
    more = QUERY[:-1] + b',"vector":null,"priority":{"a":[1]},"Model":"x"}'
    np.testing.assert_allclose(
        embeddings(weaviate.post("/v1/embeddings", more)), [wanted("SpaceX", "query")], atol=1e-6
    )
    for path in ("/v1/models", "/v1/health/live", "/v1/health/ready", "/v1/metadata"):
        assert weaviate.get(path).status == 200


def test_one_connection_carries_everything(server):
    client = Weaviate(server.port)
    embeddings(client.post("/v1/embeddings", IMPORT))
    local = client.connection.sock.getsockname()
    for sent in (QUERY, b"{", body([""]), clip(["a"]), b"", QUERY):
        client.post("/v1/embeddings", sent)
        assert client.connection.sock.getsockname() == local
    client.close()
