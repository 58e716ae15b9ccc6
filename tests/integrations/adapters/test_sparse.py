"""Sparse vectors in the form that the Qdrant and Milvus stores of two frameworks take."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError, MissingExtraError, TooLongError
from nimbed.stores import SparseEncoder

TEXTS = ["a cat sat on a mat", "the dog barks", "a cat and a dog", "rivers run"]
QUESTION = "a cat on"
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Payload indexes have no")


def rows(texts: list[str], role: Any, **options: Any) -> list[dict[int, float]]:
    return FakeEmbedder().embed_sparse(texts, input_type=role, **options).dicts()


def best(k: int) -> list[str]:
    """The texts that share most with the question, by plain sums."""
    asked = rows([QUESTION], "query")[0]
    scores = [sum(asked.get(t, 0) * w for t, w in row.items()) for row in rows(TEXTS, "passage")]
    found = sorted(range(len(TEXTS)), key=lambda row: -scores[row])
    return [TEXTS[row] for row in found[:k] if scores[row] > 0]


@quiet
def test_langchain_qdrant_searches_by_our_sparse_vectors() -> None:
    langchain = pytest.importorskip("langchain_qdrant")
    from nimbed_langchain import NimbedEmbeddings
    from nimbed_langchain.qdrant import NimbedSparseEmbeddings

    embedder = FakeEmbedder()
    dense = NimbedEmbeddings.from_embedder(embedder)
    ours = NimbedSparseEmbeddings(dense)
    assert isinstance(ours, langchain.SparseEmbeddings)
    assert ours.spec == embedder.sparse_spec()
    for mode in (langchain.RetrievalMode.SPARSE, langchain.RetrievalMode.HYBRID):
        store = langchain.QdrantVectorStore.from_texts(
            TEXTS, dense, sparse_embedding=ours, location=":memory:", retrieval_mode=mode
        )
        found = [hit.page_content for hit in store.similarity_search(QUESTION, k=2)]
        assert found == best(2) if mode == langchain.RetrievalMode.SPARSE else len(found) == 2
        store.client.close()
    roles = {role for role, texts in embedder.calls if set(texts) <= set(TEXTS)}
    assert roles == {"passage"}
    assert {role for role, texts in embedder.calls if texts == (QUESTION,)} == {"query"}
    vectors = asyncio.run(ours.aembed_documents(TEXTS))
    assert vectors == ours.embed_documents(TEXTS)
    assert [dict(zip(v.indices, v.values, strict=True)) for v in vectors] == rows(TEXTS, "passage")
    assert asyncio.run(ours.aembed_query(QUESTION)) == ours.embed_query(QUESTION)


@quiet
def test_llama_index_qdrant_searches_by_our_sparse_vectors() -> None:
    qdrant = pytest.importorskip("qdrant_client")
    stores = pytest.importorskip("llama_index.vector_stores.qdrant")
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

    from nimbed_llama_index import NimbedEmbedding
    from nimbed_llama_index.qdrant import sparse_functions

    embedding = NimbedEmbedding.from_embedder(FakeEmbedder())
    functions = sparse_functions(embedding)
    ids, weights = functions["sparse_doc_fn"](TEXTS)
    assert [dict(zip(*row, strict=True)) for row in zip(ids, weights, strict=True)] == rows(
        TEXTS, "passage"
    )
    client = qdrant.QdrantClient(":memory:")
    store = stores.QdrantVectorStore("docs", client=client, enable_hybrid=True, **functions)
    vectors = embedding.get_text_embedding_batch(TEXTS)
    store.add(
        [TextNode(text=t, embedding=v) for t, v in zip(TEXTS, vectors, strict=True)]
    )  # fmt: skip
    query = VectorStoreQuery(
        query_str=QUESTION,
        query_embedding=embedding.get_query_embedding(QUESTION),
        similarity_top_k=2,
        sparse_top_k=2,
        mode=VectorStoreQueryMode.SPARSE,
    )
    found = store.query(query)
    assert [node.get_content() for node in found.nodes] == best(2)
    client.close()


class LangChainMilvusBase(ABC):
    """The abstract methods of ``langchain_milvus.utils.sparse.BaseSparseEmbedding``."""

    @abstractmethod
    def embed_query(self, query: str) -> dict[int, float]: ...

    @abstractmethod
    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]: ...


class LlamaIndexMilvusBase(ABC):
    """Those of ``llama_index.vector_stores.milvus.utils.BaseSparseEmbeddingFunction``."""

    @abstractmethod
    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]: ...

    @abstractmethod
    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]: ...


@pytest.fixture
def milvus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both integrations' modules with nothing but their bases, where they are not installed."""
    chain, index = "langchain_milvus", "llama_index.vector_stores.milvus"
    for paths, name, base in (
        (
            [chain, f"{chain}.utils", f"{chain}.utils.sparse"],
            "BaseSparseEmbedding",
            LangChainMilvusBase,
        ),
        ([index, f"{index}.utils"], "BaseSparseEmbeddingFunction", LlamaIndexMilvusBase),
    ):
        if importlib.util.find_spec(paths[0]) is None:
            for path in paths:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
        monkeypatch.setattr(importlib.import_module(paths[-1]), name, base, raising=False)
    yield
    for name in ("nimbed_langchain.milvus", "nimbed_llama_index.milvus"):
        sys.modules.pop(name, None)


