"""Recall, nDCG and search time of every way, measured on float vectors of queries and passages.

Recall and nDCG have linear gains and a logarithmic discount, as trec_eval and scikit-learn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.search import nearest, rescore
from nimbed_tradeoff.ways import TOP, Way, derive

__all__ = [
    "BLOCK",
    "Gains",
    "Measured",
    "Quality",
    "Search",
    "gains_by_place",
    "measure",
    "ndcgs",
    "recalls",
    "take_turns",
]

#: Queries that are searched together in one timed round.
BLOCK = 32
# Chunks that are looked at for each document.
_CHUNKS = 10
# Quartiles of fewer timings say little about their spread.
_LEAST_ROUNDS = 9

#: For each query, the positive gain of every relevant row.
Gains = Sequence[Mapping[int, float]]


#: Of the numbers of some queries, what searches for them: only the search itself is timed.
Search = Callable[[NDArray[np.intp]], Callable[[], NDArray[np.intp]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What a search finds, and how long it takes.

    Attributes:
        recall: Share of the relevant passages among its ten results, mean over the queries.
        recall_error: Standard error of that mean.
        ndcg: nDCG of its ten results, mean over the queries.
        milliseconds: Exact search for one query out of a block, median of the rounds.
        quartiles: First and third quartile of the same timings.
    """

    recall: float
    recall_error: float
    ndcg: float
    milliseconds: float
    quartiles: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Quality):
    """What a way keeps and costs.

    Attributes:
        way: The way.
    """

    way: Way

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

    def by(way: Way) -> Search:
        asked, index = stored[way.spec]

        def prepared(block: NDArray[np.intp]) -> Callable[[], NDArray[np.intp]]:
            exact, coarse = queries.select(block), asked.select(block)

            def search() -> NDArray[np.intp]:
                rows = nearest(coarse, index, way.candidates * wider).rows
                if way.oversampling:
                    rows = rescore(exact, passages, rows, TOP * wider).rows
                return rows if documents is None else _first_of_each(documents[rows])

            return search

        return prepared

    qualities = take_turns([by(way) for way in ways], len(queries), gains)
    return tuple(
        Measured(
            way=way,
            recall=each.recall,
            recall_error=each.recall_error,
            ndcg=each.ndcg,
            milliseconds=each.milliseconds,
            quartiles=each.quartiles,
        )
        for way, each in zip(ways, qualities, strict=True)
    )


def _first_of_each(found: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the first ten different numbers of each line, and -1 where there are fewer."""
    out = np.full((len(found), TOP), -1, np.intp)
    for line, numbers in zip(out, found.tolist(), strict=True):
        first = list(dict.fromkeys(numbers))[:TOP]
        line[: len(first)] = first
    return out


def take_turns(
    searches: Sequence[Search], queries: int, gains: Gains | None = None
) -> list[Quality]:
    """Measure searches for the same queries.

    They take turns on each block of queries, so that a slow moment of the machine meets all of
    them; the first block runs once more beforehand, untimed.

    Args:
        searches: Each finds as many rows for every query, -1 for none.
        queries: How many there are, at least one.
        gains: What is relevant to each query; None takes what the first search finds as right.
    """
    found: list[list[NDArray[np.intp]]] = [[] for _ in searches]
    seconds: list[list[float]] = [[] for _ in searches]
    blocks = np.array_split(np.arange(queries), -(-queries // BLOCK))
    for turn in range(-1, max(_LEAST_ROUNDS, len(blocks))):
        block = blocks[max(turn, 0) % len(blocks)]
        for place, prepared in enumerate(searches):
            search = prepared(block)
            started = time.perf_counter()
            rows = search()
            if turn >= 0:
                seconds[place].append((time.perf_counter() - started) / len(block))
            if 0 <= turn < len(blocks):
                found[place].append(rows)
    whole = [np.concatenate(rows) for rows in found]
    relevant = gains_by_place(whole[0]) if gains is None else gains
    return [_summarize(rows, relevant, spent) for rows, spent in zip(whole, seconds, strict=True)]


def _summarize(found: NDArray[np.intp], gains: Gains, seconds: Sequence[float]) -> Quality:
    shares = recalls(found, gains)
    error = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else 0.0
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Quality(
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
