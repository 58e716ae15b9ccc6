"""One embedded corpus in several storage types: what each costs, and what it keeps.

The floats are embedded once; every other type is made of them, as the engine would have done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nimbed import Embedder, EmbeddingBatch
    from nimbed.spec import EmbeddingType

__all__ = ["OVERSAMPLING", "Way", "compare", "in_type"]

#: Candidates that Hamming fetches for every result that floats choose among them.
OVERSAMPLING = 8
_TOP = 10
_MOST_QUERIES = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to store and search.

    Attributes:
        name: The embedding type, and what is done with it.
        metric: How vectors are compared.
        bytes_per_vector: What the index holds of a vector.
        recall: Share of the ten nearest by float that it finds.
        milliseconds: Exact search of one query.
    """

    name: str
    metric: str
    bytes_per_vector: int
    recall: float
    milliseconds: float


def in_type(floats: EmbeddingBatch, embedder: Embedder, kind: EmbeddingType) -> EmbeddingBatch:
    """Return float vectors in another storage type."""
    from nimbed import EmbeddingBatch

    return EmbeddingBatch.from_floats(
        floats.vectors,
        spec=embedder.spec(embedding_type=kind),
        input_type=floats.input_type,
        token_counts=floats.token_counts,
        truncated=floats.truncated,
    )


def compare(floats: EmbeddingBatch, embedder: Embedder) -> list[Way]:
    """Search a corpus for some of its own passages, left out of it, in every way.

    Args:
        floats: At least two float vectors, all of one role.
        embedder: The embedder that made them.
    """
    import numpy as np

    from nimbed.search import nearest, rescore

    step = max(2, len(floats) // _MOST_QUERIES)
    held_out = np.arange(0, len(floats), step)
    queries = floats.select(held_out)
    corpus = floats.select(np.setdiff1d(np.arange(len(floats)), held_out))
    top = min(_TOP, len(corpus))
    int8 = in_type(queries, embedder, "int8"), in_type(corpus, embedder, "int8")
    bits = in_type(queries, embedder, "ubinary"), in_type(corpus, embedder, "ubinary")

    def rescored() -> NDArray[np.intp]:
        candidates = nearest(*bits, top * OVERSAMPLING).rows
        return rescore(queries, corpus, candidates, top).rows

    truth, exact = _timed(lambda: nearest(queries, corpus, top).rows)
    ways: list[tuple[str, str, EmbeddingBatch, Callable[[], NDArray[Any]]]] = [
        ("int8", "cosine", int8[1], lambda: nearest(*int8, top).rows),
        ("ubinary", "hamming", bits[1], lambda: nearest(*bits, top).rows),
        ("ubinary, rescored", "both", bits[1], rescored),
    ]

    def way(name: str, metric: str, stored: EmbeddingBatch, recall: float, seconds: float) -> Way:
        return Way(
            name=name,
            metric=metric,
            bytes_per_vector=stored.spec.bytes_per_vector,
            recall=recall,
            milliseconds=1000 * seconds / len(queries),
        )

    found = [way("float", "cosine", corpus, 1.0, exact)]
    for name, metric, stored, search in ways:
        rows, seconds = _timed(search)
        shared = [
            np.intp(np.isin(ours, theirs).sum()) for ours, theirs in zip(rows, truth, strict=True)
        ]
        found.append(way(name, metric, stored, float(np.sum(shared)) / truth.size, seconds))
    return found


def _timed(search: Callable[[], NDArray[Any]]) -> tuple[NDArray[Any], float]:
    started = time.perf_counter()
    return search(), time.perf_counter() - started
