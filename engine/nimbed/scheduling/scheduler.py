"""The scheduler: embeds the inputs of many concurrent callers as if they had come in one call.

Requests of different lengths, sizes and types share a batch, because slicing and quantisation
come after pooling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Self, Unpack

import numpy as np

from nimbed.batch import EmbeddingBatch
from nimbed.embedder import Schedulable
from nimbed.errors import ConfigurationError
from nimbed.inputs import Input
from nimbed.options import EmbedKeywords, EmbedOptions
from nimbed.scheduling.queue import Observer, QueueState, Request, RequestQueue, Timings, complete
from nimbed.spec import EmbeddingType, Int8Scale, VectorSpec

__all__ = ["Scheduler"]

# Tokens of a request that somebody may be waiting for; a longer one is a file of questions.
_SHORT = 512


class Scheduler:
    """Shares an embedder among concurrent callers; a context manager.

    An idle device starts at once; :mod:`nimbed.scheduling.batch_delay` describes the one wait
    there is.

    Args:
        embedder: A local embedder, whose weights are loaded here.
        max_queue_items: Inputs that may wait; beyond it ``submit`` raises OverloadedError.
        max_queue_tokens: Tokens that may wait.
        max_wait: Seconds for which a batch may be delayed after another; 0 for never.
        observer: Receives the timings of every request and batch.
        queries_first: Whether short queries go before everything else, so that passages delay none
            of them by more than one batch.

    Raises:
        ConfigurationError: If the queue could hold nothing.
    """

    def __init__(
        self,
        embedder: Schedulable,
        *,
        max_queue_items: int = 100_000,
        max_queue_tokens: int = 10_000_000,
        max_wait: float = 0.01,
        observer: Observer | None = None,
        queries_first: bool = True,
    ) -> None:
        if min(max_queue_items, max_queue_tokens) < 1:
            raise ConfigurationError(
                f"the queue must hold at least one item and one token; got max_queue_items="
                f"{max_queue_items}, max_queue_tokens={max_queue_tokens}"
            )
        self._embedder = embedder
        self._observer = observer
        self._queries_first = queries_first
        # A server is asked for the same few again and again; see also queue.complete.
        self._specs: dict[tuple[EmbeddingType, int | None, Int8Scale | None], VectorSpec] = {}
        self._queue = RequestQueue(
            embedder.replicas(),
            max_items=max_queue_items,
            max_tokens=max_queue_tokens,
            max_wait=max_wait,
            observer=observer,
        )

    @property
    def state(self) -> QueueState:
        """What waits now."""
        return self._queue.state

    def submit(
        self,
        inputs: Sequence[Input],
        options: EmbedOptions | None = None,
        *,
        timeout: float | None = None,
        **keywords: Unpack[EmbedKeywords],
    ) -> Future[EmbeddingBatch]:
        """Queue inputs and return at once; they are tokenized here, in the caller's thread.

        Args:
            inputs: As for :meth:`nimbed.embedder.Embedder.embed`.
            options: What is asked of each, or None if keywords say it.
            keywords: The options by name, as for ``embed``; not both.
            timeout: Seconds until the answer is worthless; rows still waiting then are dropped,
                and the future gets a DeadlineError.

        Returns:
            A future. Cancelling it drops its rows that still wait.

        Raises:
            ConfigurationError: If the model cannot give such vectors.
            InputError: If an input cannot be embedded; ``.rows`` names it.
            OverloadedError: If the queue is full; ``.retry_after`` estimates when it is not.
        """
        future: Future[EmbeddingBatch] = Future()
        self._enqueue(future, inputs, EmbedOptions.given(options, keywords), timeout)
        return future

    async def asubmit(
        self,
        inputs: Sequence[Input],
        options: EmbedOptions | None = None,
        *,
        timeout: float | None = None,
        timings: Timings | None = None,
        patient: bool = False,
        **keywords: Unpack[EmbedKeywords],
    ) -> EmbeddingBatch:
        """Queue inputs and wait without blocking the event loop; see :meth:`submit`.

        Cancelling the task drops its rows that still wait. Many or long inputs are tokenized in a
        thread, a few short ones here: handing them over would cost more than the work.

        Args:
            inputs: As for :meth:`submit`.
            options: Likewise.
            timeout: Likewise.
            timings: Told where the time went.
            patient: Whether it waits its turn although it is a short query.
            keywords: As for :meth:`submit`.
        """
        future: asyncio.Future[EmbeddingBatch] = asyncio.get_running_loop().create_future()
        options = EmbedOptions.given(options, keywords)
        try:
            if _is_quick(inputs):
                self._enqueue(future, inputs, options, timeout, timings, patient)
            else:
                await asyncio.to_thread(
                    self._enqueue, future, inputs, options, timeout, timings, patient
                )
            return await future
        except asyncio.CancelledError:
            future.cancel()
            raise

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests; finish those that wait, or cancel them, and end the workers."""
        self._queue.close(drain=drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _enqueue(
        self,
        waiter: Future[EmbeddingBatch] | asyncio.Future[EmbeddingBatch],
        inputs: Sequence[Input],
        options: EmbedOptions,
        timeout: float | None,
        timings: Timings | None = None,
        patient: bool = False,
    ) -> None:
        key = (options.embedding_type, options.dimensions, options.int8_scale)
        spec = self._specs.get(key)
        if spec is None:
            spec = self._specs[key] = self._embedder.spec(**options.of_spec)
        begin = time.perf_counter()
        prepared = self._embedder.prepare(inputs, options)
        since = time.perf_counter()
        if self._observer is not None:
            self._observer.tokenized(since - begin)
        if timings is not None:
            timings.tokenizing = max(timings.tokenizing, since - begin)
        short = options.input_type == "query" and sum(prepared.counts) <= _SHORT
        request = Request(
            spec=spec,
            input_type=options.input_type,
            token_counts=np.array(prepared.counts, np.int32),
            truncated=tuple(prepared.truncated),
            deadline=None if timeout is None else time.monotonic() + timeout,
            waiter=waiter,
            since=since,
            urgent=short and self._queries_first and not patient,
            timings=timings,
        )
        if prepared.rows:
            self._queue.put(request, prepared.rows, prepared.counts)
        else:
            complete([request])


def _is_quick(inputs: Sequence[Input]) -> bool:
    """Whether tokenizing the inputs takes less time than handing them to a thread."""
    if len(inputs) > 8:
        return False
    # A loop: for a single text, creating a generator would cost more than the check.
    for each in inputs:  # noqa: SIM110
        if not isinstance(each, str) or len(each) >= 4096:
            return False
    return True
