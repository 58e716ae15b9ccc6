"""Texts to sparse vectors as the client of a store takes them, for adapters of frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nimbed.embedder import Embedder, HybridEmbedder, giving
from nimbed.kinds import EmbeddingKinds
from nimbed.spec import InputType, SparseSpec, Truncate, check_literal
from nimbed.stores.fields import field

__all__ = ["SparseEncoder"]


class _HoldsEmbedder(Protocol):
    """A framework's embeddings, which load their embedder at first use."""

    @property
    def embedder(self) -> Embedder: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseEncoder:
    """Encodes passages and queries as a store's client takes sparse vectors.

    Attributes:
        source: What embeds: an embedder, or a framework's embeddings that hold one. One that gives
            dense vectors too is shared, not loaded twice.
        store: The database, as :func:`nimbed.stores.field` calls it.
        max_active: The most weights that a vector keeps; None for all.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.

    Raises:
        ConfigurationError: At the first call, if the model gives no sparse vectors.
    """

    source: Embedder | _HoldsEmbedder
    store: str
    max_active: int | None = None
    truncate: Truncate = "NONE"

    def __post_init__(self) -> None:
        """Refuse a word that no model knows."""
        check_literal("truncate", self.truncate, Truncate)

    @property
    def embedder(self) -> HybridEmbedder:
        """What embeds, loaded now if it was not before."""
        held = self.source if isinstance(self.source, Embedder) else self.source.embedder
        return giving(held, "sparse")

    @property
    def spec(self) -> SparseSpec:
        """The contract of the vectors."""
        return self.embedder.sparse_spec(max_active=self.max_active)

    def encode(self, texts: Sequence[str], role: InputType) -> list[Any]:
        """Return the sparse vector of each text.

        Raises:
            InputError: If texts are blank, too long or no strings; ``.rows`` names them.
            BackendError: If the model or the server failed.
        """
        return self._encoded(self.embedder.embed_kinds(texts, **self._options(role)))

    async def aencode(self, texts: Sequence[str], role: InputType) -> list[Any]:
        """Do what :meth:`encode` does without blocking the event loop."""
        return self._encoded(await self.embedder.aembed_kinds(texts, **self._options(role)))

    def _options(self, role: InputType) -> dict[str, Any]:
        return {
            "kinds": ("sparse",),
            "input_type": role,
            "max_active": self.max_active,
            "truncate": self.truncate,
        }

    def _encoded(self, found: EmbeddingKinds) -> list[Any]:
        assert found.sparse is not None  # it was asked for
        return list(field(found.sparse.spec, self.store).encode(found.sparse))
