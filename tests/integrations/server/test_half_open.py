"""Connections that stop half-way, crawl, flood or mumble, and the client beside them."""

from __future__ import annotations

import json
import select
import socket
import struct

import httpx
import pytest
from tests.engine.remote.conftest import certificate

from .conftest import MODEL
from .raw import Wire, chunked, post
from .stub import Stub

__all__ = ["certificate"]  # a fixture

GOOD = json.dumps({"model": MODEL, "input": ["a text"], "input_type": "query"}).encode()
LIVE = b"GET /v1/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


def still_serves(server):
    return server.embed().status_code == 200


@pytest.mark.parametrize("part", [0, 1, 10, 60, -30, -1])
@pytest.mark.parametrize("abrupt", [False, True])
def test_a_request_that_breaks_off_harms_nobody(plain, part, abrupt):
    whole = post(GOOD, "content-type: application/json")
    with Wire(plain.port) as wire:
        wire.send(whole[:part])
        if abrupt:  # a reset instead of a farewell
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert still_serves(plain)


def test_a_client_that_sends_all_and_leaves_harms_nobody(plain):
    for _ in range(50):
        with Wire(plain.port) as wire:
            wire.send(post(GOOD))
    assert still_serves(plain)


def test_a_client_that_says_no_more_is_still_answered(plain):
    with Wire(plain.port) as wire:
        wire.send(post(GOOD))
        wire.socket.shutdown(socket.SHUT_WR)
        answer = wire.answer()
    assert answer is None or answer.status == 200
    assert still_serves(plain)


def test_a_body_in_chunks_is_a_body(plain):
    with Wire(plain.port) as wire:
        wire.send(chunked([GOOD[:1], GOOD[1:20], GOOD[20:]]))
        assert wire.answer().status == 200
        wire.send(chunked([bytes([byte]) for byte in GOOD]))
        assert wire.answer().status == 200


def test_pipelined_requests_are_answered_in_their_order(plain):
    bodies = [
        json.dumps({"model": MODEL, "input": ["a"] * n, "input_type": "query"}).encode()
        for n in range(1, 30)
    ]
    with Wire(plain.port) as wire:
        wire.send(b"".join(map(post, bodies)) + LIVE)
        for n in range(1, 30):
            assert len(wire.answer().json()["data"]) == n
        assert wire.answer().json()["live"] is True


def test_pipelined_garbage_does_not_take_the_answer_before_it(plain):
    with Wire(plain.port) as wire:
        wire.send(post(b"{") + LIVE + b"\x16\x03\x01\x02\x00\x01\x00")
        assert wire.answer() is not None
    assert still_serves(plain)


def test_garbage_behind_a_whole_request_is_400_after_the_answer(plain):
    with Wire(plain.port) as wire:
        wire.send(post(GOOD) + b"\x16\x03\x01\x02\x00\x01\x00")
        assert wire.answer().status == 200
        assert wire.answer().status == 400
        assert wire.closed


def test_what_follows_a_running_request_waits_in_the_socket(serve):
    stub = Stub()
    server = serve({MODEL: stub})
    stub.hold()
    with Wire(server.port) as wire:
        wire.send(post(GOOD))
        assert stub.held.wait(20)
        wire.socket.settimeout(1)
        with pytest.raises(TimeoutError):  # more than all buffers together
            wire.send(b"GET / HTTP/1.1\r\nx-filler: " + b"a" * 50_000_000)
        stub.gate.set()
        wire.socket.settimeout(20)
        assert wire.answer().status == 200
        assert wire.answer().status == 431


def test_a_large_body_is_not_taken_for_a_head(plain):
    whole = json.dumps({**json.loads(GOOD), "user": "a" * 5_000_000}).encode()
    with Wire(plain.port) as wire:
        for _ in range(2):
            wire.send(post(whole))
            assert wire.answer().status == 200
        wire.send(chunked([whole[n : n + 50_000] for n in range(0, len(whole), 50_000)]))
        assert wire.answer().status == 200


def test_a_request_that_is_refused_before_its_body_came_keeps_its_connection(serve):
    server = serve(api_keys=("secret",))
    with Wire(server.port) as wire:
        wire.send(post(GOOD[:10], length=len(GOOD)))
        assert wire.answer().status == 401
        wire.send(GOOD[10:] + post(GOOD, "authorization: Bearer secret"))
        assert wire.answer().status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"hello\r\n\r\n",
        b"GET /v1/models SPAM/1.1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: -3\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\na b: c\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda garbage: repr(garbage[:30]),
)
def test_what_is_no_http_is_400_in_json_and_ends_the_connection(plain, garbage):
    with Wire(plain.port) as wire:
        wire.send(garbage)
        answer = wire.answer()
        assert answer.status in (400, 404)
        assert answer.json()["object"] == "error"
    assert still_serves(plain)


