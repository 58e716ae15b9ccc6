"""Sparse embeddings for ``langchain_milvus.Milvus``, of the model that embeds densely.

>>> dense = NimbedEmbeddings(model="BAAI/bge-m3")
>>> Milvus(embedding_function=[dense, NimbedSparseEmbedding(dense)], vector_field=["d", "s"])
"""

from __future__ import annotations

from nimbed.embedder import Embedder
from nimbed.errors import MissingExtraError
from nimbed.spec import SparseSpec, Truncate
from nimbed.stores import SparseEncoder
from nimbed_langchain.embeddings import NimbedEmbeddings

try:
    from langchain_milvus.utils.sparse import (  # pyright: ignore[reportMissingImports]
        BaseSparseEmbedding,
    )
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "this needs langchain-milvus, which is not installed; run: pip install langchain-milvus"
    ) from error

__all__ = ["NimbedSparseEmbedding"]


class NimbedSparseEmbedding(BaseSparseEmbedding):  # type: ignore[misc]  # not installed with us
    """Embeds documents as passages and queries as queries, as the weights of their tokens.

    Args:
        embeddings: What embeds; the model is loaded once for both kinds of vectors.
        max_active: The most weights that a vector keeps, the largest; None for all.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.
    """

    def __init__(
        self,
        embeddings: NimbedEmbeddings | Embedder,
        *,
        max_active: int | None = None,
        truncate: Truncate = "NONE",
    ) -> None:
        self._encoder = SparseEncoder(
            source=embeddings, store="milvus", max_active=max_active, truncate=truncate
        )

    @property
    def spec(self) -> SparseSpec:
        """The contract of the vectors."""
        return self._encoder.spec

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed texts as passages; raises as :meth:`NimbedEmbeddings.embed_documents` does."""
        return self._encoder.encode(texts, "passage")

    def embed_query(self, query: str) -> dict[int, float]:
        """Embed one text as a query."""
        weights: dict[int, float] = self._encoder.encode([query], "query")[0]
        return weights

    async def aembed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Do what :meth:`embed_documents` does without blocking the event loop."""
        return await self._encoder.aencode(texts, "passage")

    async def aembed_query(self, query: str) -> dict[int, float]:
        """Do what :meth:`embed_query` does without blocking the event loop."""
        weights: dict[int, float] = (await self._encoder.aencode([query], "query"))[0]
        return weights
