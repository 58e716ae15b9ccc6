"""What reaches a server through LlamaIndex's adapter; the server is a strict NIM on a socket."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("llama_index.core")

from tests.engine.remote.double import Double, Response
from tests.engine.remote.players import E5, nim
from tests.integrations.langchain.rivals import sent

from nimbed_llama_index import NimbedEmbedding


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/embeddings"])
def test_address_model_and_key_reach_the_server(server: Double, path: str) -> None:
    ours = NimbedEmbedding(
        model_name=E5, base_url=f"{server.origin}{path}", api_key="nvapi-sent", dialect="nim"
    )
    with ours.embedder:
        assert len(ours.get_query_embedding("a")) == 1024
    assert server.posts[0].path == "/v1/embeddings"
    assert server.posts[0].headers["authorization"] == "Bearer nvapi-sent"
    assert sent(server, "model") == [E5]


def test_the_environments_key_reaches_the_server(
    server: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIMBED_API_KEY", "from-the-environment")
    ours = NimbedEmbedding(model_name=E5, base_url=server.origin, dialect="nim")
    with ours.embedder:
        ours.get_query_embedding("a")
    assert server.posts[0].headers["authorization"] == "Bearer from-the-environment"


def test_no_more_requests_are_in_flight_than_allowed(server: Double) -> None:
    slow = nim()
    server.handler = lambda request: replace(slow(request), stall=0.02)
    ours = NimbedEmbedding(model_name=E5, base_url=server.origin, dialect="nim", concurrency=2)
    with ours.embedder:
        ours.get_text_embedding_batch([f"text {n}" for n in range(1000)])
    assert server.most_at_once == 2


def test_a_request_that_takes_too_long_is_sent_again(server: Double) -> None:
    server.script = [Response(stall=300)]
    ours = NimbedEmbedding(model_name=E5, base_url=server.origin, dialect="nim", timeout=0.2)
    with ours.embedder:
        assert len(ours.get_query_embedding("a")) == 1024
    assert len(server.posts) == 2
