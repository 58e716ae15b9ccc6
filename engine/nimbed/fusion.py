"""Fuse the rankings of several kinds of vectors into one, by ranks or by scores.

Vectors of two kinds cannot be compared, but what each of them finds can be put together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import ConfigurationError
from nimbed.search import Neighbours
from nimbed.spec import check_literal, check_size

__all__ = ["DAMPING", "Fusion", "check_weights", "fuse", "with_shared_tokens"]

#: ``rrf`` fuses by places alone; ``sum`` adds scores that are normalised a ranking.
Fusion = Literal["rrf", "sum"]

#: The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
DAMPING = 60


def fuse(
    rankings: Sequence[Neighbours],
    *,
    by: Fusion = "rrf",
    weights: Sequence[float] | None = None,
    damping: int = DAMPING,
    k: int | None = None,
) -> Neighbours:
    """Return the best passages of several rankings of the same queries.

    By ``rrf`` a passage scores weight / (damping + place) in every ranking that has it, places
    counted from 1. By ``sum`` it scores weight · (worst - distance) / (worst - best), where worst
    and best are the distances at both ends of that query's ranking: 1 for the first, 0 for the
    last, and 1 for all where they are equal. A passage that a ranking lacks scores nothing there.

    Args:
        rankings: What searches by several kinds found, closest first; rows are numbers of the same
            passages in all of them. An infinite distance, at the end, says that fewer were found.
        by: How to fuse.
        weights: What each ranking counts for; None for 1 each.
        damping: For ``rrf``: the larger, the less the first places count. Usually called k.
        k: How many to keep, at most the length of the longest ranking; None for that.

    Returns:
        Rows and distances, which are the negative scores; ties go to the lower row. A query for
        which fewer were found has infinite distances at the end, of row 0.

    Raises:
        ConfigurationError: If rankings are of different queries or not closest first, or an option
            is out of range.
    """
    check_literal("by", by, Fusion)
    check_size("damping", damping)
    each_weight = check_weights(weights, len(rankings))
    for found in rankings:
        _check(found, queries=len(rankings[0].rows))
    longest = max(found.rows.shape[1] for found in rankings)
    if k is not None:
        check_size("k", k)
    kept = longest if k is None else min(k, longest)
    rows = np.zeros((len(rankings[0].rows), kept), np.intp)
    distances = np.full(rows.shape, np.inf)
    for query in range(len(rows)):
        found_rows, scores = [], []
        for found, weight in zip(rankings, each_weight, strict=True):
            distance = found.distances[query]
            distance = distance[np.isfinite(distance)].astype(np.float64)
            found_rows.append(found.rows[query, : len(distance)])
            if by == "rrf":
                scores.append(weight / (damping + np.arange(1, len(distance) + 1)))
            else:
                scores.append(weight * _normalised(distance))
        passages, places = np.unique(np.concatenate(found_rows), return_inverse=True)
        total = np.bincount(places, weights=np.concatenate(scores), minlength=len(passages))
        best = np.argsort(-total, kind="stable")[:kept]
        rows[query, : len(best)] = passages[best]
        distances[query, : len(best)] = -total[best]
    return Neighbours(rows, distances)


def with_shared_tokens(found: Neighbours) -> Neighbours:
    """Strike out the passages that share no token with their query, before fusing.

    An exact search by sparse vectors returns them too, in the order of their rows, at distance 0.
    """
    return found._replace(distances=np.where(found.distances < 0, found.distances, np.inf))


def check_weights(weights: Sequence[float] | None, rankings: int) -> tuple[float, ...]:
    """Return what each ranking counts for.

    Raises:
        ConfigurationError: If there is no ranking, or the weights are not one a ranking, are
            negative or are all 0.
    """
    if not rankings:
        raise ConfigurationError("there are no rankings to fuse")
    if weights is None:
        return (1.0,) * rankings
    if len(weights) != rankings:
        raise ConfigurationError(f"{rankings} rankings take as many weights; got {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ConfigurationError(
            f"weights must not be negative, nor all 0; got {', '.join(map(str, weights))}"
        )
    return tuple(map(float, weights))


def _check(found: Neighbours, *, queries: int) -> None:
    rows, distances = found
    if rows.shape != distances.shape or rows.ndim != 2 or len(rows) != queries:
        raise ConfigurationError(
            f"rankings to fuse must be of the same {queries} queries, with a distance a row; got "
            f"rows of shape {rows.shape} and distances of shape {distances.shape}"
        )
    if np.isnan(distances).any() or (distances[:, 1:] < distances[:, :-1]).any():
        raise ConfigurationError(
            "a ranking to fuse is not closest first; give distances, which ascend, or the "
            "negatives of scores"
        )
    # Every infinite distance its own row, so that these are not taken for repetitions.
    apart = np.where(np.isfinite(distances), rows, -1 - np.arange(rows.shape[1]))
    if (np.diff(np.sort(apart, axis=1), axis=1) == 0).any():
        raise ConfigurationError("a ranking to fuse names a passage twice for one query")


def _normalised(distances: NDArray[Any]) -> NDArray[np.float64]:
    """Return distances, ascending, as scores from 1 for the first to 0 for the last."""
    if len(distances) == 0 or distances[0] == distances[-1]:
        return np.ones(len(distances))
    scores: NDArray[np.float64] = (distances[-1] - distances) / (distances[-1] - distances[0])
    return scores
