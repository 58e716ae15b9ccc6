"""Where the inputs of one model are embedded: a queue before a device, or a server elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from nimbed.batch import EmbeddingBatch
from nimbed.cards import ModelCard
from nimbed.embedder import Embedder, Schedulable
from nimbed.errors import DeadlineError
from nimbed.inputs import Input
from nimbed.options import EmbedOptions
from nimbed.scheduling import QueueState, Scheduler
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate
from nimbed_server.admission import Admission
from nimbed_server.tallies import LaneTally

__all__ = ["DirectLane", "Lane", "QueuedLane", "lane_for"]

_WARM = "warm up"


class Lane(Protocol):
    """One model of a server."""

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the weights are read."""
        ...

    @property
    def state(self) -> QueueState:
        """What waits."""
        ...

    @property
    def admission(self) -> Admission:
        """How many inputs may be under way."""
        ...

    @property
    def tally(self) -> LaneTally:
        """Told of what is embedded here."""
        ...

    def start(self) -> None:
        """Read the weights and embed a word; blocks for as long as that takes."""
        ...

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType,
        dimensions: int | None,
        int8_scale: Int8Scale | None,
        truncate: Truncate,
        timeout: float | None,
    ) -> Awaitable[EmbeddingBatch]:
        """Embed inputs of one role; cancelling drops what still waits."""
        ...

    def close(self) -> None:
        """Finish what waits, then release the model."""
        ...


class QueuedLane:
    """A local model behind the engine's scheduler.

    Args:
        embedder: The model; read at :meth:`start`.
        staged: The same, by its halves.
        tally: Told of every batch.
        max_items: Inputs that may be under way.
        max_tokens: Tokens that may wait.
        max_wait: Seconds for which a batch may be held back after another.
    """

    def __init__(
        self,
        embedder: Embedder,
        staged: Schedulable,
        tally: LaneTally,
        *,
        max_items: int,
        max_tokens: int,
        max_wait: float,
    ) -> None:
        self._embedder = embedder
        self._staged = staged
        self._max_wait = max_wait
        self.tally = tally
        self._most_tokens = max_tokens
        self._scheduler: Scheduler | None = None
        self.admission = Admission(max_items, drain_rate=self._items_per_second)

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""
        return self._embedder.card

    @property
    def ready(self) -> bool:
        """Whether the weights are read."""
        return self._scheduler is not None

    @property
    def state(self) -> QueueState:
        """What waits."""
        return QueueState(0, 0, 0.0) if self._scheduler is None else self._scheduler.state

    def start(self) -> None:
        """Read the weights and embed a word."""
        scheduler = Scheduler(
            self._staged,
            # Admission counts the items; the queue itself bounds their tokens.
            max_queue_items=max(1, 2 * self.admission.most),
            max_queue_tokens=self._most_tokens,
            max_wait=self._max_wait,
            observer=self.tally,
        )
        scheduler.submit([_WARM], EmbedOptions(input_type="passage")).result()
        self._scheduler = scheduler

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType,
        dimensions: int | None,
        int8_scale: Int8Scale | None,
        truncate: Truncate,
        timeout: float | None,
    ) -> Awaitable[EmbeddingBatch]:
        """Embed inputs of one role; cancelling drops what still waits."""
        assert self._scheduler is not None  # the app asks nothing of a lane that is not ready
        options = EmbedOptions(
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            int8_scale=int8_scale,
            truncate=truncate,
        )
        return self._scheduler.asubmit(inputs, options, timeout=timeout)

    def close(self) -> None:
        """Finish what waits, then release the model."""
        if self._scheduler is not None:
            self._scheduler.close()
        self._embedder.close()

    def _items_per_second(self) -> float:
        waiting = self.state
        tokens_an_item = waiting.tokens / waiting.items if waiting.items else 0.0
        return waiting.tokens_per_second / tokens_an_item if tokens_an_item else 0.0


class DirectLane:
    """An embedder that queues by itself: a server elsewhere, or one made for tests."""

    def __init__(self, embedder: Embedder, tally: LaneTally, *, max_items: int) -> None:
        self._embedder = embedder
        self.tally = tally
        self.ready = False
        self.admission = Admission(max_items)

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""
        return self._embedder.card

    @property
    def state(self) -> QueueState:
        """What is under way."""
        return QueueState(self.admission.items, 0, 0.0)

    def start(self) -> None:
        """Embed a word, and so learn what the server behind can do."""
        self._embedder.embed([_WARM], input_type="passage")
        self.ready = True

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType,
        dimensions: int | None,
        int8_scale: Int8Scale | None,
        truncate: Truncate,
        timeout: float | None,
    ) -> EmbeddingBatch:
        """Embed inputs of one role."""
        try:
            async with asyncio.timeout(timeout):
                return await self._embedder.aembed(
                    inputs,
                    input_type=input_type,
                    embedding_type=embedding_type,
                    dimensions=dimensions,
                    int8_scale=int8_scale,
                    truncate=truncate,
                )
        except TimeoutError as error:
            raise DeadlineError("the time given ran out") from error

    def close(self) -> None:
        """Close the connections."""
        self._embedder.close()


def lane_for(
    embedder: Embedder, tally: LaneTally, *, max_items: int, max_tokens: int, max_wait: float
) -> Lane:
    """Return a queue for an embedder whose halves can be called apart, else a direct lane."""
    if isinstance(embedder, Schedulable):
        return QueuedLane(
            embedder,
            embedder,
            tally,
            max_items=max_items,
            max_tokens=max_tokens,
            max_wait=max_wait,
        )
    return DirectLane(embedder, tally, max_items=max_items)
