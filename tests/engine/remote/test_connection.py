"""What a connection must survive: answers to nothing, answers without end, bombs."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest

from nimbed.errors import RemoteError
from nimbed.remote import http

from .double import Response, answer, as_json, vectors
from .players import DIMENSIONS, nim

NIM = nim()


def spelled(response):
    """A whole answer as the bytes of a socket."""
    lines = [f"content-length: {len(response.body)}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    return ("HTTP/1.1 200 OK\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode() + response.body


def followed(request, more):
    """The right answer, and then bytes that nobody asked for."""
    right = NIM(request)
    headers = {**right.headers, "content-length": str(len(right.body))}
    return replace(right, body=right.body + more, headers=headers)


def expected(*texts):
    return vectors([f"passage: {text}" for text in texts], DIMENSIONS)


WRONG = spelled(answer(vectors(["of another text"], DIMENSIONS)))


@pytest.mark.parametrize(
    "more", [WRONG, WRONG[:40], WRONG[:-9], b"\r\n", b"\0", b"HTTP/1.1 200 OK"]
)
def test_what_follows_an_answer_is_never_the_answer_to_the_next_request(serve, connect, more):
    double = serve(lambda request: followed(request, more))
    embedder = connect(double)
    for n in range(4):
        batch = embedder.embed([f"text {n}"], input_type="passage")
        np.testing.assert_allclose(batch.vectors, expected(f"text {n}"), atol=1e-6)
        assert batch.report.retries == 0
    assert double.connections == 4


def test_a_clean_connection_is_kept(serve, connect):
    double = serve(NIM)
    embedder = connect(double)
    for n in range(4):
        embedder.embed([f"text {n}"], input_type="passage")
    assert double.connections == 1


def test_a_server_that_says_close_is_taken_at_its_word(serve, connect):
    double = serve(lambda request: replace(NIM(request), headers={"connection": "close"}))
    embedder = connect(double)
    for n in range(3):
        embedder.embed([f"text {n}"], input_type="passage")
    assert double.connections == 3


def test_an_answer_in_chunks_is_put_together(serve, connect):
    def handle(request):
        body = NIM(request).body
        chunked = b"".join(
            b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part
        )
        return Response(200, chunked + b"0\r\n\r\n", {"transfer-encoding": "chunked"})

    batch = connect(serve(handle)).embed(["a", "b"], input_type="passage")
    np.testing.assert_allclose(batch.vectors, expected("a", "b"), atol=1e-6)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip bomb"])
def test_an_answer_that_would_fill_the_memory_is_refused(serve, connect, monkeypatch, packed):
    monkeypatch.setattr(http, "_MOST_BYTES", 1_000_000)
    body = b'{"data": [' + b" " * 3_000_000
    bomb = Response(200, gzip.compress(body), {"content-encoding": "gzip"})
    double = serve(lambda request: bomb if packed else Response(200, body))
    with pytest.raises(RemoteError, match="more than 1000000 bytes") as caught:
        connect(double).embed(["a"], input_type="passage")
    assert caught.value.rows == (0,)
    assert not caught.value.retryable
    assert len(double.posts) == 1


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "x"])
def test_an_answer_in_an_encoding_that_nobody_asked_for_is_refused(serve, connect, encoding):
    double = serve(lambda request: replace(NIM(request), headers={"content-encoding": encoding}))
    with pytest.raises(RemoteError, match="without being asked"):
        connect(double).embed(["a"], input_type="passage")
    assert len(double.posts) == 1


def test_headers_without_end_are_refused(serve, connect):
    double = serve(lambda request: as_json({}, x="y" * 200_000))
    with pytest.raises(RemoteError):
        connect(double).embed(["a"], input_type="passage")
