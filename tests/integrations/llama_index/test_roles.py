"""Whatever way a text takes through LlamaIndex, a node is a passage and a query a query."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from nimbed import FakeEmbedder
from nimbed.load import LazyEmbedder
from nimbed_llama_index import NimbedEmbedding

TEXTS = st.lists(
    st.text("abc xyz", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=5
)
KINDS = st.sampled_from(["float", "int8", "uint8", "binary", "ubinary"])


def expected(text: str, role: Any, kind: Any = "float") -> list[float]:
    batch = FakeEmbedder().embed([text], input_type=role, embedding_type=kind)
    row: list[float] = (batch.signs() if batch.spec.packed else batch.floats())[0].tolist()
    return row


@settings(max_examples=30, deadline=None)
@given(
    texts=TEXTS,
    kind=KINDS,
    cached=st.booleans(),
    size=st.integers(1, 3),
    workers=st.sampled_from([None, 2]),
)
def test_no_path_confuses_the_roles(
    texts: list[str], kind: Any, cached: bool, size: int, workers: int | None
) -> None:
    ours = NimbedEmbedding.from_embedder(
        FakeEmbedder(), embedding_type=kind, cache=SimpleKVStore() if cached else None
    )
    ours.embed_batch_size, ours.num_workers = size, workers
    passages = [expected(text, "passage", kind) for text in texts]
    query = expected(texts[0], "query", kind)
    for each in (ours, pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert each.get_text_embedding_batch(texts) == passages
        assert each.get_query_embedding(texts[0]) == query
        assert each.get_text_embedding(texts[0]) == passages[0]
        assert asyncio.run(each.aget_text_embedding_batch(texts)) == passages
        assert asyncio.run(each.aget_query_embedding(texts[0])) == query
        assert asyncio.run(each.aget_text_embedding(texts[0])) == passages[0]


@pytest.mark.parametrize("argument", ["cache", "embeddings_cache", "assigned"])
def test_the_cache_is_used_and_keeps_roles_and_spaces_apart(argument: str) -> None:
    fake, store = FakeEmbedder(), SimpleKVStore()
    ours = NimbedEmbedding(**({argument: store} if argument != "assigned" else {}))
    ours._lazy = LazyEmbedder(fake)
    if argument == "assigned":
        ours.embeddings_cache = store
    for _ in range(2):
        assert ours.get_text_embedding("Paris") == expected("Paris", "passage")
        assert ours.get_query_embedding("Paris") == expected("Paris", "query")
        assert asyncio.run(ours.aget_query_embedding("Paris")) == expected("Paris", "query")
    assert [role for role, _ in fake.calls] == ["passage", "query"]
    other = NimbedEmbedding.from_embedder(fake, dimensions=32, cache=store)
    assert len(other.get_text_embedding("Paris")) == 32


@settings(max_examples=15, deadline=None)
@given(documents=TEXTS, questions=TEXTS, cached=st.booleans())
def test_no_pipeline_index_or_retriever_confuses_the_roles(
    documents: list[str], questions: list[str], cached: bool
) -> None:
    fake = FakeEmbedder()
    ours = NimbedEmbedding.from_embedder(fake, cache=SimpleKVStore() if cached else None)
    nodes = [TextNode(text=f"d{text}", id_=f"{row}") for row, text in enumerate(documents)]
    asked = [f"q{text}" for text in questions]
    pipeline = IngestionPipeline(transformations=[ours], disable_cache=True)
    index = VectorStoreIndex(list(pipeline.run(nodes=nodes)), embed_model=ours)
    index.insert_nodes([TextNode(text=f"d{text}") for text in documents])
    retriever = index.as_retriever(similarity_top_k=1)

    async def run() -> None:
        await pipeline.arun(nodes=nodes)
        await index.ainsert_nodes([TextNode(text=f"d{text}") for text in documents])
        await retriever.aretrieve(asked[0])

    for question in asked:
        retriever.retrieve(question)
    asyncio.run(run())
    ours.get_agg_embedding_from_queries(asked)
    assert {(role, text[0]) for role, texts in fake.calls for text in map(str, texts)} == {
        ("passage", "d"),
        ("query", "q"),
    }


def test_a_pipeline_gives_its_nodes_their_passage_vectors() -> None:
    nodes = [TextNode(text=f"text {n}") for n in range(4)]
    pipeline = IngestionPipeline(
        transformations=[NimbedEmbedding.from_embedder(FakeEmbedder())], disable_cache=True
    )
    for done in (pipeline.run(nodes=nodes), asyncio.run(pipeline.arun(nodes=nodes))):
        assert [node.embedding for node in done] == [
            expected(f"text {n}", "passage") for n in range(4)
        ]


WORKERS = """
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from nimbed import FakeEmbedder
from nimbed_llama_index import NimbedEmbedding

if __name__ == "__main__":
    ours = NimbedEmbedding.from_embedder(FakeEmbedder(), embedding_type="ubinary")
    nodes = [TextNode(text=f"text {n}") for n in range(4)]
    done = IngestionPipeline(transformations=[ours]).run(nodes=nodes, num_workers=2)
    for node in done:
        print(node.text, "".join("1" if value > 0 else "0" for value in node.embedding))
"""


@pytest.mark.slow
def test_workers_of_a_pipeline_embed_passages(tmp_path: Path) -> None:
    # A file of its own, since workers are spawned and import what started them.
    script = tmp_path / "ingest.py"
    script.write_text(WORKERS)
    said = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={**os.environ}
    )
    assert said.returncode == 0, said.stderr
    signs = {n: expected(f"text {n}", "passage", "ubinary") for n in range(4)}
    assert sorted(said.stdout.splitlines()) == [
        f"text {n} {''.join('1' if value > 0 else '0' for value in signs[n])}" for n in range(4)
    ]
