"""The sparse function of LlamaIndex's ``MilvusVectorStore``, of the model that embeds densely.

>>> dense = NimbedEmbedding(model_name="BAAI/bge-m3")
>>> MilvusVectorStore(
...     enable_sparse=True, sparse_embedding_function=NimbedSparseEmbeddingFunction(dense)
... )
"""

from __future__ import annotations

from nimbed.embedder import Embedder
from nimbed.errors import MissingExtraError
from nimbed.spec import SparseSpec, Truncate
from nimbed.stores import SparseEncoder
from nimbed_llama_index.embedding import NimbedEmbedding

try:
    from llama_index.vector_stores.milvus.utils import (  # pyright: ignore[reportMissingImports]
        BaseSparseEmbeddingFunction,
    )
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "this needs LlamaIndex's store for Milvus, which is not installed; run: pip install "
        "llama-index-vector-stores-milvus"
    ) from error

__all__ = ["NimbedSparseEmbeddingFunction"]


class NimbedSparseEmbeddingFunction(BaseSparseEmbeddingFunction):  # type: ignore[misc]  # as above
    """Encodes documents as passages and queries as queries, as the weights of their tokens.

    Args:
        embedding: What embeds; the model is loaded once for both kinds of vectors.
        max_active: The most weights that a vector keeps, the largest; None for all.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.
    """

    def __init__(
        self,
        embedding: NimbedEmbedding | Embedder,
        *,
        max_active: int | None = None,
        truncate: Truncate = "NONE",
    ) -> None:
        self._encoder = SparseEncoder(
            source=embedding, store="milvus", max_active=max_active, truncate=truncate
        )

    @property
    def spec(self) -> SparseSpec:
        """The contract of the vectors."""
        return self._encoder.spec

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Embed texts as passages."""
        return self._encoder.encode(documents, "passage")

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Embed texts as queries."""
        return self._encoder.encode(queries, "query")

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Do what :meth:`encode_documents` does without blocking the event loop."""
        return await self._encoder.aencode(documents, "passage")

    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Do what :meth:`encode_queries` does without blocking the event loop."""
        return await self._encoder.aencode(queries, "query")
