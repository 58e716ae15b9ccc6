"""Readiness: while a model is read, when it cannot be, and while the server stops."""

from __future__ import annotations

import socket

import httpx

from nimbed_server import Settings

from .conftest import MODEL, running, wait_until
from .stub import Stub, busy, is_right, post


def test_ready_is_503_while_loading_and_embedding_too():
    stub = Stub()
    stub.hold()
    with running({MODEL: stub}, Settings(port=0), loaded=False) as server:
        try:
            assert stub.held.wait(20)
            answer = server.client.get("/v1/health/ready")
            assert answer.status_code == 503
            assert answer.json() == {
                "object": "health.response",
                "message": "not ready",
                "ready": False,
                "status": "not_ready",
            }
            assert server.client.get("/v1/health/live").status_code == 200
            refused = server.embed()
            assert refused.status_code == 503
            assert refused.json()["code"] == "not_ready"
            assert refused.headers["retry-after"] == "1"
        finally:
            stub.gate.set()
        wait_until(lambda: server.client.get("/v1/health/ready").status_code == 200)
        assert server.embed().status_code == 200


def test_a_model_that_cannot_be_loaded_is_named_by_the_probe(serve):
    class Missing(Stub):
        def replicas(self):
            raise FileNotFoundError("no weights here")

    server = serve({MODEL: Missing()})
    answer = server.client.get("/v1/health/ready")
    assert answer.status_code == 503
    assert "cannot be loaded: no weights here" in answer.json()["message"]
    assert server.embed().status_code == 503
    assert server.client.get("/v1/health/live").status_code == 200


def test_while_the_server_stops_whoever_comes_anew_is_told_so(serve):
    stub = Stub()
    server = serve({MODEL: stub})
    with busy(server, stub) as first:
        server.stop()
        for _ in range(3):  # each over a connection of its own, as probes come
            answer = httpx.get(f"{server.url}/v1/health/ready")
            assert answer.status_code == 503
            assert answer.json()["message"] == "stopping"
            assert answer.headers["connection"] == "close"
            assert httpx.get(f"{server.url}/v1/health/live").status_code == 200
            refused = post(server, ["too late"])
            assert refused.status_code == 503
            assert refused.json()["code"] == "stopping"
            assert refused.headers["connection"] == "close"
        assert not first.done()
        stub.gate.set()
        is_right(first.result(), ["first"])
        assert first.result().headers["connection"] == "close"
    wait_until(lambda: refuses(server.port))


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False
