"""Many callers' inputs on one device, as if they had come in one call.

Different requests, sizes and types share a batch, since slicing and packing come after pooling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Self

import numpy as np

from nimbed.batch import EmbeddingBatch
from nimbed.device_queue import DeviceQueue, QueueState
from nimbed.errors import ConfigurationError
from nimbed.inputs import Input, Modality
from nimbed.pending import Pending, settle, whole
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec, check_literal
from nimbed.stages import Observer, Staged

__all__ = ["QueueState", "Scheduler"]


class Scheduler:
    """Shares an embedder among concurrent callers; a context manager.

    An idle device waits for nothing; see :mod:`nimbed.pace` for the one wait there is.

    Args:
        embedder: A local embedder, whose weights are loaded here.
        max_queue_items: Inputs that may wait; beyond it ``submit`` raises OverloadedError.
        max_queue_tokens: Tokens that may wait.
        max_wait: Seconds for which a batch may be held back after another; 0 for never.
        observer: Told how long everything takes.
    """

    def __init__(
        self,
        embedder: Staged,
        *,
        max_queue_items: int = 100_000,
        max_queue_tokens: int = 10_000_000,
        max_wait: float = 0.01,
        observer: Observer | None = None,
    ) -> None:
        if min(max_queue_items, max_queue_tokens) < 1:
            raise ConfigurationError("the queue must hold at least one item and one token")
        self._embedder = embedder
        self._observer = observer
        # A server is asked for the same few again and again.
        self._specs: dict[tuple[object, ...], VectorSpec] = {}
        self._queue = DeviceQueue(
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
        self._queue.close(drain=drain)

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
        wanted = (input_type, truncate, embedding_type, dimensions, int8_scale)
        spec = self._specs.get(wanted)
        if spec is None:
            check_literal("input_type", input_type, InputType)
            check_literal("truncate", truncate, Truncate)
            spec = self._specs[wanted] = self._embedder.spec(
                embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
            )
        begin = time.perf_counter()
        prepared = self._embedder.prepare(
            inputs, input_type=input_type, truncate=truncate, modality=modality
        )
        since = time.perf_counter()
        if self._observer is not None:
            self._observer.tokenized(since - begin)
        request = Pending(
            spec=spec,
            input_type=input_type,
            counts=np.array(prepared.counts, np.int32),
            truncated=tuple(prepared.truncated),
            deadline=None if timeout is None else time.monotonic() + timeout,
            waiter=waiter,
            since=since,
        )
        if prepared.rows:
            self._queue.put(request, prepared.rows, prepared.counts)
        else:
            settle(whole([request]))


def _quick(inputs: Sequence[Input]) -> bool:
    """Whether tokenizing takes less than handing it to a thread."""
    if len(inputs) > 8:
        return False
    # A loop: to make a generator for one text costs more than the text.
    for each in inputs:  # noqa: SIM110
        if not isinstance(each, str) or len(each) >= 4096:
            return False
    return True
