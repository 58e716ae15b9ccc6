"""Found rows and the gain of each relevant one in, recall and nDCG a query out.

Linear gains and a logarithmic discount, as trec_eval and scikit-learn have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gains", "gains_by_place", "ndcgs", "recalls"]

#: For each query, the positive gain of every relevant row.
Gains = Sequence[Mapping[int, float]]


def gains_by_place(rows: NDArray[np.intp]) -> list[dict[int, float]]:
    """Return gains for which the given order is the ideal one: k for the first row, 1 for the last.

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
