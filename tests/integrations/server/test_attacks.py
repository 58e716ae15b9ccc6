"""Requests made to cost more than they should: each costs no more than its bound, or is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import tracemalloc

import pytest
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.remote.double import Double, Response
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

import nimbed
from nimbed.fake import FAKE_CARD
from nimbed.remote.embedder import RemoteEmbedder
from nimbed.remote.retry import RetryPolicy

from .conftest import MODEL
from .raw import Wire, chunked, post

GOOD = json.dumps({"model": MODEL, "input": ["a text"], "input_type": "query"}).encode()
LIVE = b"GET /v1/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
H2C = (
    "connection: Upgrade, HTTP2-Settings",
    "upgrade: h2c",
    "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)


def number_of_vectors(answer):
    assert answer.status == 200, answer.body
    return len(answer.json()["data"])


@contextlib.contextmanager
def in_memory(most):
    """Fail if this process, the server's, comes to hold more bytes than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def never_blocked(server, seconds):
    """Fail if a probe beside it ever waits for longer."""
    waits, done = [], threading.Event()

    def probe():
        while not done.is_set():
            begin = time.monotonic()
            with Wire(server.port) as wire:
                wire.send(LIVE)
                assert wire.answer().status == 200
            waits.append(time.monotonic() - begin)
            time.sleep(0.02)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert max(waits) < seconds


def speak_until(end_of, moment):
    while time.monotonic() < moment:
        end_of.send(b"x")
        time.sleep(0.1)


# Upgrades


def test_the_body_behind_an_upgrade_is_a_body_and_never_the_next_request(plain):
    smuggled = json.dumps({"model": MODEL, "input": ["a"], "user": LIVE.decode()}).encode()
    with Wire(plain.port) as wire:
        for body in (GOOD, smuggled):
            wire.send(post(body, *H2C))
            assert number_of_vectors(wire.answer()) == 1
        wire.send(post(LIVE, *H2C))
        assert wire.answer().status == 400
        wire.send(LIVE)
        assert wire.answer().json()["live"] is True


@pytest.mark.parametrize("cut", [1, 60, 250, -len(GOOD), -5])
def test_a_request_with_an_upgrade_may_come_in_pieces(plain, cut):
    whole = post(GOOD, *H2C)
    with Wire(plain.port) as wire:
        for _ in range(2):
            wire.send(whole[:cut])
            time.sleep(0.05)
            wire.send(whole[cut:])
            assert number_of_vectors(wire.answer()) == 1


def test_pipelined_upgrades_chunked_or_not_are_answered_in_their_order(plain):
    bodies = [json.dumps({"model": MODEL, "input": ["a"] * n}).encode() for n in range(1, 40)]
    with Wire(plain.port) as wire:
        wire.send(
            b"".join(
                chunked([body[:9], body[9:]], *H2C) if n % 2 else post(body, *H2C)
                for n, body in enumerate(bodies)
            )
            + LIVE
        )
        for n in range(1, 40):
            assert number_of_vectors(wire.answer()) == n
        assert wire.answer().json()["live"] is True


def test_an_upgrade_without_a_body_is_answered_as_if_there_were_none(plain):
    with Wire(plain.port) as wire:
        for _ in range(3):
            wire.send(LIVE[:-2] + "\r\n".join(H2C).encode() + b"\r\n\r\n")
            assert wire.answer().json()["live"] is True


