"""Sparse functions for LlamaIndex's ``QdrantVectorStore``, of the model that embeds densely.

>>> dense = NimbedEmbedding(model_name="BAAI/bge-m3")
>>> QdrantVectorStore("docs", client=client, enable_hybrid=True, **sparse_functions(dense))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from nimbed.embedder import Embedder
from nimbed.spec import InputType, Truncate
from nimbed.stores import SparseEncoder
from nimbed_llama_index.embedding import NimbedEmbedding

__all__ = ["SparseFunctions", "sparse_functions"]

# For each text its token ids, and their weights.
_Encoded = tuple[list[list[int]], list[list[float]]]
_Function = Callable[[list[str]], _Encoded]


class SparseFunctions(TypedDict):
    """The arguments of ``QdrantVectorStore`` that make sparse vectors."""

    sparse_doc_fn: _Function
    sparse_query_fn: _Function


def sparse_functions(
    embedding: NimbedEmbedding | Embedder,
    *,
    max_active: int | None = None,
    truncate: Truncate = "NONE",
) -> SparseFunctions:
    """Return the functions that embed nodes as passages and queries as queries.

    Args:
        embedding: What embeds; the model is loaded once for both kinds of vectors.
        max_active: The most weights that a vector keeps, the largest; None for all.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.

    Raises:
        ConfigurationError: At the first call, if the model gives no sparse vectors.
    """
    encoder = SparseEncoder(
        source=embedding, store="qdrant", max_active=max_active, truncate=truncate
    )

    def of(role: InputType) -> _Function:
        def encoded(texts: list[str]) -> _Encoded:
            rows = encoder.encode(texts, role)
            return [row["indices"] for row in rows], [row["values"] for row in rows]

        return encoded

    return {"sparse_doc_fn": of("passage"), "sparse_query_fn": of("query")}
