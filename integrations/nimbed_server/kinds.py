"""Several kinds of vectors of one model: texts of many requests, a few at a time.

Not in the scheduler's batches: those are made of rows that come back as one vector each, and are
pooled in the model. Here every text comes back as weights or vectors of its own number. The engine
runs one thing at a time, so that these parts alternate with the scheduler's batches, and both are
bounded by the same count of inputs under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from nimbed.batch import EmbeddingBatch, concatenate
from nimbed.embedder import Embedder, HybridEmbedder
from nimbed.errors import (
    DeadlineError,
    InputError,
    OverloadedError,
    renumber,
)
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.options import EmbedOptions, KindOptions
from nimbed.scheduling import Timings
from nimbed.spec import Contract, Kind
from nimbed_server.metrics import ModelMetrics
from nimbed_server.wire.errors import HttpError

__all__ = ["KindsEmbedder", "count_numbers", "first", "hybrid"]

# Texts that are embedded in one turn, and their characters, unless one has more: others wait for
# no more than that, and a request whose client has gone costs no more.
_TEXTS, _CHARACTERS = 32, 2**16
# Numbers of an answer: 64 MB of float32. Of 1024 dimensions they are 16,384 tokens.
_MOST_NUMBERS = 2**24


def hybrid(embedder: Embedder) -> HybridEmbedder | None:
    """Return the embedder if it has more than dense vectors to give, else None.

    Asked of its class: of an instance the properties would be read, for which some ask a server.
    """
    return cast(HybridEmbedder, embedder) if hasattr(type(embedder), "embed_kinds") else None


class KindsEmbedder:
    """Embeds texts as several kinds of vectors; used from one event loop.

    Args:
        embedder: The model.
        metrics: Told of every part.
        queues: Whether the embedder queues by itself, as one for a server elsewhere does; a local
            model's requests take turns here.
    """

    def __init__(self, embedder: HybridEmbedder, metrics: ModelMetrics, *, queues: bool) -> None:
        self._embedder = embedder
        self._metrics = metrics
        self._queues = queues
        self._waiting = 0
        self._seconds_a_text = 0.0
        # One thread, so that work whose client has gone never piles up; begun with the first call.
        self._thread = ThreadPoolExecutor(1, "nimbed-kinds")

    def read_contracts(self) -> dict[Kind, Contract]:
        """Return the contract of each kind that the model gives; a server elsewhere is asked."""
        specs: dict[Kind, Any] = {
            "sparse": self._embedder.sparse_spec,
            "multi": self._embedder.multi_spec,
        }
        return {kind: specs[kind]() for kind in self._embedder.kinds if kind in specs}

    async def embed(
        self,
        texts: Sequence[str],
        options: EmbedOptions,
        asked: KindOptions,
        *,
        timeout: float,
        timings: Timings,
    ) -> EmbeddingKinds:
        """Embed the texts of one request.

        Args:
            texts: Texts that are not blank.
            options: What is asked of dense vectors, and of every input.
            asked: What is asked of the other kinds.
            timeout: Seconds after which the answer is worthless.
            timings: Told where the time went.

        Raises:
            OverloadedError: If more waits than can be done in that time.
            DeadlineError: If the time runs out.
            HttpError: With status 413, if the answer would be too large.
            NimbedError: If the engine refuses or fails.
        """
        late = (self._waiting + len(texts)) * self._seconds_a_text - timeout
        if self._waiting and late > 0:
            raise OverloadedError(
                f"more waits than can be done in the time given: this would be {late:.1f} s late; "
                f"try again later, or send fewer inputs a request",
                status=503,
                retry_after=late,
                retryable=True,
            )
        keywords = {
            **options.keywords(),
            "kinds": asked.kinds,
            "max_active": asked.max_active,
            "token_type": asked.token_type,
            "pool_factor": asked.pool_factor,
        }
        del keywords["modality"]
        self._waiting += len(texts)
        left = len(texts)
        numbers = 0
        parts: list[EmbeddingKinds] = []
        try:
            async with asyncio.timeout(timeout):
                for start, part in _parts(texts, whole=self._queues):
                    try:
                        found = await self._embed(part, keywords, timings)
                    except InputError as error:
                        renumber(error, range(start, start + len(part)))
                        raise
                    parts.append(found)
                    numbers += count_numbers(found)
                    if numbers > _MOST_NUMBERS:
                        raise HttpError(
                            413,
                            f"the vectors of these {len(texts)} texts are more than "
                            f"{_MOST_NUMBERS:,} numbers; send fewer texts a request, or ask for "
                            f"pool_factor or token_type",
                            param="input",
                            code="answer_too_large",
                        )
                    left -= len(part)
                    self._waiting -= len(part)
        except TimeoutError as error:
            raise DeadlineError("the time given ran out") from error
        finally:
            self._waiting -= left
        return _joined(parts)

    def close(self) -> None:
        """Drop what waits, and finish what runs."""
        self._thread.shutdown(cancel_futures=True)

    async def _embed(
        self, part: Sequence[str], keywords: dict[str, Any], timings: Timings
    ) -> EmbeddingKinds:
        if self._queues:
            return await self._embedder.aembed_kinds(part, **keywords)
        since = time.perf_counter()

        def run() -> tuple[EmbeddingKinds, float, float]:
            begin = time.perf_counter()
            return self._embedder.embed_kinds(part, **keywords), begin, time.perf_counter()

        loop = asyncio.get_running_loop()
        found, begin, end = await loop.run_in_executor(self._thread, run)
        waited, seconds = begin - since, end - begin
        timings.queueing += waited
        timings.inference += seconds
        self._seconds_a_text += 0.2 * (seconds / len(part) - self._seconds_a_text)
        self._metrics.ran(
            items=len(part),
            tokens=sum(first(found).token_counts.tolist()),
            waited=waited * len(part),
            longest=waited,
            seconds=seconds,
        )
        return found


def first(found: EmbeddingKinds) -> EmbeddingBatch | SparseBatch | MultiVectorBatch:
    """Return one of the batches, for what all of them say alike."""
    return next(each for each in (found.dense, found.sparse, found.multi) if each is not None)


def _parts(texts: Sequence[str], *, whole: bool) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield (first row, texts) of each turn, at least one text."""
    if whole:
        yield 0, texts
        return
    start = characters = 0
    for row, text in enumerate(texts):
        characters += len(text)
        if row > start and (row - start == _TEXTS or characters > _CHARACTERS):
            yield start, texts[start:row]
            start, characters = row, len(text)
    yield start, texts[start:]


def count_numbers(found: EmbeddingKinds) -> int:
    """Return how many numbers the vectors are."""
    dense = 0 if found.dense is None else found.dense.vectors.size
    sparse = 0 if found.sparse is None else 2 * found.sparse.ids.size
    return dense + sparse + (0 if found.multi is None else found.multi.vectors.size)


def _joined(parts: Sequence[EmbeddingKinds]) -> EmbeddingKinds:
    if len(parts) == 1:
        return parts[0]
    dense = [part.dense for part in parts if part.dense is not None]
    sparse = [part.sparse for part in parts if part.sparse is not None]
    multi = [part.multi for part in parts if part.multi is not None]
    return EmbeddingKinds(
        dense=concatenate(dense) if dense else None,
        sparse=SparseBatch.concatenate(sparse) if sparse else None,
        multi=MultiVectorBatch.concatenate(multi) if multi else None,
    )
