"""Exact nearest neighbours of embedded queries, by the metric of their spec.

Brute force over numpy arrays: a reference for indexes, and enough for a few hundred thousand
passages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.kinds import MultiVectorBatch, SparseBatch, require_comparable
from nimbed.spec import MultiVectorSpec, require_same_space

__all__ = ["Batch", "Neighbours", "distances", "nearest", "rescore"]

#: A batch of any kind of vector.
Batch: TypeAlias = EmbeddingBatch | SparseBatch | MultiVectorBatch

# 64-bit words of a temporary for one block of passages: a megabyte stays in the cache.
_BLOCK_WORDS = 2**17

# Tokens of queries whose products with a block of passages are taken at once.
_ASKED = 1024


class Neighbours(NamedTuple):
    """The closest passages of each query, closest first.

    ``rows`` and ``distances`` have shape (queries, k); ties go to the lower row.
    """

    rows: NDArray[np.intp]
    distances: NDArray[Any]


def distances(queries: Batch, passages: Batch) -> NDArray[Any]:
    """Return every distance, of shape (queries, passages); smaller is closer.

    Cosine distance (1 - cosine) for float and int8, Euclidean for uint8, the number of
    differing bits (int32) for packed types. Floats of a model that ranks by length too: the
    negative dot product, or the Euclidean distance. Sparse vectors: the negative dot product;
    multi-vectors: the negative MaxSim.

    Multi-vectors of queries in ``float`` are compared with those of passages in any ``token_type``
    and with any ``pool_factor``, dequantised: all of them stand for the same vectors, and only the
    passages', of which there are many, have to be small. A query's signs against a passage's signs
    rank worse than its floats do.

    Raises:
        SpaceMismatchError: If the two batches have different fingerprints, or are of two kinds.
    """
    _require_comparable(queries, passages)
    # Batches of one spec are of one kind, which type checkers do not know.
    if isinstance(queries, SparseBatch) or isinstance(passages, SparseBatch):
        assert isinstance(queries, SparseBatch)
        assert isinstance(passages, SparseBatch)
        return -_sparse_products(queries, passages)
    if isinstance(queries, MultiVectorBatch) or isinstance(passages, MultiVectorBatch):
        assert isinstance(queries, MultiVectorBatch)
        assert isinstance(passages, MultiVectorBatch)
        return -_max_sims(queries, passages)
    if queries.metric == "hamming":
        return _hamming(queries.bits(), passages.bits())
    if queries.spec.embedding_type == "float" and queries.metric != "euclidean":
        dots: NDArray[np.float32] = queries.vectors @ passages.vectors.T
        return -dots if queries.metric == "dot" else np.float32(1) - dots  # of unit vectors
    left, right = _levels(queries), _levels(passages)
    products: NDArray[np.float32] = left @ right.T
    left_squares, right_squares = (np.einsum("ij,ij->i", each, each) for each in (left, right))
    if queries.metric == "euclidean":
        squares = left_squares[:, None] + right_squares - 2 * products
        step = np.float32(queries.spec.int8_step or 1)
        euclidean: NDArray[np.float32] = step * np.sqrt(np.maximum(squares, 0))
        return euclidean
    products /= np.sqrt(np.maximum(left_squares, 1))[:, None]
    products /= np.sqrt(np.maximum(right_squares, 1))
    return np.float32(1) - products


def nearest(queries: Batch, passages: Batch, k: int) -> Neighbours:
    """Return the k closest passages of each query (all of them if there are fewer).

    Raises:
        SpaceMismatchError: If the two batches have different fingerprints.
        ConfigurationError: If k is less than 1.
    """
    if k < 1:
        raise ConfigurationError(f"k must be at least 1; got {k}")
    return _smallest(distances(queries, passages), k)


def rescore(queries: Batch, passages: Batch, candidates: NDArray[np.intp], k: int) -> Neighbours:
    """Rank candidate rows again by another type's exact distance, and keep the best k.

    The second stage of a two-stage search: candidates by Hamming, order by float; or candidates by
    one vector a text, order by one a token.

    Args:
        queries: The queries in the finer type or kind.
        passages: All passages in the finer type or kind.
        candidates: Row numbers of shape (queries, m), as :func:`nearest` gives them.
        k: How many to keep of each row of candidates.
    """
    _require_comparable(queries, passages)
    exact = np.stack(
        [
            distances(queries.select([row]), passages.select(picked))[0]
            for row, picked in enumerate(candidates)
        ]
    )
    best = _smallest(exact, k)
    return Neighbours(np.take_along_axis(candidates, best.rows, axis=1), best.distances)


def _require_comparable(queries: Batch, passages: Batch) -> None:
    asked, stored = queries.spec, passages.spec
    of_query = queries.input_type == "query"
    if of_query and isinstance(asked, MultiVectorSpec) and isinstance(stored, MultiVectorSpec):
        require_comparable(asked, stored)
    else:
        require_same_space(asked, stored, doing="compare")


def _smallest(matrix: NDArray[Any], k: int) -> Neighbours:
    k = min(k, matrix.shape[1])
    if k == 0:
        return Neighbours(np.empty((len(matrix), 0), np.intp), matrix)
    # A partition takes linear time, but leaves ties at the k-th distance to chance: take every row
    # up to that distance, then let a stable sort give ties to the lower row.
    border = np.partition(matrix, k - 1, axis=1)[:, k - 1]
    rows = np.empty((len(matrix), k), np.intp)
    for query, (line, limit) in enumerate(zip(matrix, border, strict=True)):
        inside = np.flatnonzero(line <= limit)
        rows[query] = inside[np.argsort(line[inside], kind="stable")[:k]]
    return Neighbours(rows, np.take_along_axis(matrix, rows, axis=1))


def _levels(batch: EmbeddingBatch) -> NDArray[np.float32]:
    """Return floats as they are, and the levels of int8 and uint8 as integers around 0.

    Not multiplied by the step: sums of products of integers are exact in float32 up to 2^24, so
    equal distances come out equal. The zero of uint8 may be shifted, since only differences count.
    """
    codes = batch.vectors
    if batch.spec.embedding_type == "float":
        return codes
    if batch.spec.embedding_type == "uint8":
        codes = (codes ^ np.uint8(0x80)).view(np.int8)
    return codes.astype(np.float32)


def _hamming(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.int32]:
    out = np.empty((len(left), len(right)), np.int32)
    # Word by word, which adds up long columns instead of short rows: a fifth of the time.
    columns = np.ascontiguousarray(_as_words(right).T)
    block = max(1, _BLOCK_WORDS // max(1, len(columns)))
    for query, bits in enumerate(_as_words(left)):
        for start in range(0, len(right), block):
            differing = np.bitwise_count(columns[:, start : start + block] ^ bits[:, None])
            differing.sum(axis=0, dtype=np.int32, out=out[query, start : start + block])
    return out


def _as_words(bits: NDArray[np.uint8]) -> NDArray[Any]:
    """View bytes as 64-bit words where the width allows: eight times fewer counts."""
    bits = np.ascontiguousarray(bits)
    return bits.view(np.uint64) if bits.shape[1] % 8 == 0 and bits.size else bits


def _sparse_products(queries: SparseBatch, passages: SparseBatch) -> NDArray[np.float32]:
    rows = np.repeat(np.arange(len(passages)), np.diff(passages.offsets))
    products = np.empty((len(queries), len(passages)), np.float32)
    query = np.zeros(queries.spec.dimensions)
    for row, (ids, weights) in enumerate(queries.rows()):
        query[ids] = weights
        terms = query[passages.ids] * passages.weights
        products[row] = np.bincount(rows, weights=terms, minlength=len(passages))
        query[ids] = 0
    return products


def _max_sims(queries: MultiVectorBatch, passages: MultiVectorBatch) -> NDArray[np.float32]:
    """Return for each pair the sum over the query's tokens of the largest dot product.

    A block of passages is dequantised at a time, and 4 MB of products are held.
    """
    sums = np.empty((len(queries), len(passages)), np.float32)
    asked = queries.floats()
    most = 8 * _BLOCK_WORDS // max(1, min(len(asked), _ASKED))
    for some in _blocks(passages.offsets, most):
        begins = passages.offsets[some]
        floats = passages.floats(slice(begins[0], passages.offsets[some.stop]))
        for few in _blocks(queries.offsets, _ASKED):
            starts = queries.offsets[few]
            products = floats @ asked[starts[0] : queries.offsets[few.stop]].T
            # Down columns: the maxima of many of a query's tokens at once.
            best = np.maximum.reduceat(products, begins - begins[0], axis=0)
            sums[few, some] = np.add.reduceat(best, starts - starts[0], axis=1).T
    return sums


def _blocks(offsets: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Yield runs of whole rows of at most so many elements, or of one row that has more."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + most, "right")) - 1
        yield slice(first, max(last, first + 1))
        first = max(last, first + 1)
