"""What Weaviate's quantisers keep of float vectors: bytes, and what is found by them.

Formulas are read from Weaviate's sources (adapters/repos/db/vector/compressionhelpers, 1.39): every
quantiser is what it decodes a passage and a question to, whose dot products rank. Its random
numbers are others, so that recall differs from a Weaviate's by chance; graphs lose a little more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.search import nearest, rescore
from nimbed_tradeoff.measurement import Gains, Quality, Search, take_turns
from nimbed_tradeoff.ways import TOP

__all__ = [
    "LEAST_FOR_PQ",
    "RESCORED",
    "MeasuredQuantizer",
    "Quantizer",
    "bq",
    "measure_quantizers",
    "pq",
    "rotated",
    "rq_1",
    "rq_8",
    "sq",
]

Floats = NDArray[np.float32]

#: Candidates that floats rank again: rescoreLimit of rq and sq, where nothing else is configured.
RESCORED = 20
#: Passages below which pq's 256 clusters would be the passages themselves.
LEAST_FOR_PQ = 2_000

_ROUNDS = 3
_SEED = 7
_CENTROIDS = 256
_TRAINED_ON = 10_000
_ITERATIONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """Passages as a quantiser keeps them.

    Attributes:
        name: What Weaviate calls it, rq with its bits.
        bytes_per_vector: What an index holds of a vector, with the quantiser's own numbers.
        passages: What the codes stand for, of shape (n, d).
        decoded_query: Makes the same of queries.
    """

    name: str
    bytes_per_vector: int
    passages: Floats
    decoded_query: Callable[[Floats], Floats]

    def distances(self, queries: Floats) -> Floats:
        """Return what ranks, of shape (queries, passages); smaller is closer."""
        found: Floats = -(self.decoded_query(queries) @ self.passages.T)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredQuantizer:
    """What a quantiser keeps and costs.

    Attributes:
        name: What Weaviate calls it, rq with its bits.
        bytes_per_vector: What an index holds of a vector.
        alone: What its codes find.
        rescored: What is found if floats rank the best :data:`RESCORED` again, as Weaviate does.
    """

    name: str
    bytes_per_vector: int
    alone: Quality
    rescored: Quality


def measure_quantizers(
    queries: EmbeddingBatch, passages: EmbeddingBatch, gains: Gains | None = None
) -> tuple[MeasuredQuantizer, ...]:
    """Search for the ten best passages of every query by each quantiser's codes.

    Args:
        queries: Full float vectors, at least one, that rank by cosine or dot product.
        passages: The same of the passages.
        gains: What is relevant to each query; None takes float's order as right.
    """
    floats = np.asarray(passages.vectors, np.float32)
    made = [rq_8(floats), sq(floats), rq_1(floats), bq(floats)]
    if len(floats) >= LEAST_FOR_PQ and find_spec("scipy") is not None:
        made.append(pq(floats))

    def exact(block: NDArray[np.intp]) -> Callable[[], NDArray[np.intp]]:
        asked = queries.select(block)
        return lambda: nearest(asked, passages, TOP).rows

    def by(quantizer: Quantizer, candidates: int) -> Search:
        def prepared(block: NDArray[np.intp]) -> Callable[[], NDArray[np.intp]]:
            asked = queries.select(block)
            numbers = np.asarray(asked.vectors, np.float32)

            def search() -> NDArray[np.intp]:
                rows = np.argsort(quantizer.distances(numbers), axis=1, kind="stable")
                rows = rows[:, :candidates]
                if candidates > TOP:
                    rows = rescore(asked, passages, rows, TOP).rows
                return rows

            return search

        return prepared

    searches = [by(each, candidates) for each in made for candidates in (TOP, RESCORED)]
    _, *found = take_turns([exact, *searches], len(queries), gains)
    return tuple(
        MeasuredQuantizer(
            name=each.name,
            bytes_per_vector=each.bytes_per_vector,
            alone=found[2 * place],
            rescored=found[2 * place + 1],
        )
        for place, each in enumerate(made)
    )


def bq(passages: Floats) -> Quantizer:
    """Return the sign of each number, compared by Hamming distance (binary_quantization.go)."""

    def signs(floats: Floats) -> Floats:
        return np.where(floats < 0, np.float32(-1), np.float32(1))

    words = -(-passages.shape[1] // 64)
    return Quantizer(
        name="bq", bytes_per_vector=8 * words, passages=signs(passages), decoded_query=signs
    )


def sq(passages: Floats) -> Quantizer:
    """Return a byte a number, of one range for all (scalar_quantization.go).

    The code of x is floor(255 (x - b) / a) for the least number b and the range a of the vectors
    that it is trained on, and stands for b + a code / 255. A question keeps its floats.
    """
    low = passages.min()
    span = max(float(passages.max() - low), 1e-30)
    codes = np.clip(np.floor((passages - low) * np.float32(255 / span)), 0, 255)
    decoded = (low + codes * np.float32(span / 255)).astype(np.float32)
    # A code's sum and its square's, four bytes each, stand behind it.
    return Quantizer(
        name="sq",
        bytes_per_vector=passages.shape[1] + 8,
        passages=decoded,
        decoded_query=lambda floats: floats,
    )


def rq_8(passages: Floats) -> Quantizer:
    """Return a byte a number of rotated vectors, of a range each (rotational_quantization.go).

    The code of v is floor((v - lower) / step + 1/2) for step = (max - min) / 255 of the vector, and
    stands for lower + step code; questions are quantised likewise.
    """

    def decoded(floats: Floats) -> Floats:
        turned = rotated(floats)
        lower = turned.min(1, keepdims=True)
        step = (turned.max(1, keepdims=True) - lower) / np.float32(255)
        codes = np.floor(np.divide(turned - lower, step, where=step > 0, out=turned * 0) + 0.5)
        found: Floats = (lower + step * codes).astype(np.float32)
        return found

    kept = decoded(passages)
    return Quantizer(
        name="rq-8",
        bytes_per_vector=16 + kept.shape[1],
        passages=kept,
        decoded_query=decoded,
    )


def rq_1(passages: Floats) -> Quantizer:
    """Return the signs of rotated vectors, and one number each (binary_rotational_quantization.go).

    A sign stands for ±|x|² / Σ|x_i|, by which the product with a question is estimated without bias
    (RaBitQ, arXiv 2405.12497). A question has five bits a number, rounded by chance. Fewer than 256
    dimensions are filled up to 256 before they are rotated.
    """

    def wide(floats: Floats) -> Floats:
        missing = max(0, 256 - floats.shape[1])
        return rotated(np.pad(floats, ((0, 0), (0, missing))))

    turned = wide(passages)
    sums = np.abs(turned).sum(1, keepdims=True)
    squares = np.square(turned).sum(1, keepdims=True)
    step = np.divide(squares, sums, where=sums > 0, out=sums * 0)
    rounding = np.random.default_rng(_SEED).random(turned.shape[1], np.float32)

    def decoded_query(floats: Floats) -> Floats:
        asked = wide(floats)
        most = np.maximum(np.abs(asked).max(1, keepdims=True), np.float32(1e-30))
        half = most / np.float32(31)
        codes = np.floor((asked + most) / (2 * half) + rounding)
        found: Floats = (half * (2 * np.minimum(codes, 31) - 31)).astype(np.float32)
        return found

    return Quantizer(
        name="rq-1",
        bytes_per_vector=8 + turned.shape[1] // 8,
        passages=np.where(turned > 0, step, -step),
        decoded_query=decoded_query,
    )


def pq(passages: Floats) -> Quantizer:
    """Return the nearest of 256 centroids for each segment of a vector (product_quantization.go).

    As many segments as Weaviate takes by default; the centroids are those of k-means, by SciPy, of
    at most 10,000 vectors, where Weaviate takes 100,000. A question keeps its floats.
    """
    from scipy.cluster.vq import kmeans2, vq

    dimensions = passages.shape[1]
    segments = _segments(dimensions)
    width = dimensions // segments
    rng = np.random.default_rng(_SEED)
    some = passages[rng.permutation(len(passages))[:_TRAINED_ON]]
    decoded = np.empty_like(passages)
    for start in range(0, dimensions, width):
        part = slice(start, start + width)
        with warnings.catch_warnings():
            # A cluster that stays empty is a centroid that nothing uses.
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centroids, _ = kmeans2(
                some[:, part], _CENTROIDS, iter=_ITERATIONS, minit="points", rng=rng
            )
        codes, _ = vq(passages[:, part], centroids)
        decoded[:, part] = centroids[codes]
    return Quantizer(
        name="pq",
        bytes_per_vector=segments,
        passages=decoded,
        decoded_query=lambda floats: floats,
    )


def _segments(dimensions: int) -> int:
    """Return how many segments pq has by default (CalculateOptimalSegments)."""
    for least, width in ((2048, 8), (768, 6), (256, 4), (2, 2)):
        if dimensions >= least and dimensions % width == 0:
            return dimensions // width
    return dimensions


def rotated(floats: Floats) -> Floats:
    """Return vectors after a random rotation of the kind that Weaviate's rq uses.

    Three rounds of random swaps and signs, each followed by Walsh-Hadamard transforms of blocks of
    256 numbers, or of 64 at the end; the width is filled up to a multiple of 64. Lengths and dot
    products stay.
    """
    width = -(-floats.shape[1] // 64) * 64
    rng = np.random.default_rng(_SEED)
    turned: Floats = np.pad(floats, ((0, 0), (0, width - floats.shape[1])))
    for _ in range(_ROUNDS):
        pairs = rng.permutation(width).reshape(-1, 2)
        swapped = np.empty(width, np.intp)
        swapped[pairs] = pairs[:, ::-1]
        turned = turned[:, swapped] * rng.choice(np.array([-1, 1], np.float32), width)
        start = 0
        while start < width:
            size = 256 if width - start >= 256 else 64
            turned[:, start : start + size] = turned[:, start : start + size] @ _hadamard(size)
            start += size
    return turned


def _hadamard(size: int) -> Floats:
    """Return the orthonormal Walsh-Hadamard matrix of a power of two."""
    matrix: Floats = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    orthonormal: Floats = matrix / np.sqrt(np.float32(size))
    return orthonormal
