"""Sparse embeddings for ``langchain_qdrant.QdrantVectorStore``, of the model that embeds densely.

>>> dense = NimbedEmbeddings(model="BAAI/bge-m3")
>>> QdrantVectorStore(
...     client, "docs", dense, RetrievalMode.HYBRID, sparse_embedding=NimbedSparseEmbeddings(dense)
... )
"""

from __future__ import annotations

from nimbed.embedder import Embedder
from nimbed.errors import MissingExtraError
from nimbed.spec import InputType, SparseSpec, Truncate
from nimbed.stores import SparseEncoder
from nimbed_langchain.embeddings import NimbedEmbeddings

try:
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "this needs langchain-qdrant, which is not installed; run: pip install langchain-qdrant"
    ) from error

__all__ = ["NimbedSparseEmbeddings"]


class NimbedSparseEmbeddings(SparseEmbeddings):
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
            source=embeddings, store="qdrant", max_active=max_active, truncate=truncate
        )

    @property
    def spec(self) -> SparseSpec:
        """The contract of the vectors."""
        return self._encoder.spec

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed texts as passages; raises as :meth:`NimbedEmbeddings.embed_documents` does."""
        return self._vectors(texts, "passage")

    def embed_query(self, text: str) -> SparseVector:
        """Embed one text as a query."""
        return self._vectors([text], "query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Do what :meth:`embed_documents` does without blocking the event loop."""
        return [SparseVector(**row) for row in await self._encoder.aencode(texts, "passage")]

    async def aembed_query(self, text: str) -> SparseVector:
        """Do what :meth:`embed_query` does without blocking the event loop."""
        return SparseVector(**(await self._encoder.aencode([text], "query"))[0])

    def _vectors(self, texts: list[str], role: InputType) -> list[SparseVector]:
        return [SparseVector(**row) for row in self._encoder.encode(texts, role)]
