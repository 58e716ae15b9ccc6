"""One embedded corpus, searched for some of its own passages: what each type costs and keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimbed import Embedder, EmbeddingBatch
    from nimbed.spec import EmbeddingType
    from nimbed_tradeoff import Measured

__all__ = ["OVERSAMPLING", "compare"]

#: Candidates that Hamming fetches for every result that floats choose among them.
OVERSAMPLING = 8
_MOST_QUERIES = 250
_WAYS: tuple[tuple[EmbeddingType, int], ...] = (
    ("float", 0),
    ("int8", 0),
    ("ubinary", 0),
    ("ubinary", OVERSAMPLING),
)


def compare(floats: EmbeddingBatch, embedder: Embedder) -> tuple[Measured, ...]:
    """Search a corpus for some of its own passages, left out of it.

    Args:
        floats: At least two float vectors, all of one role.
        embedder: The embedder that made them.

    Returns:
        Float, int8, bits, and bits rescored by float.
    """
    import numpy as np

    from nimbed_tradeoff import Way, measure

    step = max(2, len(floats) // _MOST_QUERIES)
    held_out = np.arange(0, len(floats), step)
    corpus = np.setdiff1d(np.arange(len(floats)), held_out)
    ways = [
        Way(spec=embedder.spec(embedding_type=kind), oversampling=times) for kind, times in _WAYS
    ]
    return measure(floats.select(held_out), floats.select(corpus), ways)
