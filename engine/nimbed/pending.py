"""Requests that wait in a queue, and the news of them for whoever waits.

Knows nothing about devices: rows come in one by one, whole batches go out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.errors import BackendError
from nimbed.quantize import quantize, slice_normalize
from nimbed.spec import InputType, VectorSpec

__all__ = ["Outcome", "Pending", "abandon", "settle", "whole"]

Outcome: TypeAlias = EmbeddingBatch | Exception


@dataclass(slots=True, eq=False)
class Pending:
    """One request; the scheduler's lock guards ``left`` and ``failed``.

    Attributes:
        spec: The contract of its vectors.
        input_type: Its role.
        counts: Tokens a row, int32.
        truncated: Rows that were cut.
        deadline: Moment of ``time.monotonic`` after which nobody wants it, or None.
        waiter: Who is told; a future of a thread or of an event loop.
        since: Moment of ``time.perf_counter`` from which it waits.
        floats: Pooled vectors so far, of shape (rows, width).
        left: Rows still missing.
        failed: Whether the waiter was told of an error already.
    """

    spec: VectorSpec
    input_type: InputType
    counts: NDArray[np.int32]
    truncated: tuple[int, ...]
    deadline: float | None
    waiter: Future[EmbeddingBatch] | asyncio.Future[EmbeddingBatch]
    since: float
    floats: NDArray[np.float32] | None = None
    left: int = field(init=False)
    failed: bool = False

    def __post_init__(self) -> None:
        self.left = len(self.counts)

    @property
    def dead(self) -> bool:
        """Whether nobody waits any more."""
        return self.failed or self.waiter.cancelled()

    def put(self, place: int, vector: NDArray[np.float32]) -> None:
        """Keep the pooled vector of one row."""
        if len(self.counts) == 1:
            self.floats = vector[None]
            return
        if self.floats is None:
            self.floats = np.empty((len(self.counts), len(vector)), np.float32)
        self.floats[place] = vector


def whole(requests: Sequence[Pending]) -> list[tuple[Pending, Outcome]]:
    """Return the batches of requests whose rows are all there.

    Requests of one spec and role are normalised and quantised together: for many small ones
    numpy's calls cost more than its work.
    """
    groups: dict[tuple[int, str], list[Pending]] = {}
    for request in requests:
        groups.setdefault((id(request.spec), request.input_type), []).append(request)
    outcomes: list[tuple[Pending, Outcome]] = []
    for group in groups.values():
        joined = _together(group) if len(group) > 1 else None
        outcomes += joined if joined is not None else [(each, _alone(each)) for each in group]
    return outcomes


def abandon(request: Pending) -> None:
    """Cancel a request from any thread; its rows that still wait are dropped."""
    request.failed = True
    waiter = request.waiter
    if isinstance(waiter, asyncio.Future):
        with contextlib.suppress(RuntimeError):
            waiter.get_loop().call_soon_threadsafe(waiter.cancel)
    else:
        waiter.cancel()


def settle(outcomes: Sequence[tuple[Pending, Outcome]]) -> None:
    """Tell every waiter; each event loop is woken once."""
    loops: dict[
        asyncio.AbstractEventLoop, list[tuple[asyncio.Future[EmbeddingBatch], Outcome]]
    ] = {}
    for request, outcome in outcomes:
        waiter = request.waiter
        if isinstance(waiter, asyncio.Future):
            loops.setdefault(waiter.get_loop(), []).append((waiter, outcome))
        elif not waiter.done() and waiter.set_running_or_notify_cancel():
            if isinstance(outcome, Exception):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)
    for loop, told in loops.items():
        # A loop that is closed by now has nobody in it that waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell, told)


def _tell(outcomes: Sequence[tuple[asyncio.Future[EmbeddingBatch], Outcome]]) -> None:
    for waiter, outcome in outcomes:
        if waiter.done():
            continue
        if isinstance(outcome, Exception):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)


def _alone(request: Pending) -> Outcome:
    floats = request.floats
    if floats is None:
        floats = np.empty((0, request.spec.dimensions), np.float32)
    try:
        return EmbeddingBatch.from_floats(
            floats,
            spec=request.spec,
            input_type=request.input_type,
            token_counts=request.counts,
            truncated=request.truncated,
        )
    except BackendError as error:
        return error


def _together(group: Sequence[Pending]) -> list[tuple[Pending, Outcome]] | None:
    """Return the batches of requests with one spec and role, or None if a vector is not finite."""
    first = group[0]
    floats = np.concatenate([each.floats for each in group if each.floats is not None])
    if not np.isfinite(floats).all():
        return None
    lengths = [len(each.counts) for each in group]
    starts = itertools.accumulate(lengths, initial=0)
    batch = EmbeddingBatch(
        vectors=quantize(slice_normalize(floats, first.spec.dimensions), first.spec),
        spec=first.spec,
        input_type=first.input_type,
        token_counts=np.concatenate([each.counts for each in group]),
        truncated=tuple(
            [
                start + row
                for start, each in zip(starts, group, strict=False)
                for row in each.truncated
            ]
        ),
    )
    return list(zip(group, batch.split(lengths), strict=True))
