"""What other adapters fail, on ours; where it is NVIDIA's own that fails, the proof beside it.

The server is a strict NIM on a socket. NVIDIA's adapter is tried where it is installed.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("langchain_core")

from langchain_core.embeddings import Embeddings
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
from nimbed_langchain import NimbedEmbeddings

Make = Callable[..., Embeddings]


@pytest.fixture
def make(request: pytest.FixtureRequest, server: Double) -> Iterator[Make]:
    server.handler = nim(longest=50, matryoshka=True)
    if is_nvidias(request):
        theirs = pytest.importorskip("langchain_nvidia_ai_endpoints").NVIDIAEmbeddings
        yield lambda **options: theirs(
            base_url=server.url, model=E5, nvidia_api_key="none", **options
        )
        forget()
        return
    with RemoteEmbedder(MATRYOSHKA, base_url=server.url, dialect="nim") as embedder:
        yield lambda **options: NimbedEmbeddings.from_embedder(embedder, **options)


@both()
def test_a_query_says_query_sync_and_async(server: Double, make: Make) -> None:
    made = make()
    made.embed_query("a")
    asyncio.run(made.aembed_query("a"))
    made.embed_documents(["a"])
    asyncio.run(made.aembed_documents(["a"]))
    assert sent(server, "input_type") == ["query", "query", "passage", "passage"]


def test_dimensions_and_truncate_are_sent_sync_and_async(server: Double, make: Make) -> None:
    made = make(dimensions=64, truncate="END")
    vectors = [*made.embed_documents(["a"]), *asyncio.run(made.aembed_documents(["a"]))]
    vectors += [made.embed_query("a"), asyncio.run(made.aembed_query("a"))]
    assert [len(vector) for vector in vectors] == [64] * 4
    assert sent(server, "dimensions") == [64] * 4
    assert sent(server, "truncate") == ["END"] * 4


@but_nvidias("an event loop each, a connection each", AssertionError)
def test_event_loops_come_and_go_on_one_connection(server: Double, make: Make) -> None:
    made = make()
    for _ in range(3):
        asyncio.run(made.aembed_documents(["a"]))
    assert server.connections == 1


@but_nvidias("a 429 is a bare Exception", Exception)
def test_an_overload_is_waited_for(server: Double, make: Make) -> None:
    server.script = [error("slow down", 429, Retry_After="0")]
    assert len(make().embed_query("a")) == 1024
    assert len(server.posts) == 2


@but_nvidias("a connection for each batch", AssertionError)
def test_batches_one_after_the_other_share_a_connection(server: Double, make: Make) -> None:
    made = make()
    for start in range(0, 200, 50):
        made.embed_documents([f"text {n}" for n in range(start, start + 50)])
    assert server.connections == 1


@but_nvidias("keeps the last response, which no pickle takes", TypeError)
def test_it_can_be_pickled_after_an_async_call(make: Make) -> None:
    made = make()
    vector = asyncio.run(made.aembed_query("a"))
    again = pickle.loads(pickle.dumps(made))
    assert again.embed_query("a") == vector
    if isinstance(again, NimbedEmbeddings):
        again.embedder.close()


@but_nvidias("names neither row nor text", AssertionError)
def test_a_poison_text_is_named_by_its_row(make: Make) -> None:
    texts = [f"text {n}" for n in range(9)]
    texts[6] = "word " * 60
    with pytest.raises(Exception, match="exceeds") as caught:
        make().embed_documents(texts)
    assert getattr(caught.value, "rows", None) == (6,)


def test_twice_a_batch_and_one_more_come_back_in_order(make: Make) -> None:
    # 259 is more than two requests of the 128 texts that one holds.
    made, texts = make(), [f"text {n}" for n in range(259)]
    vectors = made.embed_documents(texts)
    assert [vectors[row] for row in (0, 128, 258)] == made.embed_documents(
        ["text 0", "text 128", "text 258"]
    )
    assert len(vectors) == 259
