"""What other adapters fail, on ours; where it is NVIDIA's own that fails, the proof beside it.

The server is a strict NIM on a socket. NVIDIA's adapters are tried where they are installed.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable

import pytest
from tests.engine.remote.double import Double, error
from tests.integrations.adapters.frameworks import (
    LLAMA_INDEX,
    PASSES,
    Adapter,
    beside_nvidias,
    fails,
    sent,
)

Make = Callable[..., Adapter]


@beside_nvidias(
    langchain=PASSES,
    llama_index=fails("embeds a query as a passage unless it is asynchronous", AssertionError),
)
def test_a_query_says_query_sync_and_async(server: Double, adapter: Make) -> None:
    made = adapter()
    made.query("a")
    made.passages(["a"])
    made.aboth("a")
    assert sent(server, "input_type") == ["query", "passage", "query", "passage"]


@beside_nvidias(llama_index=fails("asynchronous calls leave the dimensions out", AssertionError))
def test_dimensions_and_truncate_are_sent_sync_and_async(server: Double, adapter: Make) -> None:
    made = adapter(dimensions=64, truncate="END")
    query, passages = made.aboth("a")
    vectors = [made.query("a"), *made.passages(["a"]), query, *passages]
    assert [len(vector) for vector in vectors] == [64] * 4
    assert sent(server, "dimensions") == [64] * 4
    assert sent(server, "truncate") == ["END"] * 4


@beside_nvidias(
    langchain=fails("an event loop each, a connection each", AssertionError),
    llama_index=fails("its client dies with the first event loop", RuntimeError),
)
def test_event_loops_come_and_go_on_one_connection(server: Double, adapter: Make) -> None:
    made = adapter()
    for _ in range(3):
        made.apassages(["a"])
    assert server.connections == 1


@beside_nvidias(langchain=fails("a 429 is a bare Exception", Exception), llama_index=PASSES)
def test_an_overload_is_waited_for(server: Double, adapter: Make) -> None:
    server.script = [error("slow down", 429, Retry_After="0")]
    assert len(adapter().query("a")) == 1024
    assert len(server.posts) == 2


@beside_nvidias(langchain=fails("a connection for each batch", AssertionError), llama_index=PASSES)
def test_batches_one_after_the_other_share_a_connection(server: Double, adapter: Make) -> None:
    made = adapter()
    for start in range(0, 200, 50):
        made.passages([f"text {n}" for n in range(start, start + 50)])
    assert server.connections == 1


@beside_nvidias(langchain=fails("keeps the last response, which no pickle takes", TypeError))
def test_it_can_be_pickled_after_an_async_call(adapter: Make) -> None:
    made = adapter()
    vector = made.aquery("a")
    again = Adapter(made.framework, pickle.loads(pickle.dumps(made.made)))
    assert again.query("a") == vector
    if hasattr(again.made, "embedder"):
        again.made.embedder.close()


@beside_nvidias(
    langchain=fails("names neither row nor text", AssertionError),
    llama_index=fails("names neither row nor text", AssertionError),
)
def test_a_poison_text_is_named_by_its_row(adapter: Make) -> None:
    texts = [f"text {n}" for n in range(9)]
    texts[6] = "word " * 60
    with pytest.raises(Exception, match="exceeds") as caught:
        adapter().passages(texts)
    assert getattr(caught.value, "rows", None) == (6,)


@beside_nvidias()
def test_twice_a_batch_and_one_more_come_back_in_order(adapter: Make) -> None:
    # 259 is more than two requests of the 128 texts that one holds.
    made, texts = adapter(), [f"text {n}" for n in range(259)]
    vectors = made.passages(texts)
    assert [vectors[row] for row in (0, 128, 258)] == made.passages(
        ["text 0", "text 128", "text 258"]
    )
    assert len(vectors) == 259


@pytest.mark.parametrize(
    "adapter",
    [
        pytest.param((LLAMA_INDEX, False), id="nimbed"),
        pytest.param(
            (LLAMA_INDEX, True),
            id="nvidia",
            marks=[
                pytest.mark.filterwarnings("ignore"),
                fails(
                    "a query finds what the passage of its text left in the cache", AssertionError
                ),
            ],
        ),
    ],
    indirect=True,
)
def test_a_text_is_cached_apart_as_query_and_as_passage(server: Double, adapter: Make) -> None:
    store = pytest.importorskip("llama_index.core.storage.kvstore").SimpleKVStore
    made = adapter().made
    made.embeddings_cache = store()
    for _ in range(2):
        passage = asyncio.run(made.aget_text_embedding("Paris"))
        query = asyncio.run(made.aget_query_embedding("Paris"))
        assert passage != query
    assert sent(server, "input_type") == ["passage", "query"]
