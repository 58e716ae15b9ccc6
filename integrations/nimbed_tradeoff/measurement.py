"""Float vectors of queries and passages in, what each way finds and how long it takes out.

Knows nothing about texts, files or pages.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.search import nearest, rescore
from nimbed_tradeoff.ranking import Gains, gains_by_place, ndcgs, recalls
from nimbed_tradeoff.ways import TOP, Way, derive

__all__ = ["BLOCK", "Measured", "measure"]

#: Queries that are searched together; a round of the measurement.
BLOCK = 32
_LEAST_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a way keeps and costs.

    Attributes:
        way: The way.
        recall: Share of the relevant passages among its ten results, mean over the queries.
        recall_error: Standard error of that mean.
        ndcg: nDCG of its ten results, mean over the queries.
        milliseconds: Exact search for one of a block of queries, median of the rounds.
    """

    way: Way
    recall: float
    recall_error: float
    ndcg: float
    milliseconds: float

    @property
    def bytes_per_vector(self) -> int:
        """What the index holds of a vector."""
        return self.way.spec.bytes_per_vector


def measure(
    queries: EmbeddingBatch,
    passages: EmbeddingBatch,
    ways: Sequence[Way],
    gains: Gains | None = None,
) -> tuple[Measured, ...]:
    """Search for the ten nearest of every query in every way.

    The ways take turns on each block of queries, so that a slow moment of the machine meets all
    of them; the first block runs once more beforehand, unmeasured.

    Args:
        queries: Full float vectors, at least one.
        passages: Full float vectors of the same model, at least one.
        ways: The first is the full float, by which others are rescored.
        gains: What is relevant to each query; None takes the order of the full float for it.
    """
    stored = {way.spec: (derive(queries, way.spec), derive(passages, way.spec)) for way in ways}
    shape = (len(queries), min(TOP, len(passages)))
    found = [np.empty(shape, np.intp) for _ in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    blocks = np.array_split(np.arange(len(queries)), -(-len(queries) // BLOCK))
    rounds = max(_LEAST_ROUNDS, len(blocks))
    for turn in range(-1, rounds):
        block = blocks[max(turn, 0) % len(blocks)]
        exact = queries.select(block)
        for place, way in enumerate(ways):
            asked, index = stored[way.spec]
            coarse = asked.select(block)
            started = time.perf_counter()
            found[place][block] = _search(way, coarse, index, exact, passages)
            if turn >= 0:
                seconds[place].append((time.perf_counter() - started) / len(block))
    relevant = gains_by_place(found[0]) if gains is None else gains
    return tuple(
        _measured(way, rows, relevant, spent)
        for way, rows, spent in zip(ways, found, seconds, strict=True)
    )


def _search(
    way: Way,
    queries: EmbeddingBatch,
    index: EmbeddingBatch,
    exact_queries: EmbeddingBatch,
    exact_passages: EmbeddingBatch,
) -> NDArray[np.intp]:
    rows = nearest(queries, index, way.candidates).rows
    if way.oversampling:
        return rescore(exact_queries, exact_passages, rows, TOP).rows
    return rows


def _measured(
    way: Way, found: NDArray[np.intp], gains: Gains, seconds: Sequence[float]
) -> Measured:
    shares = recalls(found, gains)
    error = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return Measured(
        way=way,
        recall=float(shares.mean()),
        recall_error=float(error),
        ndcg=float(ndcgs(found, gains).mean()),
        milliseconds=1000 * statistics.median(seconds),
    )
