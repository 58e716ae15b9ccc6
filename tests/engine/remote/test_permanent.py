"""Faults that waiting does not mend end in one or two tries, with the server's own words."""

from __future__ import annotations

import socket
import threading
from time import perf_counter

import numpy as np
import pytest

from nimbed.errors import RemoteError
from nimbed.remote.embedder import RemoteEmbedder
from nimbed.remote.retry import RetryPolicy

from .double import Response, answer, as_json, error
from .players import E5, nim, plain

SECONDS = 15.0  # three, on a machine that has nothing else to do; who gave up by counting took 34


def fails(base_url, **options):
    embedder = RemoteEmbedder(E5, base_url=base_url, **{"dialect": "nim", **options})
    began = perf_counter()
    with embedder, pytest.raises(RemoteError) as caught:
        embedder.embed(["a", "b"], input_type="query")
    assert perf_counter() - began < SECONDS
    return caught.value


WORDS = {"error": {"message": "Incorrect API key provided: sk-12", "type": "auth"}}
PERMANENT = {
    "501": (error("this model embeds nothing", 501), "this model embeds nothing"),
    "a web page": (Response(200, b"<html><h1>Log in</h1></html>"), "a web page .*Log in"),
    "a web page as 500": (Response(500, b"<html><h1>Oops</h1></html>"), "Oops"),
    "another width": (plain(7), "width 7 where 1024 was promised"),
    "a wrong key, 401": (error("no", 401), "no api key was sent"),
    "a wrong key, 400": (as_json(WORDS, 400), "Incorrect API key provided"),
    "a wrong key, 500": (as_json(WORDS, 500), "Incorrect API key provided"),
    "a wrong key, 200": (as_json(WORDS, 200), "Incorrect API key provided"),
    "unauthorized, 500": (error("Unauthorized", 500), "Unauthorized"),
    "no such path": (
        Response(404, b'{"detail":"Not Found"}'),
        "Not Found .*; check the model's name",
    ),
    "an error as 200": (as_json({"error": {"message": "no such thing"}}), "no such thing"),
    "a 500 that says nothing": (error("Internal Server Error", 500), "Internal Server Error"),
    "a 500 without a body": (Response(500, b""), "no explanation"),
    "one vector for all": (
        lambda request: answer(np.ones((len(request.texts), 1024), np.float32)),
        "the same vector for different texts",
    ),
    **{
        f"no such model, {status}": (
            as_json({"error": {"message": "m has no channel", "code": "model_not_found"}}, status),
            "m has no channel",
        )
        for status in (400, 404, 500, 503)
    },
    **{
        f"no such model in words, {status}": (
            error("The model `m` does not exist or you do not have access to it.", status),
            "does not exist",
        )
        for status in (400, 404, 500, 503)
    },
    "a retired model": (
        Response(
            410, b'{"status": 410, "detail": "The model has reached its end of life on 2026-08-25"}'
        ),
        "end of life on 2026-08-25.*its publisher offers nvidia/nemotron-3-embed-1b in its place",
    ),
    "a code as 200": (
        as_json({"error": {"message": "credits are gone", "code": 402}}),
        r"\[402\] credits are gone",
    ),
}


@pytest.mark.parametrize("name", PERMANENT)
@pytest.mark.parametrize("dialect", ["nim", "auto"])
def test_a_server_that_will_not_answer_is_tried_twice_at_most(serve, name, dialect):
    play, words = PERMANENT[name]
    double = serve(lambda request: play if isinstance(play, Response) else play(request))
    raised = fails(double.url, dialect=dialect)
    with pytest.raises(RemoteError, match=words):
        raise raised
    assert len(double.posts) <= 2


def test_the_weights_of_a_retired_model_run_here(serve):
    double = serve(lambda request: Response(410, b'{"detail": "gone"}'))
    with (
        RemoteEmbedder("nvidia/llama-3.2-nv-embedqa-1b-v2", base_url=double.url) as embedder,
        pytest.raises(RemoteError) as caught,
    ):
        embedder.embed(["a"], input_type="query")
    said = str(caught.value)
    assert "nimbed.load('nvidia/llama-nemotron-embed-1b-v2') without base_url" in said
    assert "offers nvidia/nemotron-3-embed-1b in its place" in said


def test_a_port_where_nobody_listens(serve):
    double = serve()
    url = double.url
    double.stop()
    assert "cannot connect" in str(fails(url))
    assert "cannot connect" in str(fails(url, dialect="auto"))


def test_a_name_that_nobody_has(monkeypatch):
    def nobody(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert "Name or service not known" in str(fails("http://nowhere.invalid:8000"))


def answering(answer):
    """A listener that answers any bytes with these."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    return listener


def test_https_at_a_port_without_tls():
    with answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n") as listener:
        raised = fails(f"https://127.0.0.1:{listener.getsockname()[1]}/v1")
    assert "no TLS at this port" in str(raised)


def test_http_at_a_port_with_tls(secure):
    assert "closed" in str(fails(secure.url.replace("https:", "http:")))
    with answering(b"\x15\x03\x01\x00\x02\x02\x46") as listener:  # OpenSSL's alert
        raised = fails(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    assert "write https://" in str(raised)


def test_a_server_that_has_answered_is_given_time_to_come_back(serve, connect):
    double = serve(nim())
    embedder = connect(double, retry=RetryPolicy(shortest=0.01, longest=0.02))
    embedder.embed(["a"], input_type="query")
    double.script = [Response(close=True)] * 6
    assert len(embedder.embed(["a"], input_type="query")) == 1


def test_probes_are_short_and_do_not_keep_vectors_back(serve, connect):
    inner = nim()

    def handle(request):
        return error("busy", 503) if request.method == "GET" else inner(request)

    double = serve(handle)
    began = perf_counter()
    batch = connect(double, dialect="auto", retry=RetryPolicy()).embed(["a"], input_type="query")
    assert perf_counter() - began < SECONDS
    assert len(batch) == 1
    assert len(double.seen) - len(double.posts) == 3


def test_a_dialect_that_was_guessed_during_an_outage_is_asked_for_again(serve, connect):
    inner = nim()
    double = serve(inner)
    double.handler = lambda r: error("busy", 503) if r.method == "GET" else inner(r)
    embedder = connect(double, dialect="auto")
    embedder.embed(["a"], input_type="query")
    double.handler = inner
    embedder.embed(["a"], input_type="query")
    assert embedder.identify()[1] == "nim"


def test_a_key_that_is_refused_where_the_model_must_be_asked_for(serve, connect):
    double = serve(lambda request: error("no", 401))
    with pytest.raises(RemoteError, match="no api key was sent") as caught:
        connect(double, None, dialect="auto").embed(["a"], input_type="query")
    assert caught.value.status == 401
