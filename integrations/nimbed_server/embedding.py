"""One request's inputs through a lane, and the vectors back in the request's order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.errors import InputError
from nimbed.inputs import Input
from nimbed.spec import InputType
from nimbed_server.exchange import Disconnected, Exchange
from nimbed_server.patience import Patience
from nimbed_server.resolving import Options
from nimbed_server.served import Choice
from nimbed_server.state import State
from nimbed_server.wire.refusal import Refusal

__all__ = ["Embedded", "embed"]


@dataclass(frozen=True, slots=True)
class Embedded:
    """What came of a request.

    Attributes:
        vectors: Array of shape (n, width), as they are to be answered.
        tokens: What the model read.
        truncated: Rows that were cut.
    """

    vectors: NDArray[Any]
    tokens: int
    truncated: tuple[int, ...]


async def embed(
    state: State,
    exchange: Exchange,
    choice: Choice,
    inputs: Sequence[Input],
    roles: list[InputType] | InputType,
    options: Options,
) -> Embedded:
    """Embed the inputs of one request.

    Raises:
        Refusal: 503 if the model is not loaded or its queue is full.
        Disconnected: If the client goes first; what still waits is dropped.
        NimbedError: If the engine refuses or fails.
    """
    lane = choice.lane
    if state.draining:
        raise Refusal(503, "the server is stopping", code="stopping", retry_after=1.0)
    if not lane.ready:
        raise Refusal(
            503,
            state.failure or f"{choice.name} is still being loaded",
            code="not_ready",
            retry_after=1.0,
        )
    lane.admission.take(len(inputs))
    try:
        with _Watch(exchange, state.embedding):
            if isinstance(roles, str):
                batch = await _batch(state, exchange, choice, inputs, roles, options)
                return _counted(batch, choice, options)
            return await _embed_two_roles(state, exchange, choice, inputs, roles, options)
    finally:
        lane.admission.give(len(inputs))


async def _embed_two_roles(
    state: State,
    exchange: Exchange,
    choice: Choice,
    inputs: Sequence[Input],
    roles: list[InputType],
    options: Options,
) -> Embedded:
    parted: dict[InputType, list[int]] = {}
    for row, role in enumerate(roles):
        parted.setdefault(role, []).append(row)

    async def part(role: InputType, rows: list[int]) -> Embedded:
        some = [inputs[row] for row in rows]
        try:
            batch = await _batch(state, exchange, choice, some, role, options)
        except InputError as error:
            error.rows = tuple(rows[n] for n in error.rows)
            raise
        return _counted(batch, choice, options)

    parts = await asyncio.gather(*(part(role, rows) for role, rows in parted.items()))
    first = parts[0].vectors
    vectors = np.empty((len(inputs), first.shape[1]), first.dtype)
    truncated: list[int] = []
    for rows, each in zip(parted.values(), parts, strict=True):
        vectors[rows] = each.vectors
        truncated.extend(rows[n] for n in each.truncated)
    return Embedded(vectors, sum(each.tokens for each in parts), tuple(sorted(truncated)))


def _batch(
    state: State,
    exchange: Exchange,
    choice: Choice,
    inputs: Sequence[Input],
    role: InputType,
    options: Options,
) -> Awaitable[EmbeddingBatch]:
    return choice.lane.embed(
        inputs,
        input_type=role,
        embedding_type=options.embedding_type,
        dimensions=options.dimensions,
        int8_scale=options.int8_scale,
        truncate=options.truncate,
        timeout=_seconds(exchange, state.settings.request_timeout_s),
    )


def _counted(batch: EmbeddingBatch, choice: Choice, options: Options) -> Embedded:
    tokens = sum(batch.token_counts.tolist())  # of few numbers, quicker than numpy's sum
    choice.lane.tally.embedded(
        batch.input_type, items=len(batch), tokens=tokens, truncated=len(batch.truncated)
    )
    return Embedded(batch.signs() if options.signs else batch.vectors, tokens, batch.truncated)


def _seconds(exchange: Exchange, most: float) -> float:
    """Return how long the answer is worth something; OpenAI's SDKs say how long they wait."""
    said = exchange.header(b"x-stainless-read-timeout")
    if said is None:
        return most
    try:
        seconds = float(said)
    except ValueError:
        return most
    return min(most, seconds) if seconds > 0 else most


class _Watch:
    """Cancels the work of a request whose client has gone.

    Args:
        exchange: The request.
        patience: For how long nobody looks.
    """

    def __init__(self, exchange: Exchange, patience: Patience) -> None:
        self._exchange = exchange
        self._patience = patience
        self._main = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> Self:
        self._patience.begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patience.end(self)
        if self._task is None:
            return
        self._task.cancel()
        if self._gone and self._main is not None:
            self._main.uncancel()
            raise Disconnected from None

    def late(self) -> None:
        """Look from now on; see :class:`nimbed_server.patience.Patience`."""
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        await self._exchange.gone()
        self._gone = True
        if self._main is not None:
            self._main.cancel()
