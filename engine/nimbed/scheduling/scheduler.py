"""The scheduler: embeds the inputs of many concurrent callers as if they had come in one call.

Requests of different lengths, sizes and types share a batch, because slicing and quantisation
come after pooling.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple, Self, Unpack

import numpy as np

from nimbed.batch import EmbeddingBatch
from nimbed.embedder import Schedulable
from nimbed.errors import ConfigurationError
from nimbed.inputs import Input
from nimbed.options import EmbedKeywords, EmbedOptions
from nimbed.scheduling.queue import (
    Observer,
    QueueState,
    Request,
    RequestQueue,
    Timings,
    Waiter,
    complete,
)
from nimbed.spec import EmbeddingType, Int8Scale, VectorSpec

__all__ = ["Scheduler"]

# Tokens of a request that somebody may be waiting for; a longer one is a file of questions.
_SHORT = 512
# Characters that are tokenized in one turn of an event loop: 15 ms of one core. From a 32nd of it
# on, a thousand callers of an H100 were served at one speed.
_A_TURN = 2**17


class _Call(NamedTuple):
    waiter: Waiter
    inputs: Sequence[Input]
    options: EmbedOptions
    timeout: float | None
    timings: Timings | None = None
    patient: bool = False


class Scheduler:
    """Shares an embedder among concurrent callers; a context manager.

    An idle device starts at once; :mod:`nimbed.scheduling.policy` describes the one wait
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
        replicas = embedder.replicas()
        # Where the cores that tokenize run the model as well, many threads would keep it waiting.
        self._gathers = not any(replica.on_host for replica in replicas)
        self._gathered: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[_Call]] = (
            weakref.WeakKeyDictionary()
        )
        self._queue = RequestQueue(
            replicas,
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
        self._enqueue([_Call(future, inputs, EmbedOptions.given(options, keywords), timeout)])
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
        thread, a few short ones here: handing them over would cost more than the work. Beside a
        GPU, those of all the tasks that ask in one turn of the loop are tokenized together.

        Args:
            inputs: As for :meth:`submit`.
            options: Likewise.
            timeout: Likewise.
            timings: Told where the time went.
            patient: Whether it waits its turn although it is a short query.
            keywords: As for :meth:`submit`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[EmbeddingBatch] = loop.create_future()
        if options is None or keywords:
            options = EmbedOptions.given(options, keywords)
        call = _Call(future, inputs, options, timeout, timings, patient)
        try:
            if not _is_quick(inputs):
                await asyncio.to_thread(self._enqueue, [call])
            elif self._gathers and isinstance(inputs, (list, tuple)):
                self._gather(loop, call)
            else:
                self._enqueue([call])
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

    def _gather(self, loop: asyncio.AbstractEventLoop, call: _Call) -> None:
        calls = self._gathered.get(loop)
        if calls is None:
            calls = self._gathered[loop] = deque()
        calls.append(call)
        if len(calls) == 1:
            loop.call_soon(self._enqueue_gathered, loop, calls)

    def _enqueue_gathered(self, loop: asyncio.AbstractEventLoop, calls: deque[_Call]) -> None:
        """Queue the calls of one turn of the loop, and what is too much for it in the next."""
        # A server remembers the options of its clients; to hash them takes a while.
        the_same: dict[int, list[_Call]] = {}
        size = 0
        while calls and size < _A_TURN:
            call = calls.popleft()
            if not call.waiter.done():
                the_same.setdefault(id(call.options), []).append(call)
                for text in call.inputs:
                    size += len(text) if isinstance(text, str) else 0
        if calls:
            loop.call_soon(self._enqueue_gathered, loop, calls)
        groups = list(the_same.values())
        if len(groups) > 1:
            equal: dict[EmbedOptions, list[_Call]] = {}
            for group in groups:
                equal.setdefault(group[0].options, []).extend(group)
            groups = list(equal.values())
        for group in groups:
            try:
                self._enqueue(group)
            except Exception:  # at fault is one of them, or their number
                for call in group:
                    self._enqueue_or_fail(call)

    def _enqueue_or_fail(self, call: _Call) -> None:
        try:
            self._enqueue([call])
        except Exception as error:
            call.waiter.set_exception(error)

    def _enqueue(self, calls: Sequence[_Call]) -> None:
        """Tokenize and queue calls of the same options: all of them, or none."""
        options = calls[0].options
        key = (options.embedding_type, options.dimensions, options.int8_scale)
        spec = self._specs.get(key)
        if spec is None:
            spec = self._specs[key] = self._embedder.spec(**options.of_spec)
        inputs = calls[0].inputs
        if len(calls) > 1:
            inputs = list(itertools.chain.from_iterable([call.inputs for call in calls]))
        begin = time.perf_counter()
        prepared = self._embedder.prepare(inputs, options)
        since = time.perf_counter()
        token_counts = np.array(prepared.counts, np.int32)
        truncated = prepared.truncated
        requests: list[Request] = []
        queries = self._queries_first and options.input_type == "query"
        stop = 0
        for call in calls:
            start, stop = stop, stop + len(call.inputs)
            urgent = queries and not call.patient and sum(prepared.counts[start:stop]) <= _SHORT
            if call.timings is not None:
                call.timings.tokenizing = max(call.timings.tokenizing, since - begin)
            cut: Sequence[int] = ()
            if truncated:
                cut = truncated[bisect_left(truncated, start) : bisect_left(truncated, stop)]
            requests.append(
                Request(
                    spec=spec,
                    input_type=options.input_type,
                    token_counts=token_counts[start:stop],
                    truncated=tuple([row - start for row in cut]) if cut else (),
                    deadline=None if call.timeout is None else time.monotonic() + call.timeout,
                    waiter=call.waiter,
                    since=since,
                    urgent=urgent,
                    timings=call.timings,
                )
            )
            if self._observer is not None:
                self._observer.tokenized((since - begin) / len(calls))
        self._queue.put(requests, prepared.rows, prepared.counts)
        for request in requests:
            if not len(request.token_counts):  # no device will ever finish it
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