@pytest.mark.skipif(shutil.which("java") is None, reason="no java here")
def test_javas_own_client_is_served(plain, tmp_path):
    program = tmp_path / "Ask.java"
    program.write_text(
        """
        import java.net.URI;
        import java.net.http.*;
        public class Ask {
            public static void main(String[] args) throws Exception {
                var client = HttpClient.newHttpClient();  // which asks for an upgrade to h2c
                for (int n = 0; n < 3; n++) {
                    var request = HttpRequest.newBuilder(URI.create(args[0]))
                        .POST(HttpRequest.BodyPublishers.ofString(args[1])).build();
                    var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
                    System.out.println(answer.statusCode() + answer.body().substring(0, 16));
                }
            }
        }
        """
    )
    asked = subprocess.run(
        ["java", "-Xmx64m", str(program), f"{plain.url}/v1/embeddings", GOOD.decode()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.stdout.splitlines() == ['200{"object":"list"'[:19]] * 3, asked.stderr


# What surrounds a body, and what follows a request


@pytest.mark.parametrize(
    "trailer", [b"x-a: " + b"b" * 1000 + b"\r\n", b"x-a: " + b"b" * 1_000_000, b"a:\r\n"]
)
def test_trailers_have_the_bound_of_a_head_and_stop_nobody(serve, trailer):
    server = serve()
    with in_memory(40 * 2**20), never_blocked(server, 1.0), Wire(server.port) as wire:
        wire.send(chunked([GOOD], end=False) + b"0\r\n")
        with contextlib.suppress(OSError):  # the server reads no further
            for _ in range(60_000_000 // len(trailer)):
                wire.send(trailer)
        with contextlib.suppress(ConnectionResetError):
            assert wire.answer().status == 431
    assert server.embed().status_code == 200


def test_a_few_trailers_are_read_and_mean_nothing(plain):
    with Wire(plain.port) as wire:
        wire.send(chunked([GOOD], end=False) + b"0\r\nx-a: b\r\nhost: b\r\n\r\n" + LIVE)
        assert number_of_vectors(wire.answer()) == 1
        assert wire.answer().json()["live"] is True


def test_pipelined_requests_wait_in_the_socket(serve):
    server = serve()
    many = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n" * 400_000
    with in_memory(40 * 2**20), never_blocked(server, 1.0), Wire(server.port) as wire:
        wire.socket.settimeout(2)
        with contextlib.suppress(TimeoutError):
            wire.send(many)
        assert wire.answer().status == 200
    assert server.embed().status_code == 200


@pytest.mark.parametrize(
    "length", ["0" * 5000, "9" * 5000, "1" + "0" * 30, "00000000000000000000", "+5", "0x5", "5 5"]
)
@pytest.mark.parametrize("verb", ["POST /v1/embeddings", "GET /v1/models"])
def test_a_length_that_is_no_number_of_a_sane_size_is_400(plain, length, verb):
    with Wire(plain.port) as wire:
        wire.send(f"{verb} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n".encode())
        answer = wire.answer()
        assert answer.status == 400
        assert answer.json()["object"] == "error"
        assert wire.closed


@pytest.mark.parametrize("hosts", ["", "host: a\r\nhost: b\r\n", "host: a\r\nHost: a\r\n"])
def test_a_request_without_exactly_one_host_is_400(plain, hosts):
    with Wire(plain.port) as wire:
        wire.send(f"GET /v1/models HTTP/1.1\r\n{hosts}\r\n".encode())
        answer = wire.answer()
        assert answer.status == 400
        assert "one Host header" in answer.json()["message"]
        assert wire.closed
    with Wire(plain.port) as wire:
        wire.send(b"GET /v1/models HTTP/1.0\r\n\r\n")  # where it is no must
        assert wire.answer().status == 200


# Every wait has an end


@pytest.mark.parametrize("behind", [b"\r\n", b"\r\n\r\n", b"\n"])
def test_a_line_break_is_no_sign_of_life(serve, behind):
    server = serve(keep_alive_s=1, body_timeout_s=1)
    with Wire(server.port) as wire:
        wire.send(post(GOOD))
        assert wire.answer().status == 200
        begin = time.monotonic()
        wire.socket.settimeout(0.2)
        with contextlib.suppress(OSError):
            while time.monotonic() < begin + 5:
                wire.send(behind)
                with contextlib.suppress(TimeoutError):
                    if wire.socket.recv(1) == b"":
                        break
        assert time.monotonic() < begin + 4
    with Wire(server.port) as wire:
        wire.send(behind)
        assert wire.closed


@pytest.mark.parametrize("asked", [1, 3])
def test_a_client_that_never_reads_is_let_go(serve, asked):
    server = serve(body_timeout_s=0.5)
    body = json.dumps({"model": MODEL, "input": ["a"] * 2048, "dimensions": 64}).encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        begin = time.monotonic()
        deaf.settimeout(0.1)
        for _ in range(asked * 8):
            with contextlib.suppress(TimeoutError):
                deaf.sendall(post(body))
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            speak_until(deaf, begin + 15)
    assert server.embed().status_code == 200


def test_a_client_that_reads_slowly_is_served(serve):
    server = serve(body_timeout_s=5)
    body = json.dumps({"model": MODEL, "input": ["a"] * 2048}).encode()
    with Wire(server.port) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        wire.send(post(body))
        time.sleep(1)
        assert number_of_vectors(wire.answer()) == 2048


# One enormous text


def test_a_text_of_60_megabytes_is_refused_or_cut_before_it_is_tokenized(serve):
    server = serve({MODEL: nimbed.load(device="cpu")})
    text = "word " * 12_000_000
    for truncate in ("END", "START", "NONE"):
        begin = time.monotonic()
        with never_blocked(server, 2.0):
            answer = server.embed(input=["a", text], truncate=truncate)
        assert time.monotonic() - begin < 10
        if truncate == "NONE":
            assert answer.status_code == 400
            assert answer.json()["code"] == "context_length_exceeded"
            assert "(input[1])" in answer.json()["message"]
        else:
            assert answer.headers["x-nimbed-truncated"] == "1"
            cut = server.embed(input=["a", "word " * 500], truncate=truncate)
            assert answer.json()["data"] == cut.json()["data"]


def test_a_tokenizer_that_gives_up_refuses_one_text_and_serves_the_others(serve, tmp_path):
    folder = tiny_bert(tmp_path / "model")
    breakable = Tokenizer.from_file(str(folder / "tokenizer.json"))
    breakable.pre_tokenizer = Split(Regex(r"(?:a|aa|aaa)+$"), "isolated")
    breakable.save(str(folder / "tokenizer.json"))
    read_whole = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(read_whole))
    server = serve({MODEL: nimbed.load(str(folder), device="cpu")})
    for path, name in (("/v1/embeddings", "input"), ("/tokenize", "inputs")):
        answer = server.client.post(path, json={name: ["the fox", "a" * 60 + "b"]})
        assert answer.status_code == 400
        assert "cannot read row 1" in answer.json()["message"]
        assert server.client.post(path, json={name: ["the fox"]}).status_code == 200


# A server behind this one

TRUTHS = b'{"data": [{"index": 0, "embedding": [true, 0.5]}]}'
HOSTILE = {
    "tags without end": Response(500, b"<script>" * 50_000),
    "a number without end": Response(400, b'{"message": "input[' + b"9" * 5000 + b'] is bad"}'),
    "a date beyond time": Response(
        503, b"busy", {"retry-after": "Wed, 01 Jan 99999999999 00:00:00 GMT"}
    ),
    "truths beside numbers": Response(200, TRUTHS),
    "nested without end": Response(200, b"[" * 100_000),
    "packed twice": Response(200, b"x", {"content-encoding": "gzip, gzip"}),
    "redirected to nowhere": Response(307, b"", {"location": "http://[::1"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_server_behind_says_is_never_a_fault_of_ours(serve, name):
    behind = Double(lambda request: HOSTILE[name])
    far = RemoteEmbedder(
        FAKE_CARD, base_url=behind.url, dialect="nim", retry=RetryPolicy(retries=0)
    )
    server = serve({MODEL: far})
    server.app.state.models.default.backend.ready = True  # which its warm-up did not make it
    try:
        with never_blocked(server, 1.0):
            answer = server.embed(input_type="query")
        assert answer.status_code in (400, 502, 503), answer.text
        assert answer.json()["object"] == "error"
    finally:
        behind.stop()


# What is said of a request


def test_a_name_of_a_client_is_cut_and_escaped_in_the_log(serve, logged):
    lines = logged("pretty", "info")
    server = serve()
    agents = [b"a\xc2\x85b\xc2\x9b31m client=9.9.9.9 id=forged", b"x" * 30_000]
    for agent in agents:
        server.client.get("/nothing%20status=200", headers={"user-agent": agent})
        assert server.embed(headers={"user-agent": agent}).status_code == 200
    written = "\n".join(lines())
    assert written.isascii()
    assert max(map(len, lines())) < 1000
    assert "without input_type" in written
    assert ' client=9.9.9.9 id=forged"' in written  # within the quotes of the agent
    assert written.count("31m client") == 1
    assert " status=200" not in written
    assert all(len(agent) <= 80 for _, agent in server.app.state.warned)


def test_a_stranger_learns_no_name_from_a_probe(serve):
    server = serve(api_keys=("secret",))
    for path in ("/zzz/v1/health/live", "/zzz/v1/health/ready", "/t2v/zzz/.well-known/ready"):
        answer = server.client.get(path)
        assert answer.status_code == 404
        assert MODEL not in answer.text
    assert server.client.get(f"/{MODEL}/v1/health/live").status_code == 200
    with_key = {"authorization": "Bearer secret"}
    assert MODEL in server.client.get("/zzz/v1/models", headers=with_key).text
