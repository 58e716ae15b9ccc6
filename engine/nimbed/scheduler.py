"""Many callers' inputs on one device, as if they had come in one call.

A queue of prepared rows with a worker a replica. A batch is whatever waits when the device falls
idle, up to its token budget; rows of one request may ride in different batches, and different
requests, sizes and types in one, since slicing and packing come after pooling. Knows nothing
about texts or models.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Self

import numpy as np

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError, DeadlineError, OverloadedError
from nimbed.fair_queue import FairQueue, Item
from nimbed.inputs import Input, Modality
from nimbed.pending import Pending, abandon, settle, whole
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, check_literal
from nimbed.stages import Replica, Staged

__all__ = ["QueueState", "Scheduler"]


class QueueState(NamedTuple):
    """What waits and how fast it goes.

    ``tokens_per_second`` is a moving average over batches; 0 before the first.
    """

    items: int
    tokens: int
    tokens_per_second: float


class Scheduler:
    """Shares an embedder among concurrent callers; a context manager.

    Args:
        embedder: A local embedder, whose weights are loaded here.
        max_queue_items: Inputs that may wait; beyond it ``submit`` raises OverloadedError.
        max_queue_tokens: Tokens that may wait.
    """

    def __init__(
        self,
        embedder: Staged,
        *,
        max_queue_items: int = 100_000,
        max_queue_tokens: int = 10_000_000,
    ) -> None:
        if min(max_queue_items, max_queue_tokens) < 1:
            raise ConfigurationError("the queue must hold at least one item and one token")
        self._embedder = embedder
        self._most_items, self._most_tokens = max_queue_items, max_queue_tokens
        self._queue: FairQueue[Pending] = FairQueue()
        self._rate = 0.0
        self._closed = False
        self._changed = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, args=(replica,), name="nimbed-device", daemon=True)
            for replica in embedder.replicas()
        ]
        for worker in self._workers:
            worker.start()

    @property
    def state(self) -> QueueState:
        """What waits now."""
        with self._changed:
            return QueueState(len(self._queue), self._queue.tokens, self._rate)

    def submit(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        modality: Modality | None = None,
        timeout: float | None = None,
    ) -> Future[EmbeddingBatch]:
        """Queue inputs and return at once; inputs are tokenized here, in the caller's thread.

        Args:
            inputs: As for ``embed``.
            input_type: As for ``embed``; and so the options after it.
            embedding_type: How a dimension is stored.
            dimensions: One of the sizes the card offers.
            truncate: What happens to an input that is too long.
            int8_scale: ``even`` or ``nim``.
            modality: What every input is.
            timeout: Seconds until the answer is worthless; rows still waiting then are dropped.

        Returns:
            A future. Cancelling it drops its rows that still wait.

        Raises:
            ConfigurationError: If the model cannot give such vectors.
            InputError: If an input cannot be embedded; ``.rows`` names it.
            OverloadedError: If the queue is full; ``.retry_after`` estimates when it is not.
        """
        future: Future[EmbeddingBatch] = Future()
        self._submit(
            future,
            inputs,
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
            modality=modality,
            timeout=timeout,
        )
        return future

    async def asubmit(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        modality: Modality | None = None,
        timeout: float | None = None,
    ) -> EmbeddingBatch:
        """Queue inputs and wait without blocking the event loop; see :meth:`submit`.

        A cancelled task drops its rows that still wait. Many or long inputs are tokenized in a
        thread, few short ones here: a hand-over would cost more than the work.
        """
        options: dict[str, Any] = {
            "input_type": input_type,
            "embedding_type": embedding_type,
            "dimensions": dimensions,
            "truncate": truncate,
            "int8_scale": int8_scale,
            "modality": modality,
            "timeout": timeout,
        }
        future: asyncio.Future[EmbeddingBatch] = asyncio.get_running_loop().create_future()
        try:
            if _quick(inputs):
                self._submit(future, inputs, **options)
            else:
                await asyncio.to_thread(self._submit, future, inputs, **options)
            return await future
        except asyncio.CancelledError:
            future.cancel()
            raise

    def close(self, *, drain: bool = True) -> None:
        """Stop taking requests; finish what waits, or cancel it, and let the workers go."""
        with self._changed:
            self._closed = True
            if not drain:
                for request in self._queue.requests():
                    abandon(request)
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _submit(
        self,
        waiter: Future[EmbeddingBatch] | asyncio.Future[EmbeddingBatch],
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType,
        dimensions: int | None,
        truncate: Truncate,
        int8_scale: Int8Scale | None,
        modality: Modality | None,
        timeout: float | None,
    ) -> None:
        check_literal("input_type", input_type, InputType)
        check_literal("truncate", truncate, Truncate)
        spec = self._embedder.spec(
            embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
        )
        prepared = self._embedder.prepare(
            inputs, input_type=input_type, truncate=truncate, modality=modality
        )
        request = Pending(
            spec=spec,
            input_type=input_type,
            counts=np.array(prepared.counts, np.int32),
            truncated=tuple(prepared.truncated),
            deadline=None if timeout is None else time.monotonic() + timeout,
            waiter=waiter,
        )
        if prepared.rows:
            self._enqueue(request, prepared.rows, prepared.counts)
        else:
            settle(whole([request]))

    def _enqueue(self, request: Pending, rows: Sequence[Any], counts: Sequence[int]) -> None:
        total = sum(counts)
        with self._changed:
            if self._closed:
                raise ConfigurationError("the scheduler is closed; make a new one")
            if self._queue and (
                len(self._queue) + len(rows) > self._most_items
                or self._queue.tokens + total > self._most_tokens
            ):
                raise OverloadedError(
                    f"{len(self._queue)} inputs of {self._queue.tokens} tokens wait already; "
                    f"try again later, or raise max_queue_items and max_queue_tokens",
                    status=503,
                    retry_after=self._queue.tokens / self._rate if self._rate else 1.0,
                    retryable=True,
                )
            self._queue.push(
                Item(request, place, tokens, row)
                for place, (row, tokens) in enumerate(zip(rows, counts, strict=True))
            )
            self._changed.notify()

    def _work(self, replica: Replica) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                batch = self._queue.take(replica.budget, wanted=self._wanted)
                if self._queue:
                    self._changed.notify()
            if batch:
                begin = time.perf_counter()
                self._run(replica, batch)
                spent = max(time.perf_counter() - begin, 1e-9)
                rate = sum(item.tokens for item in batch) / spent
                self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate

    def _wanted(self, request: Pending) -> bool:
        if request.dead:
            return False
        if request.deadline is not None and time.monotonic() > request.deadline:
            self._fail(request, DeadlineError("the time given ran out before the work began"))
            return False
        return True

    def _run(self, replica: Replica, batch: list[Item[Pending]]) -> None:
        try:
            floats = replica.embed_rows([item.row for item in batch])
        except Exception as error:
            if len(batch) == 1:  # the one that is to blame; its neighbours were served
                self._fail(batch[0].request, error)
                return
            half = len(batch) // 2
            self._run(replica, batch[:half])
            self._run(replica, batch[half:])
            return
        served = [item.request for item in batch if not item.request.dead]
        for item, vector in zip(batch, floats, strict=True):
            item.request.put(item.place, vector)
        finished: list[Pending] = []
        # Two replicas may hold rows of one request.
        with self._changed:
            for request in served:
                request.left -= 1
                if request.left == 0:
                    finished.append(request)
        settle(whole(finished))

    def _fail(self, request: Pending, error: Exception) -> None:
        with self._changed:  # two replicas may fail one request at once
            if request.failed:
                return
            request.failed = True
        settle([(request, error)])


def _quick(inputs: Sequence[Input]) -> bool:
    """Whether tokenizing takes less than handing it to a thread."""
    if len(inputs) > 8:
        return False
    # A loop: to make a generator for one text costs more than the text.
    for each in inputs:  # noqa: SIM110
        if not isinstance(each, str) or len(each) >= 4096:
            return False
    return True
