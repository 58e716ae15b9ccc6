"""What other adapters get wrong on a wire, on ours; the server is a strict NIM on a socket."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from tests.engine.remote.double import Double, error
from tests.engine.remote.players import E5, nim

from nimbed import cards
from nimbed.errors import InputError
from nimbed.remote.embedder import RemoteEmbedder
from nimbed_llama_index import NimbedEmbedding

MATRYOSHKA = replace(cards.find(E5), matryoshka=(64,))


@pytest.fixture
def remote(server: Double) -> Iterator[RemoteEmbedder]:
    server.handler = nim(longest=50, matryoshka=True)
    with RemoteEmbedder(MATRYOSHKA, base_url=server.url, dialect="nim") as embedder:
        yield embedder


def sent(server: Double, field: str) -> list[Any]:
    return [request.json.get(field) for request in server.posts]


def test_a_query_says_query_sync_and_async(server: Double, remote: RemoteEmbedder) -> None:
    ours = NimbedEmbedding.from_embedder(remote)
    ours.get_query_embedding("a")
    asyncio.run(ours.aget_query_embedding("a"))
    ours.get_text_embedding("a")
    asyncio.run(ours.aget_text_embedding("a"))
    assert sent(server, "input_type") == ["query", "query", "passage", "passage"]


def test_dimensions_and_truncate_are_sent_sync_and_async(
    server: Double, remote: RemoteEmbedder
) -> None:
    ours = NimbedEmbedding.from_embedder(remote, dimensions=64, truncate="END")
    vectors = [ours.get_query_embedding("a"), asyncio.run(ours.aget_query_embedding("a"))]
    vectors += [*ours.get_text_embedding_batch(["a"])]
    vectors += [*asyncio.run(ours.aget_text_embedding_batch(["a"]))]
    assert [len(vector) for vector in vectors] == [64] * 4
    assert sent(server, "dimensions") == [64] * 4
    assert sent(server, "truncate") == ["END"] * 4


def test_event_loops_come_and_go_on_one_connection(server: Double, remote: RemoteEmbedder) -> None:
    ours = NimbedEmbedding.from_embedder(remote)
    for _ in range(3):
        asyncio.run(ours.aget_text_embedding_batch(["a"]))
        ours.get_query_embedding("b")
    assert server.connections == 1


def test_an_overload_is_waited_for(server: Double, remote: RemoteEmbedder) -> None:
    server.script = [error("slow down", 429, Retry_After="0")]
    assert len(NimbedEmbedding.from_embedder(remote).get_query_embedding("a")) == 1024
    assert len(server.posts) == 2


def test_it_can_be_pickled_after_an_async_call(remote: RemoteEmbedder) -> None:
    ours = NimbedEmbedding.from_embedder(remote)
    vector = asyncio.run(ours.aget_query_embedding("a"))
    with pickle.loads(pickle.dumps(ours)).embedder as again:
        assert NimbedEmbedding.from_embedder(again).get_query_embedding("a") == vector


def test_a_poison_text_is_named_by_its_row(remote: RemoteEmbedder) -> None:
    texts = [f"text {n}" for n in range(9)]
    texts[6] = "word " * 60
    with pytest.raises(InputError) as caught:
        NimbedEmbedding.from_embedder(remote).get_text_embedding_batch(texts)
    assert caught.value.rows == (6,)


def test_address_model_and_key_reach_the_server(server: Double) -> None:
    ours = NimbedEmbedding(
        model_name=E5, base_url=server.origin, api_key="nvapi-sent", dialect="nim"
    )
    with ours.embedder:
        assert len(ours.get_query_embedding("a")) == 1024
    assert server.posts[0].headers["authorization"] == "Bearer nvapi-sent"
    assert sent(server, "model") == [E5]
