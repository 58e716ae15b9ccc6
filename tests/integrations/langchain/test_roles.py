"""Whatever way a text takes through LangChain, a document is a passage and a query a query."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.vectorstores import InMemoryVectorStore

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


def test_a_store_and_its_retriever_keep_the_roles() -> None:
    fake = FakeEmbedder()
    store = InMemoryVectorStore(NimbedEmbeddings.from_embedder(fake))
    store.add_texts(["one", "two"])
    asyncio.run(store.aadd_texts(["three"]))
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 1})
    retriever.invoke("two")
    asyncio.run(store.as_retriever().ainvoke("four"))
    assert fake.calls == [
        ("passage", ("one", "two")),
        ("passage", ("three",)),
        ("query", ("two",)),
        ("query", ("four",)),
    ]


def test_a_cache_with_two_stores_keeps_the_roles() -> None:
    classic = pytest.importorskip("langchain_classic.embeddings.cache")
    from langchain_core.stores import InMemoryByteStore

    ours = NimbedEmbeddings.from_embedder(FakeEmbedder())
    documents, queries = InMemoryByteStore(), InMemoryByteStore()
    cached = classic.CacheBackedEmbeddings.from_bytes_store(
        ours,
        documents,
        namespace=ours.cache_namespace("passage"),
        query_embedding_cache=queries,
        key_encoder="sha256",
    )
    for _ in range(2):
        assert cached.embed_documents(["Paris"]) == [expected("Paris", "passage", "float")]
        assert cached.embed_query("Paris") == expected("Paris", "query", "float")
    assert len(list(documents.yield_keys())) == len(list(queries.yield_keys())) == 1


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
