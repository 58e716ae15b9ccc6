"""A bounded queue of requests, worked off in batches by one thread for each device.

A batch is made of whatever waits when a device becomes free, up to its token budget; the rows of
one request may be spread over several batches. When its last row is embedded, the request's future
receives the vectors.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch, stored
from nimbed.embedder import Replica
from nimbed.errors import BackendError, ConfigurationError, DeadlineError, OverloadedError
from nimbed.scheduling.policy import BatchDelay, PriorityQueue, QueuedRow, in_order
from nimbed.spec import InputType, VectorSpec

__all__ = ["Observer", "QueueState", "Request", "RequestQueue", "Timings", "Waiter", "complete"]

# Seconds of work that may wait before deadlines are looked at, which takes some time itself.
_AT_EASE = 0.5

Waiter: TypeAlias = Future[EmbeddingBatch] | asyncio.Future[EmbeddingBatch]
_Outcome: TypeAlias = EmbeddingBatch | Exception


class Observer(Protocol):
    """Receives the timings of a scheduler, from any thread."""

    def tokenized(self, seconds: float) -> None:
        """Record how long the inputs of one request took to prepare."""
        ...

    def ran(
        self, *, items: int, tokens: int, waited: float, longest: float, seconds: float
    ) -> None:
        """Record a batch.

        Args:
            items: Inputs in the batch.
            tokens: Their tokens.
            waited: Sum of the times they waited in the queue, in seconds.
            longest: The longest of these waits, in seconds.
            seconds: How long the batch ran.
        """
        ...


class QueueState(NamedTuple):
    """What waits, and how fast it is served.

    ``tokens_per_second`` is the throughput of all devices together when all are busy, a moving
    average over batches; 0 before the first.
    """

    items: int
    tokens: int
    tokens_per_second: float


@dataclass(slots=True)
class Timings:
    """Where the time of one caller went; of several requests the longest.

    Attributes:
        tokenizing: Seconds of preparing its inputs.
        queueing: Seconds until a batch took the first of them.
        inference: Seconds from there until the last was embedded.
    """

    tokenizing: float = 0.0
    queueing: float = 0.0
    inference: float = 0.0

    def finished(self, since: float, started: float, ended: float) -> None:
        """Take note of a request that is embedded."""
        self.queueing = max(self.queueing, started - since)
        self.inference = max(self.inference, ended - started)


@dataclass(slots=True, eq=False)
class Request:
    """One call that waits for its vectors; the queue's lock guards ``missing`` and ``failed``.

    Attributes:
        spec: The contract of its vectors.
        input_type: The role of its inputs.
        token_counts: Tokens of each row, int32.
        truncated: Rows that were cut.
        deadline: Moment of ``time.monotonic`` after which the answer is worthless, or None.
        waiter: The future of a thread or of an event loop.
        since: Moment of ``time.perf_counter`` at which it began to wait.
        urgent: Whether it goes before those that are not.
        timings: Told where its time went.
        started: Moment at which a batch took the first of its rows; 0 before.
        floats: Pooled vectors so far, of shape (rows, width).
        missing: Rows that are not embedded yet.
        failed: Whether the waiter already got an error.
    """

    spec: VectorSpec
    input_type: InputType
    token_counts: NDArray[np.int32]
    truncated: tuple[int, ...]
    deadline: float | None
    waiter: Waiter
    since: float
    urgent: bool = False
    timings: Timings | None = None
    started: float = 0.0
    floats: NDArray[np.float32] | None = None
    missing: int = field(init=False)
    failed: bool = False

    def __post_init__(self) -> None:
        self.missing = len(self.token_counts)

    @property
    def dead(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.failed or self.waiter.cancelled()

    def store(self, indices: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Keep the pooled vectors of some rows."""
        if self.floats is None:
            if len(indices) == 1 == len(self.token_counts):
                self.floats = vectors
                return
            self.floats = np.empty((len(self.token_counts), vectors.shape[1]), np.float32)
        self.floats[indices] = vectors

    def cancel(self) -> None:
        """Cancel it from any thread; its rows that still wait will be dropped."""
        self.failed = True
        waiter = self.waiter
        if isinstance(waiter, asyncio.Future):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                waiter.get_loop().call_soon_threadsafe(waiter.cancel)
        else:
            waiter.cancel()


