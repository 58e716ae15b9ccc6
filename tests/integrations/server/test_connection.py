"""Any ASGI answer, sent in one piece where that can be, and by uvicorn's way where not."""

from __future__ import annotations

import contextlib
import threading

import httpx
import pytest
import uvicorn

from nimbed_server import Settings
from nimbed_server.http_connection import guarded
from nimbed_server.uvicorn_server import bind

from .conftest import wait_until


@contextlib.contextmanager
def under(app):
    settings = Settings(port=0)
    config = uvicorn.Config(app, http=guarded(settings), lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with bind(settings) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}") as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def answering(*events):
    async def app(scope, receive, send):
        for event in events:
            await send(event)

    return app


def start(*headers, status=200):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def piece(body, **more):
    return {"type": "http.response.body", "body": body, **more}


LENGTH = (b"content-length", b"5")


@pytest.mark.parametrize(
    "events",
    [
        (start(LENGTH), piece(b"whole")),
        (start(LENGTH), piece(b"wh", more_body=True), piece(b"ole")),
        (start(), piece(b"whole")),
        (start(), piece(b"wh", more_body=True), piece(b"ole", more_body=True), piece(b"")),
        (start(LENGTH, (b"connection", b"close")), piece(b"whole")),
    ],
    ids=["whole", "pieces", "chunked", "chunks", "closing"],
)
def test_an_answer_arrives_however_it_is_sent(events):
    with under(answering(*events)) as client:
        for _ in range(3):
            answer = client.get("/")
            assert answer.content == b"whole"
            assert "date" in answer.headers
        head = client.head("/")
        assert head.status_code == 200
        assert head.content == b""


@pytest.mark.parametrize(
    "events",
    [
        (start(LENGTH, (b"x-name", b"a\r\nset-cookie: b")), piece(b"whole")),
        (start(LENGTH, (b"x-name", b"a\nset-cookie: b")), piece(b"whole")),
        (start(LENGTH, (b"x-name", b"a\rset-cookie: b")), piece(b"whole")),
        (start(LENGTH, (b"x-name", b"a\x00")), piece(b"whole")),
        (start(LENGTH, (b"content-type", b"a\x7f")), piece(b"whole")),
        (start(LENGTH, (b"x-name\r\nset-cookie", b"b")), piece(b"whole")),
        (start(LENGTH, (b"set cookie", b"b")), piece(b"whole")),
        (start(LENGTH, (b"", b"b")), piece(b"whole")),
        (start((b"content-length", b"4")), piece(b"whole")),
        (start((b"content-length", b"6")), piece(b"whole")),
    ],
    ids=[
        *("value", "line feed", "carriage return", "null", "delete"),
        *("name", "blank in a name", "no name", "too long", "too short"),
    ],
)
def test_an_answer_that_is_no_http_never_arrives_whole(events):
    with under(answering(*events)) as client:
        try:
            answer = client.get("/")
        except httpx.TransportError:
            return
        assert answer.status_code == 500
        assert "set-cookie" not in answer.headers


def test_an_application_that_fails_before_its_body_is_500():
    async def app(scope, receive, send):
        await send(start(LENGTH))
        raise RuntimeError

    with under(app) as client:
        try:
            answer = client.get("/")
        except httpx.TransportError:
            return
        assert answer.status_code == 500
