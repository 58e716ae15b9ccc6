"""Rows of many requests in, batches on every device out, and the news to whoever waits.

A batch is made of what waits when a device falls free, up to its token budget; rows of one request
may ride in different batches. Knows nothing about texts or models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from nimbed.errors import ConfigurationError, DeadlineError, OverloadedError
from nimbed.fair_queue import FairQueue, Item
from nimbed.pace import Pace
from nimbed.pending import Pending, abandon, settle, whole
from nimbed.stages import Observer, Replica

__all__ = ["DeviceQueue", "QueueState"]


class QueueState(NamedTuple):
    """What waits and how fast it goes.

    ``tokens_per_second`` is what all devices together do when all are busy, a moving average over
    batches; 0 before the first.
    """

    items: int
    tokens: int
    tokens_per_second: float


class DeviceQueue:
    """A bounded queue with a thread for each device that works it off.

    Args:
        replicas: The copies of the model.
        max_items: Rows that may wait.
        max_tokens: Tokens that may wait.
        max_wait: Seconds for which a batch may be held back after another; see
            :mod:`nimbed.pace`.
        observer: Told of every batch.
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
        self._most_items, self._most_tokens = max_items, max_tokens
        self._observer = observer
        self._queue: FairQueue[Pending] = FairQueue()
        self._pace = Pace(max_wait)
        self._closed = False
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._returned = threading.Condition(lock)
        self._came = self._awaited = 0  # requests so far, and the number a held batch waits for
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
            return QueueState(len(self._queue), self._queue.tokens, self._rate)

    @property
    def _rate(self) -> float:
        return self._pace.rate * len(self._workers)

    def close(self, *, drain: bool) -> None:
        """Take no more; finish what waits, or cancel it, and let the threads go."""
        with self._changed:
            self._closed = True
            if not drain:
                for request in self._queue.requests():
                    abandon(request)
            self._changed.notify_all()
            self._returned.notify_all()
        for worker in self._workers:
            worker.join()

    def put(self, request: Pending, rows: Sequence[Any], counts: Sequence[int]) -> None:
        """Queue the rows of one request.

        Args:
            request: Who is told.
            rows: What a replica understands.
            counts: Tokens of each.

        Raises:
            ConfigurationError: If the queue is closed.
            OverloadedError: If it is full.
        """
        items = [
            Item(request, place, tokens, row)
            for place, (row, tokens) in enumerate(zip(rows, counts, strict=True))
        ]
        with self._changed:
            queue = self._queue
            if self._closed:
                raise ConfigurationError("the scheduler is closed; make a new one")
            if queue and (
                len(queue) + len(rows) > self._most_items
                or queue.tokens + sum(counts) > self._most_tokens
            ):
                rate = self._rate
                raise OverloadedError(
                    f"{len(queue)} inputs of {queue.tokens} tokens wait already; try again later, "
                    f"or raise max_queue_items and max_queue_tokens",
                    status=503,
                    retry_after=queue.tokens / rate if rate else 1.0,
                    retryable=True,
                )
            queue.push(items)
            self._came += 1
            if self._came == self._awaited:
                self._returned.notify()
            self._changed.notify()

    def _work(self, replica: Replica) -> None:
        back = 0
        while True:
            with self._changed:
                self._await_return(back, replica)
                back = 0
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                batch = self._queue.take(
                    replica.budget, look_ahead=replica.look_ahead, wanted=self._wanted
                )
                if self._queue:
                    self._changed.notify()
            if batch:
                begin = time.perf_counter()
                back = self._run(replica, batch)
                spent = time.perf_counter() - begin
                with self._changed:
                    self._pace.ran(sum([item.tokens for item in batch]), spent)

    def _await_return(self, back: int, replica: Replica) -> None:
        """Hold the next batch back until so many requests have come, where that may pay."""
        came = self._came
        missing = back - came
        if missing <= 0 or self._queue.tokens >= replica.budget or self._closed:
            return
        grace = self._pace.grace(answers=missing if replica.on_host else 0)
        if grace > 0:
            self._awaited = back
            begin = time.monotonic()
            self._returned.wait(grace)
            self._awaited = 0
            self._pace.waited(time.monotonic() - begin, in_vain=self._came - came < missing / 4)

    def _wanted(self, request: Pending) -> bool:
        if request.dead:
            return False
        if request.deadline is not None and time.monotonic() > request.deadline:
            self._fail(request, DeadlineError("the time given ran out before the work began"))
            return False
        return True

    def _run(self, replica: Replica, batch: list[Item[Pending]]) -> int:
        """Embed a batch and tell whom it completes.

        Returns:
            How many requests will have come when each of those has come back.
        """
        begin = time.perf_counter()
        try:
            floats = replica.embed_rows([item.row for item in batch])
        except Exception as error:
            if len(batch) == 1:  # the one that is to blame; its neighbours were served
                self._fail(batch[0].request, error)
                return 0
            half = len(batch) // 2
            self._run(replica, batch[:half])
            return self._run(replica, batch[half:])
        if self._observer is not None:
            since = [item.request.since for item in batch]
            self._observer.ran(
                items=len(batch),
                tokens=sum([item.tokens for item in batch]),
                waited=begin * len(batch) - sum(since),
                longest=begin - min(since),
                seconds=time.perf_counter() - begin,
            )
        served = [item.request for item in batch if not item.request.dead]
        for item, vector in zip(batch, floats, strict=True):
            item.request.put(item.place, vector)
        finished: list[Pending] = []
        with self._changed:  # two replicas may hold rows of one request
            for request in served:
                request.left -= 1
                if request.left == 0:
                    finished.append(request)
            back = self._came + len(finished)
        settle(whole(finished))
        return back

    def _fail(self, request: Pending, error: Exception) -> None:
        with self._changed:  # two replicas may fail one request at once
            if request.failed:
                return
            request.failed = True
        settle([(request, error)])
