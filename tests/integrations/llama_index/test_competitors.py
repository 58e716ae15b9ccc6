"""What other adapters fail, on ours; where it is NVIDIA's own that fails, the proof beside it.

The server is a strict NIM on a socket. NVIDIA's adapter is tried where it is installed.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.storage.kvstore import SimpleKVStore
from tests.engine.remote.double import Double, error
from tests.engine.remote.players import E5, nim
from tests.integrations.langchain.rivals import (
    MATRYOSHKA,
    both,
    but_nvidias,
    forget,
    is_nvidias,
    sent,
)

from nimbed.remote.embedder import RemoteEmbedder
from nimbed_llama_index import NimbedEmbedding

Make = Callable[..., BaseEmbedding]


@pytest.fixture
def make(request: pytest.FixtureRequest, server: Double) -> Iterator[Make]:
    server.handler = nim(longest=50, matryoshka=True)
    if is_nvidias(request):
        theirs = pytest.importorskip("llama_index.embeddings.nvidia").NVIDIAEmbedding
        yield lambda **options: theirs(base_url=server.url, model=E5, api_key="none", **options)
        forget()
        return
    with RemoteEmbedder(MATRYOSHKA, base_url=server.url, dialect="nim") as embedder:
        yield lambda **options: NimbedEmbedding.from_embedder(embedder, **options)


@but_nvidias("embeds a query as a passage unless it is asynchronous", AssertionError)
def test_a_query_says_query_sync_and_async(server: Double, make: Make) -> None:
    made = make()
    made.get_query_embedding("a")
    asyncio.run(made.aget_query_embedding("a"))
    assert sent(server, "input_type") == ["query", "query"]


@but_nvidias("asynchronous calls leave the dimensions out", AssertionError)
def test_dimensions_and_truncate_are_sent_sync_and_async(server: Double, make: Make) -> None:
    made = make(dimensions=64, truncate="END")
    vectors = [*made.get_text_embedding_batch(["a"]), made.get_query_embedding("a")]
    vectors.append(asyncio.run(made.aget_query_embedding("a")))
    assert [len(vector) for vector in vectors] == [64] * 3
    assert sent(server, "dimensions") == [64] * 3
    assert sent(server, "truncate") == ["END"] * 3


@but_nvidias("its client dies with the first event loop", RuntimeError)
def test_event_loops_come_and_go_on_one_connection(server: Double, make: Make) -> None:
    made = make()
    for _ in range(3):
        asyncio.run(made.aget_text_embedding_batch(["a"]))
    assert server.connections == 1


@both()
def test_an_overload_is_waited_for(server: Double, make: Make) -> None:
    server.script = [error("slow down", 429, Retry_After="0")]
    assert len(make().get_text_embedding("a")) == 1024
    assert len(server.posts) == 2


@both()
def test_batches_one_after_the_other_share_a_connection(server: Double, make: Make) -> None:
    made = make()
    for start in range(0, 200, 50):
        made.get_text_embedding_batch([f"text {n}" for n in range(start, start + 50)])
    assert server.connections == 1


def test_it_can_be_pickled_after_an_async_call(make: Make) -> None:
    made = make()
    vector = asyncio.run(made.aget_query_embedding("a"))
    with pickle.loads(pickle.dumps(made)).embedder as again:
        assert NimbedEmbedding.from_embedder(again).get_query_embedding("a") == vector


@but_nvidias("a query finds what the passage of its text left in the cache", AssertionError)
def test_a_text_is_cached_apart_as_query_and_as_passage(server: Double, make: Make) -> None:
    made = make()
    made.embeddings_cache = SimpleKVStore()
    for _ in range(2):
        passage = asyncio.run(made.aget_text_embedding("Paris"))
        query = asyncio.run(made.aget_query_embedding("Paris"))
        assert passage != query
    assert sent(server, "input_type") == ["passage", "query"]


@but_nvidias("names neither row nor text", AssertionError)
def test_a_poison_text_is_named_by_its_row(make: Make) -> None:
    texts = [f"text {n}" for n in range(9)]
    texts[6] = "word " * 60
    with pytest.raises(Exception, match="exceeds") as caught:
        make().get_text_embedding_batch(texts)
    assert getattr(caught.value, "rows", None) == (6,)
