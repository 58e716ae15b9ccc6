"""What reaches a server through either adapter; the server is a strict NIM on a socket."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from tests.engine.remote.double import Double, Response
from tests.engine.remote.players import E5, nim
from tests.integrations.adapters.frameworks import EACH, LANGCHAIN, Framework, sent

from nimbed.errors import ConfigurationError


@EACH
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/embeddings"])
def test_address_model_and_key_reach_the_server(
    server: Double, framework: Framework, path: str
) -> None:
    ours = framework.make(
        model=E5, base_url=f"{server.origin}{path}", api_key="nvapi-sent", dialect="nim"
    )
    with ours.made.embedder:
        assert len(ours.query("a")) == 1024
    assert server.posts[0].path == "/v1/embeddings"
    assert server.posts[0].headers["authorization"] == "Bearer nvapi-sent"
    assert sent(server, "model") == [E5]


@EACH
def test_the_environments_key_reaches_the_server(
    server: Double, framework: Framework, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIMBED_API_KEY", "from-the-environment")
    ours = framework.make(model=E5, base_url=server.origin, dialect="nim")
    with ours.made.embedder:
        ours.query("a")
    assert server.posts[0].headers["authorization"] == "Bearer from-the-environment"


@EACH
def test_headers_of_a_gateway_reach_it_and_are_never_shown_nor_pickled(
    server: Double, framework: Framework
) -> None:
    headers = {"x-tenant": "a-secret"}
    ours = framework.make(model=E5, base_url=server.origin, dialect="nim", headers=headers)
    with ours.made.embedder:
        ours.query("a")
    assert server.posts[0].headers["x-tenant"] == "a-secret"
    assert "a-secret" not in repr(ours.made)
    with pytest.raises(ConfigurationError, match="x-tenant.* do not travel in a pickle"):
        pickle.dumps(ours.made)


@EACH
def test_no_more_requests_are_in_flight_than_allowed(server: Double, framework: Framework) -> None:
    slow = nim()
    server.handler = lambda request: replace(slow(request), stall=0.02)
    ours = framework.make(model=E5, base_url=server.origin, dialect="nim", concurrency=2)
    with ours.made.embedder:
        ours.passages([f"text {n}" for n in range(1000)])
    assert server.most_at_once == 2


@EACH
def test_a_request_that_takes_too_long_is_sent_again(server: Double, framework: Framework) -> None:
    server.script = [Response(stall=300)]
    ours = framework.make(model=E5, base_url=server.origin, dialect="nim", timeout=0.2)
    with ours.made.embedder:
        assert len(ours.query("a")) == 1024
    assert len(server.posts) == 2


def test_a_request_holds_no_more_texts_than_the_batch_size(server: Double) -> None:
    ours = LANGCHAIN.make(model=E5, base_url=server.origin, dialect="nim", batch_size=10)
    with ours.made.embedder:
        ours.passages([f"text {n}" for n in range(25)])
    assert sorted(len(request.texts) for request in server.posts) == [5, 10, 10]
