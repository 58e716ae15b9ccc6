"""Recall, nDCG and search time of every way, measured on float vectors of queries and passages.

Recall and nDCG have linear gains and a logarithmic discount, as trec_eval and scikit-learn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.search import nearest, rescore
from nimbed_tradeoff.ways import TOP, Way, derive

__all__ = ["BLOCK", "Gains", "Measured", "gains_by_place", "measure", "ndcgs", "recalls"]

#: Queries that are searched together in one timed round.
BLOCK = 32
# Chunks that are looked at for each document.
_CHUNKS = 10
# Quartiles of fewer timings say little about their spread.
_LEAST_ROUNDS = 9

#: For each query, the positive gain of every relevant row.
Gains = Sequence[Mapping[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a way keeps and costs.

    Attributes:
        way: The way.
        recall: Share of the relevant passages among its ten results, mean over the queries.
        recall_error: Standard error of that mean.
        ndcg: nDCG of its ten results, mean over the queries.
        milliseconds: Exact search for one query out of a block, median of the rounds.
        quartiles: First and third quartile of the same timings.
    """

    way: Way
    recall: float
    recall_error: float
    ndcg: float
    milliseconds: float
    quartiles: tuple[float, float]

    @property
    def bytes_per_vector(self) -> int:
        """What the index holds of a vector."""
        return self.way.spec.bytes_per_vector


def measure(
    queries: EmbeddingBatch,
    passages: EmbeddingBatch,
    ways: Sequence[Way],
    gains: Gains | None = None,
    documents: NDArray[np.intp] | None = None,
) -> tuple[Measured, ...]:
    """Search for the ten nearest of every query in every way.

    The ways take turns on each block of queries, so that a slow moment of the machine meets all
    of them; the first block runs once more beforehand, untimed.

    Args:
        queries: Full float vectors, at least one.
        passages: Full float vectors of the same model, at least one.
        ways: The first is the full float, by which others are rescored.
        gains: What is relevant to each query; None takes the order of the full float as right.
        documents: The number of the document that each passage is a chunk of, if the gains are
            those of documents; the ten that are found are the first among ten times as many chunks.
    """
    stored = {way.spec: (derive(queries, way.spec), derive(passages, way.spec)) for way in ways}
    wider = 1 if documents is None else _CHUNKS
    shape = (len(queries), min(TOP, len(passages)))
    found = [np.empty(shape, np.intp) for _ in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    blocks = np.array_split(np.arange(len(queries)), -(-len(queries) // BLOCK))
    for turn in range(-1, max(_LEAST_ROUNDS, len(blocks))):
        block = blocks[max(turn, 0) % len(blocks)]
        exact = queries.select(block)
        for place, way in enumerate(ways):
            asked, index = stored[way.spec]
            coarse = asked.select(block)
            started = time.perf_counter()
            rows = nearest(coarse, index, way.candidates * wider).rows
            if way.oversampling:
                rows = rescore(exact, passages, rows, TOP * wider).rows
            if documents is not None:
                rows = _first_of_each(documents[rows], shape[1])
            found[place][block] = rows
            if turn >= 0:
                seconds[place].append((time.perf_counter() - started) / len(block))
    relevant = gains_by_place(found[0]) if gains is None else gains
    return tuple(
        _summarize(way, rows, relevant, spent)
        for way, rows, spent in zip(ways, found, seconds, strict=True)
    )


def _first_of_each(found: NDArray[np.intp], k: int) -> NDArray[np.intp]:
    """Return the first k different numbers of each line, and -1 where there are fewer."""
    out = np.full((len(found), k), -1, np.intp)
    for line, numbers in zip(out, found.tolist(), strict=True):
        first = list(dict.fromkeys(numbers))[:k]
        line[: len(first)] = first
    return out


def _summarize(
    way: Way, found: NDArray[np.intp], gains: Gains, seconds: Sequence[float]
) -> Measured:
    shares = recalls(found, gains)
    error = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else 0.0
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Measured(
        way=way,
        recall=float(shares.mean()),
        recall_error=float(error),
        ndcg=float(ndcgs(found, gains).mean()),
        milliseconds=1000 * median,
        quartiles=(1000 * low, 1000 * high),
    )


def gains_by_place(rows: NDArray[np.intp]) -> list[dict[int, float]]:
    """Return gains that make the given order the ideal one: k for the first row, 1 for the last.

    Args:
        rows: Row numbers of shape (queries, k), closest first.
    """
    k = rows.shape[1]
    return [{row: float(k - place) for place, row in enumerate(line)} for line in rows.tolist()]


def recalls(found: NDArray[np.intp], gains: Gains) -> NDArray[np.float64]:
    """Return the share of each query's relevant rows that were found, of shape (queries,).

    Args:
        found: Row numbers of shape (queries, k).
        gains: At least one relevant row a query.
    """
    shares = [
        sum(row in relevant for row in line) / len(relevant)
        for line, relevant in zip(found.tolist(), gains, strict=True)
    ]
    return np.array(shares, np.float64)


def ndcgs(found: NDArray[np.intp], gains: Gains) -> NDArray[np.float64]:
    """Return the discounted gain of each query's rows, as a share of the best possible.

    Args:
        found: Row numbers of shape (queries, k), closest first.
        gains: At least one relevant row a query.
    """
    k = found.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    got = np.zeros(found.shape)
    ideal = np.zeros(found.shape)
    for query, (line, relevant) in enumerate(zip(found.tolist(), gains, strict=True)):
        got[query] = [relevant.get(row, 0.0) for row in line]
        best = sorted(relevant.values(), reverse=True)[:k]
        ideal[query, : len(best)] = best
    shares: NDArray[np.float64] = (got @ discount) / (ideal @ discount)
    return shares
