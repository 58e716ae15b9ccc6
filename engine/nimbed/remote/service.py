"""Orders to batches, for callers that block and callers that await; one per process.

Knows nothing about embed's arguments. Owns the thread and the connections.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from nimbed.batch import EmbeddingBatch
from nimbed.cards import ModelCard
from nimbed.inputs import Input
from nimbed.remote.collector import Collector
from nimbed.remote.courier import Courier
from nimbed.remote.hosted import shown
from nimbed.remote.job import Job
from nimbed.remote.runtime import Runtime, Tell
from nimbed.remote.tally import Tally
from nimbed.remote.wish import Wish
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec

__all__ = ["Order", "Service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A checked embed call.

    Attributes:
        items: The caller's inputs, checked.
        rows: Row numbers of those that are to be sent, ascending.
        input_type: The role.
        embedding_type: How a dimension is stored.
        dimensions: The size wanted, or None for the full vector.
        truncate: What shall happen to a text that is too long.
        int8_scale: The scale wanted for int8 and uint8.
        skip: Whether a text that is refused leaves a zero vector instead of raising.
    """

    items: Sequence[Input]
    rows: Sequence[int]
    input_type: InputType
    embedding_type: EmbeddingType = "float"
    dimensions: int | None = None
    truncate: Truncate = "NONE"
    int8_scale: Int8Scale | None = None
    skip: bool = False

    def wish(self, card: ModelCard | None) -> Wish:
        """Return what is wanted of each text of a model."""
        full = card is not None and self.dimensions == card.dimensions
        return Wish(
            input_type=self.input_type,
            truncate=self.truncate,
            # Models of one size refuse the field, even with that size.
            dimensions=None if full else self.dimensions,
            packed=card is not None and self.embedding_type in ("binary", "ubinary"),
        )

    def spec(self, card: ModelCard, *, known: bool) -> VectorSpec:
        """Return the contract of the vectors; of an unknown model the server decides the size."""
        return card.spec(
            embedding_type=self.embedding_type,
            dimensions=self.dimensions if known else None,
            int8_scale=self.int8_scale,
        )


class Service:
    """A courier, and the loop it works on, which starts with the first order."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None

    def embed(self, order: Order, finished: Tell) -> EmbeddingBatch:
        """Carry out an order and block until it is done."""
        return self._started().run(lambda tell: self._carry_out(order, tell), finished)

    async def aembed(self, order: Order, finished: Tell) -> EmbeddingBatch:
        """Carry out an order and await it."""
        return await self._started().arun(lambda tell: self._carry_out(order, tell), finished)

    def model_card(self) -> ModelCard:
        """Return the card of the model, learnt by a tiny request if it was not known."""
        courier = self._courier
        if courier.card is None and (courier.width is None or courier.model is None):
            self.embed(Order(items=[], rows=[], input_type="passage"), lambda _: None)
        return courier.card or shown(courier.model or "", courier.width or 0)

    def identified(self) -> tuple[str, str]:
        """Return the model's name and the dialect, asked for if they were not known."""
        courier = self._courier
        if courier.model is None or courier.dialect is None:
            self._started().run(lambda _: courier.identify(Tally()), lambda _: None)
        return courier.model or "", courier.dialect.name if courier.dialect else ""

    def close(self, *, wait: bool) -> None:
        """Close the connections and end the thread."""
        if os.getpid() != self._process:
            return  # a forked child inherits the object, but neither thread nor lock
        with self._lock:
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.stop(self._courier.transport.close, wait=wait)

    def _started(self) -> Runtime:
        with self._lock:
            if self._runtime is None:
                self._runtime = Runtime()
            return self._runtime

    async def _carry_out(self, order: Order, tell: Tell) -> EmbeddingBatch:
        courier, tally = self._courier, Tally()
        await courier.identify(tally)
        card = courier.card

        def spec_of(width: int) -> VectorSpec:
            return order.spec(card or shown(courier.model or "", width), known=card is not None)

        collector = Collector(
            len(order.items),
            spec_of=spec_of,
            meter=courier.meter,
            tally=tally,
            longest=card.max_tokens if card and order.truncate != "NONE" else None,
        )
        if len(order.rows) < len(order.items):
            collector.skip(set(range(len(order.items))).difference(order.rows))
        if card is not None:
            collector.promise(card.dimensions)
        job = Job(
            order.items,
            order.rows,
            wish=order.wish(card),
            sees=card is not None and "image" in card.modalities,
            skip=order.skip,
            courier=courier,
            collector=collector,
            tally=tally,
            tell=tell,
        )
        await job.run()
        return collector.batch(order.input_type)