class RequestQueue:
    """The waiting requests, and a worker thread for each device.

    Args:
        replicas: The copies of the model.
        max_items: Rows that may wait.
        max_tokens: Tokens that may wait.
        max_wait: Seconds for which a batch may be delayed; see :class:`BatchDelay`.
        observer: Receives the timings of every batch.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        max_items: int,
        max_tokens: int,
        max_wait: float,
        observer: Observer | None = None,
    ) -> None:
        self._max_items, self._max_tokens = max_items, max_tokens
        self._observer = observer
        self._rows: PriorityQueue[Request] = PriorityQueue()
        self._delay = BatchDelay(max_wait)
        self._closed = False
        self._process = os.getpid()
        # Requests so far, and the number of them that ends the delay of a batch.
        self._arrivals = self._awaited_arrivals = 0
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._arrived = threading.Condition(lock)
        self._workers = [
            threading.Thread(target=self._work, args=(replica,), name="nimbed-device", daemon=True)
            for replica in replicas
        ]
        for worker in self._workers:
            worker.start()

    @property
    def state(self) -> QueueState:
        """What waits now."""
        with self._changed:
            return QueueState(len(self._rows), self._rows.tokens, self._tokens_per_second)

    @property
    def _tokens_per_second(self) -> float:
        return self._delay.tokens_per_second * len(self._workers)

    def put(self, requests: Sequence[Request], data: Sequence[Any], counts: Sequence[int]) -> None:
        """Queue the rows of requests: of all, or of none.

        Args:
            requests: In the order of their rows.
            data: What a replica embeds, one element a row.
            counts: Tokens of each row.

        Raises:
            ConfigurationError: If the queue is closed, or belongs to the parent of this process.
            OverloadedError: If it is full.
        """
        if self._process != os.getpid():  # before a lock that nobody here could open
            raise ConfigurationError(
                "the scheduler's threads are in the process that this one was forked from; make a "
                "scheduler here"
            )
        rows: list[list[QueuedRow[Request]]] = []
        start = 0
        for request in requests:
            stop = start + request.missing
            own = zip(range(request.missing), counts[start:stop], data[start:stop], strict=True)
            rows.append([QueuedRow(request, *each) for each in own])
            start = stop
        with self._changed:
            if self._closed:
                raise ConfigurationError("the scheduler is closed; make a new one")
            # Passages that wait take no room of what goes before them.
            patient = [each for each in requests if not each.urgent]
            waiting = self._rows if patient else self._rows.urgent
            # One request may be larger than the queue; several are then asked to come one by one.
            if (waiting or len(requests) > 1) and (
                len(waiting) + len(data) > self._max_items
                or waiting.tokens + sum(counts) > self._max_tokens
            ):
                rate = self._tokens_per_second
                raise OverloadedError(
                    f"{len(waiting)} inputs of {waiting.tokens} tokens wait already; try again "
                    f"later, or raise max_queue_items and max_queue_tokens",
                    status=503,
                    retry_after=waiting.tokens / rate if rate else 1.0,
                    retryable=True,
                )
            if patient:
                self._check_in_time(patient)
            for request, each in zip(requests, rows, strict=True):
                (self._rows.urgent if request.urgent else self._rows.others).push(each)
            awaited = self._awaited_arrivals - self._arrivals
            self._arrivals += len(requests)
            if 0 < awaited <= len(requests):
                self._arrived.notify()
            self._changed.notify()

    def close(self, *, drain: bool) -> None:
        """Take no more requests; finish those that wait, or cancel them, and end the threads."""
        with self._changed:
            self._closed = True
            if not drain:
                for request in self._rows.requests():
                    request.cancel()
            self._changed.notify_all()
            self._arrived.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self, replica: Replica) -> None:
        expected = 0
        while True:
            with self._changed:
                self._delay_batch(replica, expected)
                expected = 0
                while not self._rows and not self._closed:
                    self._changed.wait()
                if not self._rows:
                    return
                batch = self._take(replica)
                if self._rows:
                    self._changed.notify()
            if batch:
                begin = time.perf_counter()
                expected = self._embed(replica, batch)
                seconds = time.perf_counter() - begin
                tokens = sum([row.tokens for row in batch])
                with self._changed:
                    self._delay.record_batch(tokens, seconds, full=2 * tokens > replica.budget)

    def _check_in_time(self, requests: Sequence[Request]) -> None:
        """Refuse requests that cannot be embedded in their time.

        One that would be alone is never refused: what was learnt of the device may be out of date.
        """
        others, rate = self._rows.others, self._delay.full_rate * len(self._workers)
        if not others or not rate:
            return
        tokens = {each: int(each.token_counts.sum()) for each in requests}
        total, now = others.tokens + sum(tokens.values()), time.monotonic()
        if total <= _AT_EASE * rate:
            return
        if total <= rate * (_soonest([*requests, *others.requests()]) - now):
            return
        _, late = in_order(others.pending() | tokens, rate=rate, now=now)
        if late:
            raise _too_late(max(late.values()))

    def _take(self, replica: Replica) -> list[QueuedRow[Request]]:
        """Return the next batch: shared fairly, or by deadline where time is short."""
        rows = self._rows.next()
        rate = self._delay.full_rate * len(self._workers)
        if rate and rows is self._rows.others and rows.tokens > _AT_EASE * rate:
            requests, now = rows.requests(), time.monotonic()
            if len(requests) > 1 and rows.tokens > rate * (_soonest(requests) - now):
                kept, late = in_order(rows.pending(), rate=rate, now=now)
                for request, missing in late.items():
                    self._fail(request, _too_late(missing))
                places = {request: place for place, request in enumerate(kept)}
                return rows.take_in_order(replica.budget, places, is_alive=self._is_alive)
        return rows.take(replica.budget, look_ahead=replica.look_ahead, is_alive=self._is_alive)

    def _delay_batch(self, replica: Replica, expected: int) -> None:
        """Wait, if it may pay, until ``expected`` requests have arrived in all."""
        before = self._arrivals
        missing = expected - before
        if missing <= 0 or self._rows.tokens >= replica.budget or self._closed:
            return
        allowed = self._delay.allowed(answers=missing if replica.on_host else 0)
        if allowed > 0:
            self._awaited_arrivals = expected
            begin = time.monotonic()
            self._arrived.wait(allowed)
            self._awaited_arrivals = 0
            self._delay.record_delay(
                time.monotonic() - begin, in_vain=self._arrivals - before < missing / 4
            )

    def _is_alive(self, request: Request) -> bool:
        if request.dead:
            return False
        if request.deadline is not None and time.monotonic() > request.deadline:
            self._fail(request, DeadlineError("the time given ran out before the work began"))
            return False
        return True

    def _embed(self, replica: Replica, batch: list[QueuedRow[Request]]) -> int:
        """Embed a batch and answer the requests that it completes.

        Returns:
            How many requests will have arrived once each of those callers has sent another.
        """
        begin = time.perf_counter()
        try:
            floats = replica.embed_rows([row.data for row in batch])
        except Exception as error:
            if len(batch) == 1:  # the row at fault; the others of its batch are embedded
                self._fail(batch[0].request, error)
                return 0
            half = len(batch) // 2
            self._embed(replica, batch[:half])
            return self._embed(replica, batch[half:])
        if self._observer is not None:
            since = [row.request.since for row in batch]
            self._observer.ran(
                items=len(batch),
                tokens=sum([row.tokens for row in batch]),
                waited=begin * len(batch) - sum(since),
                longest=begin - min(since),
                seconds=time.perf_counter() - begin,
            )
        ended = time.perf_counter()
        places: dict[Request, list[int]] = {}  # in the batch
        for place, row in enumerate(batch):
            places.setdefault(row.request, []).append(place)
        served = {request: held for request, held in places.items() if not request.dead}
        for request, held in served.items():
            if len(held) == 1:
                place = held[0]
                request.store([batch[place].index], floats[place : place + 1])
            else:
                request.store([batch[place].index for place in held], floats[held])
        finished: list[Request] = []
        with self._changed:  # two replicas may hold rows of one request
            for request, held in served.items():
                request.started = request.started or begin
                request.missing -= len(held)
                if request.missing == 0:
                    finished.append(request)
                    if request.timings is not None:
                        request.timings.finished(request.since, request.started, ended)
            expected = self._arrivals + len(finished)
        complete(finished)
        return expected

    def _fail(self, request: Request, error: Exception) -> None:
        with self._changed:  # two replicas may fail one request at once
            if request.failed:
                return
            request.failed = True
        _deliver([(request, error)])


def _soonest(requests: Sequence[Request]) -> float:
    """Return the first deadline, infinity without any."""
    ends = [each.deadline for each in requests if each.deadline is not None]
    return min(ends, default=float("inf"))


def _too_late(seconds: float) -> OverloadedError:
    return OverloadedError(
        f"more waits than can be done in the time given: this would be {seconds:.1f} s late; try "
        f"again later, or send fewer inputs a request",
        status=503,
        retry_after=seconds,
        retryable=True,
    )


def complete(requests: Sequence[Request]) -> None:
    """Answer requests whose rows are all embedded.

    Requests of one spec and role are normalised and quantised together: for many small ones
    numpy's calls cost more than its work.
    """
    groups: dict[tuple[int, str], list[Request]] = {}
    for request in requests:
        groups.setdefault((id(request.spec), request.input_type), []).append(request)
    outcomes: list[tuple[Request, _Outcome]] = []
    for group in groups.values():
        joined = _joined(group) if len(group) > 1 else None
        outcomes += joined if joined is not None else [(each, _alone(each)) for each in group]
    _deliver(outcomes)


def _alone(request: Request) -> _Outcome:
    floats = request.floats
    if floats is None:
        floats = np.empty((0, request.spec.dimensions), np.float32)
    try:
        return EmbeddingBatch.from_floats(
            floats,
            spec=request.spec,
            input_type=request.input_type,
            token_counts=request.token_counts,
            truncated=request.truncated,
        )
    except BackendError as error:
        return error


def _joined(group: Sequence[Request]) -> list[tuple[Request, _Outcome]] | None:
    """Return the batches of requests with one spec and role, or None if a vector is not finite."""
    first = group[0]
    floats = np.concatenate([each.floats for each in group if each.floats is not None])
    if not np.isfinite(floats).all():
        return None
    lengths = [len(each.token_counts) for each in group]
    starts = itertools.accumulate(lengths, initial=0)
    batch = EmbeddingBatch(
        vectors=stored(floats, first.spec),
        spec=first.spec,
        input_type=first.input_type,
        token_counts=np.concatenate([each.token_counts for each in group]),
        truncated=tuple(
            [
                start + row
                for start, each in zip(starts, group, strict=False)
                for row in each.truncated
            ]
        ),
    )
    return list(zip(group, batch.split(lengths), strict=True))


def _deliver(outcomes: Sequence[tuple[Request, _Outcome]]) -> None:
    """Give every waiter its outcome; each event loop is woken once."""
    by_loop: dict[
        asyncio.AbstractEventLoop, list[tuple[asyncio.Future[EmbeddingBatch], _Outcome]]
    ] = {}
    for request, outcome in outcomes:
        waiter = request.waiter
        if isinstance(waiter, asyncio.Future):
            by_loop.setdefault(waiter.get_loop(), []).append((waiter, outcome))
        elif not waiter.done() and waiter.set_running_or_notify_cancel():
            _settle(waiter, outcome)
    for loop, theirs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody who waits
            loop.call_soon_threadsafe(_settle_all, theirs)


def _settle_all(outcomes: Sequence[tuple[asyncio.Future[EmbeddingBatch], _Outcome]]) -> None:
    for waiter, outcome in outcomes:
        if not waiter.done():
            _settle(waiter, outcome)


def _settle(waiter: Waiter, outcome: _Outcome) -> None:
    if isinstance(outcome, Exception):
        waiter.set_exception(outcome)
    else:
        waiter.set_result(outcome)
