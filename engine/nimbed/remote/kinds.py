"""Sparse vectors and multi-vectors of an embedder whose model runs behind an HTTP endpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar, cast

from nimbed.cards import ModelCard
from nimbed.kinds import EmbeddingKinds
from nimbed.options import EmbedOptions, HybridBase, KindOptions
from nimbed.remote.client import Client
from nimbed.remote.kind_requests import ServedKinds
from nimbed.remote.request import sendable
from nimbed.reports import Progress, reporting
from nimbed.spec import (
    Contract,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
)

__all__ = ["RemoteKinds"]

T = TypeVar("T")
#: Told how many inputs have just been finished.
Tell = Callable[[int], None]


class Session(Protocol):
    """A client on the event loop it lives on, and what is known there of its model's kinds."""

    @property
    def kinds(self) -> ServedKinds: ...

    def run(self, job: Callable[[Client, Tell], Coroutine[Any, Any, T]], finished: Tell) -> T: ...

    async def arun(
        self, job: Callable[[Client, Tell], Coroutine[Any, Any, T]], finished: Tell
    ) -> T: ...


class RemoteKinds(HybridBase, ABC):
    """The kinds of a remote embedder; see :class:`nimbed.embedder.HybridEmbedder`."""

    @abstractmethod
    def _kinds_session(self) -> tuple[Session, str, ModelCard | None]:
        """Return the session, the model's name for messages, and its card if it is known.

        Raises:
            ConfigurationError: If the embedder leaves out inputs that are refused: a multi-vector
                of nothing there cannot be.
        """

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that the server gives of the model; the first time it is asked."""
        session, _, _ = self._kinds_session()
        return session.run(lambda client, _: session.kinds.offered(), lambda _: None)

    def sparse_spec(self, *, max_active: int | None = None) -> SparseSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.sparse_spec`."""
        asked = KindOptions(kinds=("sparse",), max_active=max_active)
        return cast(SparseSpec, asked.applied_to(self._contract("sparse")))

    def multi_spec(
        self, *, token_type: TokenType = "float", pool_factor: int = 1
    ) -> MultiVectorSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.multi_spec`."""
        asked = KindOptions(kinds=("multi",), token_type=token_type, pool_factor=pool_factor)
        return cast(MultiVectorSpec, asked.applied_to(self._contract("multi")))

    def _embed_kinds(
        self, inputs: Sequence[str], asked: KindOptions, options: EmbedOptions, progress: Progress
    ) -> EmbeddingKinds:
        session, count, job = self._kinds_job(inputs, asked, options)
        with reporting(progress, count) as finished:
            return session.run(job, finished)

    async def aembed_kinds(
        self, inputs: Sequence[str], *, progress: Progress = False, **options: Any
    ) -> EmbeddingKinds:
        """Do what :meth:`embed_kinds` does without blocking the caller's event loop."""
        names = ("kinds", "max_active", "token_type", "pool_factor")
        of_kinds = {name: options.pop(name) for name in names if name in options}
        session, count, job = self._kinds_job(
            inputs, KindOptions(**of_kinds), EmbedOptions(modality="text", **options)
        )
        with reporting(progress, count) as finished:
            return await session.arun(job, finished)

    def _contract(self, kind: Kind) -> Contract:
        session, _, _ = self._kinds_session()
        return session.run(lambda client, _: session.kinds.contract(kind), lambda _: None)

    def _kinds_job(
        self, inputs: Sequence[str], asked: KindOptions, options: EmbedOptions
    ) -> tuple[Session, int, Callable[[Client, Tell], Coroutine[Any, Any, EmbeddingKinds]]]:
        session, name, card = self._kinds_session()
        if card is not None and "dense" in (asked.kinds or ()):
            card.spec(**options.of_spec)
        items, _ = sendable(inputs, options, model=name, card=card, skip=False)
        kinds = session.kinds
        return session, len(items), lambda client, tell: kinds.embed(items, options, asked, tell)
