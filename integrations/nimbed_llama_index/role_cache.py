"""Texts to the vectors that a LlamaIndex key-value store has of them, one collection a role.

Knows nothing about models. LlamaIndex's own cache is keyed by the text alone: there a query
finds the passage vector of the same text, and a model the vectors of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llama_index.core.storage.kvstore.types import BaseKVStore

from nimbed.spec import InputType, Truncate, VectorSpec

__all__ = ["RoleCache"]

_Vector = list[float]


@dataclass(frozen=True, slots=True)
class RoleCache:
    """The part of a store that belongs to one vector space, one role and one way to truncate."""

    store: BaseKVStore
    collection: str

    @classmethod
    def of(
        cls, store: BaseKVStore, spec: VectorSpec, *, role: InputType, truncate: Truncate
    ) -> RoleCache:
        """Return the part of a store for what ``spec`` describes."""
        return cls(store, f"nimbed-{spec.fingerprint}-{truncate}-{role}")

    def get(self, texts: Iterable[str]) -> dict[str, _Vector]:
        """Return the vectors that are there."""
        found = {text: self.store.get(text, self.collection) for text in set(texts)}
        return {text: entry["embedding"] for text, entry in found.items() if entry}

    async def aget(self, texts: Iterable[str]) -> dict[str, _Vector]:
        """Do what :meth:`get` does without blocking the event loop."""
        found = {text: await self.store.aget(text, self.collection) for text in set(texts)}
        return {text: entry["embedding"] for text, entry in found.items() if entry}

    def put(self, texts: Sequence[str], vectors: Sequence[_Vector]) -> None:
        """Keep the vectors of texts."""
        for text, vector in zip(texts, vectors, strict=True):
            self.store.put(text, {"embedding": vector}, self.collection)

    async def aput(self, texts: Sequence[str], vectors: Sequence[_Vector]) -> None:
        """Do what :meth:`put` does without blocking the event loop."""
        for text, vector in zip(texts, vectors, strict=True):
            await self.store.aput(text, {"embedding": vector}, self.collection)