def test_a_head_that_never_ends_is_431_and_ends_the_connection(plain):
    with Wire(plain.port) as wire:
        wire.send(b"GET /v1/models HTTP/1.1\r\nx-filler: " + b"a" * 400_000)
        answer = wire.answer()
        assert answer.status == 431
        assert answer.headers["connection"] == "close"
        assert answer.json()["object"] == "error"
    with Wire(plain.port) as wire:
        wire.send(LIVE)
        assert wire.answer().status == 200
        wire.send(b"GET /" + b"a" * 400_000)
        assert wire.answer().status == 431
    assert still_serves(plain)


def test_a_long_address_and_a_long_header_are_read(plain):
    answer = plain.client.get("/v1/models", headers={"x-filler": "a" * 20_000})
    assert answer.status_code == 200
    assert plain.client.get("/v1/models?q=" + "a" * 20_000).status_code == 200


@pytest.mark.parametrize("begun", [b"", b"POST /v1/embeddings HTTP/1.1\r\nx-a: b\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(serve, begun):
    server = serve(body_timeout_s=0.3)
    with Wire(server.port) as wire:
        wire.send(begun)
        assert wire.closed
    assert still_serves(server)


def test_a_tls_handshake_that_does_not_come_ends_the_connection(serve, certificate):
    server = serve(tls_cert=str(certificate), tls_key=str(certificate), body_timeout_s=1)
    assert still_serves(server)
    for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
        with Wire(server.port) as wire:  # which waits for a third of what uvicorn would
            wire.send(begun)
            assert wire.closed


def test_the_head_of_a_second_request_has_no_more_time_than_the_first(serve):
    server = serve(body_timeout_s=0.3)
    with Wire(server.port) as wire:
        wire.send(LIVE)
        assert wire.answer().status == 200
        wire.send(LIVE[:20])
        assert wire.closed


@pytest.mark.parametrize("begun", [b"", GOOD[:20]])
def test_a_body_that_does_not_come_is_408(serve, begun):
    server = serve(body_timeout_s=0.3)
    with Wire(server.port) as wire:
        wire.send(post(begun, length=len(GOOD)))
        answer = wire.answer()
        assert answer.status == 408
        assert answer.headers["connection"] == "close"
        assert "did not come in time" in answer.json()["message"]
        assert wire.closed
    with Wire(server.port) as wire:
        wire.send(chunked([GOOD[:20]], end=False))
        assert wire.answer().status == 408
    assert still_serves(server)


def test_a_body_that_is_said_to_be_too_large_is_413_before_it_comes(serve):
    server = serve(max_body_bytes=1000)
    with Wire(server.port) as wire:
        wire.send(post(b"", length=10**12))
        answer = wire.answer()
        assert answer.status == 413
        assert "larger than 1000 bytes" in answer.json()["message"]
    assert still_serves(server)


def test_expect_100_continue_is_not_answered_with_continue_if_the_body_is_too_large(serve):
    server = serve(max_body_bytes=1000)
    with Wire(server.port) as wire:
        wire.send(post(b"", "expect: 100-continue", length=2000))
        assert wire.answer().status == 413
    with Wire(server.port) as wire:
        wire.send(post(b"", "expect: 100-continue", length=len(GOOD)))
        assert wire.answer().status == 100
        wire.send(GOOD)
        assert wire.answer().status == 200


def test_a_body_too_large_in_chunks_is_413_when_it_is(serve):
    server = serve(max_body_bytes=1000)
    with Wire(server.port) as wire:
        wire.send(chunked([b"a" * 100] * 9, end=False))
        wire.send(b"%x\r\n%b\r\n" % (200, b"a" * 200))
        assert wire.answer().status == 413
    assert still_serves(server)


@pytest.mark.parametrize("status", [413, 401])
def test_a_client_that_sends_its_whole_large_body_before_it_reads_learns_why(serve, status):
    keys = ("secret",) if status == 401 else ()
    server = serve(max_body_bytes=1000, api_keys=keys)
    body = b"a" * 20_000_000
    with Wire(server.port) as wire:
        wire.send(post(body))
        answer = wire.answer()
    assert answer.status == status
    assert answer.json()["object"] == "error"
    assert httpx.post(f"{server.url}/v1/embeddings", content=body).status_code == status


def test_bodies_that_are_being_read_have_a_bound_together(serve):
    server = serve(max_body_bytes=200_000)
    wires = [Wire(server.port) for _ in range(12)]
    try:
        for wire in wires:
            wire.send(post(b'"' + b"a" * 150_000, length=199_000))
        refused, _, _ = select.select({wire.socket: wire for wire in wires}, [], [], 20)
        assert refused
        answers = [wire.answer() for wire in wires if wire.socket in refused]
        assert {answer.status for answer in answers} == {503}
    finally:
        for wire in wires:
            wire.__exit__()
    assert still_serves(server)


def test_an_upgrade_that_is_not_offered_is_ignored(plain):
    with Wire(plain.port) as wire:
        wire.send(
            b"GET /v1/health/live HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n"
            b"upgrade: websocket\r\n\r\n"
        )
        assert wire.answer().status == 200