def test_milvus_is_given_token_ids_and_weights(milvus: None) -> None:
    from nimbed_langchain.milvus import NimbedSparseEmbedding
    from nimbed_llama_index.milvus import NimbedSparseEmbeddingFunction

    passages, query = rows(TEXTS, "passage", max_active=3), rows([QUESTION], "query", max_active=3)
    assert passages != rows(TEXTS, "passage")
    chain = NimbedSparseEmbedding(FakeEmbedder(), max_active=3)
    assert isinstance(chain, LangChainMilvusBase)
    assert chain.embed_documents(TEXTS) == passages == asyncio.run(chain.aembed_documents(TEXTS))
    assert [chain.embed_query(QUESTION)] == query == [asyncio.run(chain.aembed_query(QUESTION))]
    index = NimbedSparseEmbeddingFunction(FakeEmbedder(), max_active=3)
    assert isinstance(index, LlamaIndexMilvusBase)
    assert index.encode_documents(TEXTS) == passages
    assert asyncio.run(index.async_encode_documents(TEXTS)) == passages
    assert index.encode_queries([QUESTION]) == query
    assert asyncio.run(index.async_encode_queries([QUESTION])) == query
    assert chain.spec == index.spec == FakeEmbedder().sparse_spec(max_active=3)


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("nimbed_langchain.qdrant", "langchain-qdrant"),
        ("nimbed_langchain.milvus", "langchain-milvus"),
        ("nimbed_llama_index.milvus", "llama-index-vector-stores-milvus"),
    ],
)
def test_a_missing_integration_is_named(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    for absent in ("langchain_qdrant", "langchain_milvus", "llama_index.vector_stores.milvus"):
        for name in [each for each in sys.modules if each.startswith(f"{absent}.")] + [absent]:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=f"pip install {package}$"):
        importlib.import_module(module)


def test_a_model_without_sparse_vectors_is_refused_at_the_first_call() -> None:
    class Dense(FakeEmbedder):
        @property
        def kinds(self) -> Any:
            return ("dense",)

    encoder = SparseEncoder(source=Dense(), store="qdrant")
    with pytest.raises(ConfigurationError, match="gives no sparse vectors; it gives dense"):
        encoder.encode(TEXTS, "passage")
    with pytest.raises(ConfigurationError, match="truncate must be one of"):
        SparseEncoder(source=Dense(), store="qdrant", truncate="LEFT")  # type: ignore[arg-type]
    long = ["word " * 600]
    with pytest.raises(TooLongError):
        SparseEncoder(source=FakeEmbedder(), store="milvus").encode(long, "query")
    cut = SparseEncoder(source=FakeEmbedder(), store="milvus", truncate="END").encode(long, "query")
    assert cut == rows(long, "query", truncate="END")
