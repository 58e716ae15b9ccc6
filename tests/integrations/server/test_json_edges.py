"""Bodies that are no request, almost a request, or a request written strangely."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbed import FakeEmbedder

from .conftest import MODEL

GOOD = json.dumps({"model": MODEL, "input": ["a text"], "input_type": "query"}).encode()
EDGES = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "model",
        "input",
        "input_type",
        "modality",
        "embedding_type",
        "encoding_format",
        "dimensions",
        "truncate",
        "user",
        "config",
        "text",
    ]
)


def send(server, body, *, path="/v1/embeddings", **headers):
    sent = {"content-type": "application/json", **headers}
    return server.client.post(path, content=body, headers=sent)


def is_an_error(answer):
    """Whether an answer is one of our errors, whole and readable by every client."""
    body = answer.json()
    said = {body[name] for name in ("message", "title", "detail")}
    return body["object"] == "error" and said == {body["error"]["message"]} and "" not in said


def refused(answer, status=400):
    assert answer.status_code == status, answer.text
    assert is_an_error(answer)
    return answer.json()["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf" + GOOD,
        GOOD + b"x",
        GOOD[:-1],
        GOOD.decode().encode("utf-16"),
        b'{"input":["\xff\xfe"],"model":"m"}',
        b'{"input":["\xc3"],"model":"m"}',
        b'{"input":["\xed\xa0\x80"],"model":"m"}',
        b'{"input":["\\ud800"],"model":"m"}',
        b'{"input":["\\udc00 and \\ud800"],"model":"m"}',
        b'{"input":["a\nb"],"model":"m"}',
        b"{'input':['a'],'model':'m'}",
        b'{"input":["a"],"model":"m",}',
        b'{"input":["a"],"dimensions":NaN}',
        b'{"input":["a"],"dimensions":Infinity}',
        b'{"input":["a"],"dimensions":064}',
        b"[" * 100_000,
        b'{"input":' * 100_000,
        b'{"input":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"\0",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/vectors"])
def test_what_is_no_json_is_400_and_says_where_without_quoting_it(plain, body, path):
    answer = send(plain, body, path=path)
    assert answer.status_code == 400
    body = answer.json()
    message = body["error"] if path == "/vectors" else refused(answer)
    assert "the body is not valid UTF-8 JSON (line" in message


@pytest.mark.parametrize("body", [b"null", b"[]", b'"a"', b"3", b"true", b'[{"input":"a"}]'])
def test_json_that_is_no_object_is_400(plain, body):
    assert "the body must be a JSON object" in refused(send(plain, body))


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e308", "9" * 400, "-" + "9" * 30, "0.1", "-0", "1E2", "6.4e1.0"]
)
def test_numbers_beyond_every_size_are_400(plain, number):
    body = GOOD[:-1] + f', "dimensions": {number}}}'.encode()
    refused(send(plain, body))


def test_json_knows_one_kind_of_number(plain):
    for number in (b"16", b"16.0", b"1.6e1", b"160E-1"):
        answer = send(plain, GOOD[:-1] + b', "dimensions": ' + number + b"}")
        assert len(answer.json()["data"][0]["embedding"]) == 16


def test_of_two_equal_keys_the_last_counts_as_everywhere(plain):
    answer = send(plain, b'{"input": 3, ' + GOOD[1:])
    right = FakeEmbedder().embed(["a text"], input_type="query").vectors
    got = [item["embedding"] for item in answer.json()["data"]]
    np.testing.assert_allclose(got, right, atol=1e-6)
    refused(send(plain, GOOD[:-1] + b', "input": 3}'))


def test_nothing_that_json_can_say_is_lost(plain):
    texts = ["\0", "a\u2028b", "\U0001f600", "\\ud83d", "é", "\x7f", "a\tb", "\ufffe", "\ufeff"]
    body = json.dumps({"model": MODEL, "input": texts, "input_type": "query"})
    answer = send(plain, body.encode())
    right = FakeEmbedder().embed(texts, input_type="query").vectors
    got = [item["embedding"] for item in answer.json()["data"]]
    np.testing.assert_allclose(got, right, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"]
)
def test_the_content_type_is_not_asked_for(plain, kind):
    assert send(plain, GOOD, **{"content-type": kind}).status_code == 200


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "gzip, identity", "gzip, gzip"])
def test_a_compressed_body_is_415(plain, encoding):
    assert "compressed" in refused(send(plain, GOOD, **{"content-encoding": encoding}), 415)
    assert send(plain, GOOD, **{"content-encoding": "Identity"}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/vectors"])
def test_another_verb_is_405_and_is_told_the_right_one(plain, method, path):
    answer = plain.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/health/live", "/metrics", "/openapi.json"])
def test_head_is_get_without_a_body(plain, path):
    answer = plain.client.head(path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 0
    assert plain.client.post(path).status_code == 405
    assert plain.client.post(path).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v2/embeddings", "/v1/embedding", "/v1/chat/completions", "/%00", "/..%2f"],
)
def test_an_unknown_path_is_404_and_is_told_where_to_look(plain, path):
    assert "/openapi.json" in refused(plain.client.get(path), 404)


def test_a_word_as_long_as_a_book_is_not_sent_back(plain):
    word = "x" * 1_000_000
    for field in ("input_type", "embedding_type", "encoding_format", "truncate", "modality"):
        assert len(plain.embed(**{field: word}).content) < 5000
    assert len(plain.embed(model=word).content) < 5000
    assert len(plain.client.get(f"/{word[:50_000]}").content) < 5000


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\u2028", "'", '"'])
def test_a_name_may_hold_any_character_and_be_refused(plain, character):
    answer = plain.embed(model=f"a{character}b")
    assert "not found" in refused(answer, 404)


@EDGES
@given(fields=st.dictionaries(FIELDS, JSON))
def test_any_json_in_any_field_is_served_or_refused(plain, fields):
    body = {"model": MODEL, "input": ["a text"], **fields}
    written = json.dumps(body).encode()
    for path in ("/v1/embeddings", "/vectors"):
        answer = send(plain, written, path=path)
        assert answer.status_code in (200, 400, 404), answer.text
        assert answer.json()


@EDGES
@given(body=st.binary(max_size=200))
def test_any_bytes_are_served_or_refused(plain, body):
    refused(send(plain, body))


@EDGES
@given(cut=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_one_wrong_byte_is_served_or_refused(plain, cut, byte):
    answer = send(plain, GOOD[:cut] + bytes([byte]) + GOOD[cut + 1 :])
    assert answer.status_code in (200, 400, 404)


@EDGES
@given(texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4))
def test_any_texts_are_embedded_or_refused_as_in_process(plain, texts):
    body = json.dumps({"model": MODEL, "input": texts, "input_type": "passage"}).encode()
    answer = send(plain, body)
    if any(not text or text.isspace() for text in texts) or _lonely(texts):
        refused(answer)
        return
    right = FakeEmbedder().embed(texts, input_type="passage").vectors
    got = [item["embedding"] for item in answer.json()["data"]]
    np.testing.assert_allclose(got, right, atol=1e-6)


def _lonely(texts):
    return any(0xD800 <= ord(character) <= 0xDFFF for text in texts for character in text)
