"""Connections that Weaviate keeps, and its transformers container: cases A7 and A8."""

from __future__ import annotations

import json
import select
import socket
import threading

import numpy as np
import pytest

from nimbed import FakeEmbedder
from nimbed_server import Settings, create_app
from nimbed_server.uvicorn_server import Server

from .conftest import MODEL, running, wait_until
from .go import GoError, Weaviate, embeddings, vector
from .golden import CARD, IMPORT, QUERY, T2V, serving, wanted
from .stub import Stub


@pytest.fixture(scope="module")
def server():
    with serving() as started:
        yield started


@pytest.fixture
def weaviate(server):
    client = Weaviate(server.port)
    yield client
    client.close()


def test_a7_an_idle_connection_outlives_the_90_seconds_of_gos_pool():
    settings = Settings(port=0)
    server = Server(create_app({MODEL: FakeEmbedder()}, settings), settings)
    assert server.config.timeout_keep_alive == settings.keep_alive_s >= 95


def test_a7_it_is_the_idle_timeout_that_closes_a_connection(serve):
    server = serve({CARD.id: FakeEmbedder(CARD)}, keep_alive_s=1)
    client = Weaviate(server.port)
    for _ in range(3):
        embeddings(client.post("/v1/embeddings", QUERY))
    readable, _, _ = select.select([client.connection.sock], [], [], 20)
    assert readable
    assert client.connection.sock.recv(1, socket.MSG_PEEK) == b""
    client.close()


def test_a7_health_and_meta_answer_while_a_batch_runs(serve):
    stub = Stub(CARD)
    server = serve({CARD.id: stub})
    stub.hold()
    running = Weaviate(server.port)
    answers = []
    importing = threading.Thread(
        target=lambda: answers.append(running.post("/v1/embeddings", IMPORT))
    )
    importing.start()
    try:
        assert stub.held.wait(20)
        probe = Weaviate(server.port)
        for path, status in (
            ("/v1/health/live", 200),
            ("/v1/health/ready", 200),
            ("/.well-known/ready", 204),
            ("/meta", 200),
        ):
            assert probe.get(path).status == status
        assert not answers
        probe.close()
    finally:
        stub.gate.set()
        importing.join(20)
    assert len(embeddings(answers[0])) == 1
    running.close()


@pytest.mark.parametrize("path", ["/vectors", "/vectors/", "/nvidia/nv-embed-v1/vectors"])
@pytest.mark.parametrize("role", ["query", "passage"])
def test_a8_the_container_is_served_without_a_content_type(weaviate, path, role):
    answer = weaviate.post_bare(path, T2V % role.encode())
    np.testing.assert_allclose(vector(answer), wanted("Frank Herbert", role), atol=1e-6)


def test_a8_the_container_takes_a_size_and_a_name_behind_t2v(weaviate):
    sized = T2V.replace(b'"task_type"', b'"dimensions":32,"task_type"') % b"query"
    np.testing.assert_allclose(
        vector(weaviate.post_bare("/vectors", sized)),
        wanted("Frank Herbert", "query", dimensions=32),
        atol=1e-6,
    )
    small = vector(weaviate.post_bare("/t2v/small/vectors", T2V % b"query"))
    np.testing.assert_allclose(small, wanted("Frank Herbert", "query", dimensions=16), atol=1e-6)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"text":""}', 400),
        (b'{"text":"a","config":{"task_type":"other"}}', 400),
        (b'{"text":"a","config":{"dimensions":17}}', 400),
        (b'{"text":"' + b"word " * 600 + b'"}', 400),
    ],
)
def test_a8_the_containers_error_is_a_string(weaviate, sent, status):
    answer = weaviate.post_bare("/vectors", sent)
    assert answer.status == status
    with pytest.raises(GoError, match=f"fail with status {status}: .+"):
        vector(answer)


def test_a8_the_container_is_ready_only_once_the_model_is_loaded():
    stub = Stub(CARD)
    stub.hold()
    with running({CARD.id: stub}, Settings(port=0), loaded=False) as server:
        client = Weaviate(server.port)
        try:
            assert stub.held.wait(20)
            assert client.get("/.well-known/ready").status == 503
            assert client.get("/.well-known/live").status == 204
            with pytest.raises(GoError, match="503: .* still being loaded"):
                vector(client.post_bare("/vectors", T2V % b"query"))
        finally:
            stub.gate.set()
        wait_until(lambda: client.get("/.well-known/ready").status == 204)
        assert len(vector(client.post_bare("/vectors", T2V % b"query"))) == CARD.dimensions
        client.close()


def test_a8_meta_is_an_object(weaviate):
    answer = weaviate.get("/meta")
    assert answer.status == 200
    assert json.loads(answer.body)["model_path"] == CARD.id
