"""Whatever way a text takes through LangChain, a document is a passage and a query a query."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

pytest.importorskip("langchain_classic.embeddings")

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.documents import Document
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever

from nimbed import FakeEmbedder
from nimbed_langchain import NimbedEmbeddings

TEXTS = st.lists(
    st.text("abc xyz", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=5
)
KINDS = st.sampled_from(["float", "int8", "uint8", "binary", "ubinary"])


def expected(text: str, role: Any, kind: Any) -> list[float]:
    batch = FakeEmbedder().embed([text], input_type=role, embedding_type=kind)
    row: list[float] = (batch.signs() if batch.spec.packed else batch.floats())[0].tolist()
    return row


def cached(ours: NimbedEmbeddings, documents: Any, queries: Any) -> CacheBackedEmbeddings:
    """The cache as ``cache_namespace`` wants it: a store for each role."""
    return CacheBackedEmbeddings.from_bytes_store(
        ours,
        documents,
        namespace=ours.cache_namespace("passage"),
        query_embedding_cache=queries,
        key_encoder="sha256",
    )


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, kind=KINDS)
def test_no_path_confuses_the_roles(texts: list[str], kind: Any) -> None:
    ours = NimbedEmbeddings.from_embedder(FakeEmbedder(), embedding_type=kind)
    passages = [expected(text, "passage", kind) for text in texts]
    query = expected(texts[0], "query", kind)
    for each in (ours, pickle.loads(pickle.dumps(ours))):
        assert each.embed_documents(texts) == passages
        assert each.embed_query(texts[0]) == query
        assert asyncio.run(each.aembed_documents(texts)) == passages
        assert asyncio.run(each.aembed_query(texts[0])) == query


@settings(max_examples=15, deadline=None)
@given(documents=TEXTS, questions=TEXTS, search=st.sampled_from(["similarity", "mmr"]))
def test_no_store_retriever_or_cache_confuses_the_roles(
    documents: list[str], questions: list[str], search: str
) -> None:
    fake = FakeEmbedder()
    ours = NimbedEmbeddings.from_embedder(fake)
    stored, asked = [f"d{text}" for text in documents], [f"q{text}" for text in questions]

    async def run(store: VectorStore, retriever: VectorStoreRetriever) -> None:
        await store.aadd_texts(stored)
        await retriever.ainvoke(asked[0])
        await retriever.abatch(asked)
        await store.asimilarity_search(asked[0])

    for embeddings in (ours, cached(ours, InMemoryByteStore(), InMemoryByteStore())):
        store = InMemoryVectorStore(embeddings)
        store.add_texts(stored)
        store.add_documents([Document(text) for text in stored])
        retriever = store.as_retriever(search_type=search, search_kwargs={"k": 1})
        retriever.invoke(asked[0])
        retriever.batch(asked)
        store.similarity_search_with_score(asked[0])
        asyncio.run(run(store, retriever))
    assert {(role, text[0]) for role, texts in fake.calls for text in map(str, texts)} == {
        ("passage", "d"),
        ("query", "q"),
    }


def test_a_cache_with_two_stores_keeps_the_roles() -> None:
    fake, documents, queries = FakeEmbedder(), InMemoryByteStore(), InMemoryByteStore()
    both = cached(NimbedEmbeddings.from_embedder(fake), documents, queries)
    for _ in range(2):
        assert both.embed_documents(["Paris"]) == [expected("Paris", "passage", "float")]
        assert both.embed_query("Paris") == expected("Paris", "query", "float")
        assert asyncio.run(both.aembed_query("Paris")) == expected("Paris", "query", "float")
    assert len(list(documents.yield_keys())) == len(list(queries.yield_keys())) == 1
    assert [role for role, _ in fake.calls] == ["passage", "query"]


def test_a_cache_namespace_tells_roles_models_sizes_types_and_cuts_apart() -> None:
    fake = FakeEmbedder()
    several = [
        NimbedEmbeddings.from_embedder(fake),
        NimbedEmbeddings.from_embedder(fake, dimensions=32),
        NimbedEmbeddings.from_embedder(fake, embedding_type="ubinary"),
        NimbedEmbeddings.from_embedder(fake, truncate="END"),
        NimbedEmbeddings(),
    ]
    names = {one.cache_namespace(role) for one in several for role in ("query", "passage")}
    assert len(names) == 10
