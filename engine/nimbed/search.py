"""Exact nearest neighbours of embedded queries, by the metric their spec allows.

Brute force over numpy arrays: a yardstick for indexes, and enough for a few hundred thousand
passages. Knows nothing about databases.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.spec import require_same_space

__all__ = ["Neighbours", "distances", "nearest", "rescore"]

# Elements of a temporary that one block of passages may fill (16 MB of uint64).
_BLOCK_ELEMENTS = 2**21


class Neighbours(NamedTuple):
    """The closest passages of each query, closest first.

    ``rows`` and ``distances`` have shape (queries, k); ties go to the lower row.
    """

    rows: NDArray[np.intp]
    distances: NDArray[Any]


def distances(queries: EmbeddingBatch, passages: EmbeddingBatch) -> NDArray[Any]:
    """Return every distance, of shape (queries, passages); smaller is closer.

    Cosine distance (1 - cosine) for float and int8, Euclidean for uint8, the number of
    differing bits (int32) for packed types.

    Raises:
        SpaceMismatchError: If the two batches have different fingerprints.
    """
    require_same_space(queries.spec, passages.spec, doing="compare")
    if queries.metric == "hamming":
        return _hamming(queries.bits(), passages.bits())
    left, right = queries.floats(), passages.floats()
    if queries.metric == "euclidean":
        squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
        euclidean: NDArray[np.float32] = np.sqrt(np.maximum(squares, 0))
        return euclidean
    if queries.spec.embedding_type != "float":  # floats are unit vectors already
        left = left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-30)
        right = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-30)
    cosine: NDArray[np.float32] = left @ right.T
    return np.float32(1) - cosine


def nearest(queries: EmbeddingBatch, passages: EmbeddingBatch, k: int) -> Neighbours:
    """Return the k closest passages of each query (all of them if there are fewer).

    Raises:
        SpaceMismatchError: If the two batches have different fingerprints.
        ConfigurationError: If k is less than 1.
    """
    if k < 1:
        raise ConfigurationError(f"k must be at least 1; got {k}")
    return _smallest(distances(queries, passages), k)


def rescore(
    queries: EmbeddingBatch, passages: EmbeddingBatch, candidates: NDArray[np.intp], k: int
) -> Neighbours:
    """Rank candidate rows again by another type's exact distance, and keep the best k.

    The second stage of a two-stage search: candidates by Hamming, order by float.

    Args:
        queries: The queries in the finer type.
        passages: All passages in the finer type.
        candidates: Row numbers of shape (queries, m), as :func:`nearest` gives them.
        k: How many to keep of each row of candidates.
    """
    require_same_space(queries.spec, passages.spec, doing="compare")
    exact = np.stack(
        [
            distances(queries.select([row]), passages.select(picked))[0]
            for row, picked in enumerate(candidates)
        ]
    )
    best = _smallest(exact, k)
    return Neighbours(np.take_along_axis(candidates, best.rows, axis=1), best.distances)


def _smallest(matrix: NDArray[Any], k: int) -> Neighbours:
    k = min(k, matrix.shape[1])
    if k == 0:
        return Neighbours(np.empty((len(matrix), 0), np.intp), matrix)
    # A partition is linear, but leaves ties at the border to chance: take every row up to the
    # k-th distance, then let a stable sort give ties to the lower row.
    border = np.partition(matrix, k - 1, axis=1)[:, k - 1]
    rows = np.empty((len(matrix), k), np.intp)
    for query, (line, limit) in enumerate(zip(matrix, border, strict=True)):
        inside = np.flatnonzero(line <= limit)
        rows[query] = inside[np.argsort(line[inside], kind="stable")[:k]]
    return Neighbours(rows, np.take_along_axis(matrix, rows, axis=1))


def _hamming(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.int32]:
    left, right = _as_words(left), _as_words(right)
    out = np.zeros((len(left), len(right)), np.int32)
    block = max(1, _BLOCK_ELEMENTS // max(1, left.shape[1]))
    for query, bits in enumerate(left):
        for start in range(0, len(right), block):
            differing = np.bitwise_count(right[start : start + block] ^ bits)
            out[query, start : start + block] = differing.sum(axis=1, dtype=np.int32)
    return out


def _as_words(bits: NDArray[np.uint8]) -> NDArray[Any]:
    """View bytes as 64-bit words where the width allows: eight times fewer counts."""
    bits = np.ascontiguousarray(bits)
    return bits.view(np.uint64) if bits.shape[1] % 8 == 0 and bits.size else bits
