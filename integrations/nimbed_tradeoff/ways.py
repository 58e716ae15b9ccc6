"""The ways to store and search one model's vectors: every type at every size, rescored or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nimbed.batch import EmbeddingBatch
from nimbed.embedder import Embedder
from nimbed.spec import EmbeddingType, VectorSpec

__all__ = ["OVERSAMPLING", "TOP", "Way", "derive", "every_way"]

#: Results of a search; recall and nDCG look at as many.
TOP = 10
#: Candidates fetched for every result, which the full float then ranks.
OVERSAMPLING = (4, 8)

# Not binary: it holds the same bits as ubinary, hence the same distances and the same size.
_TYPES: tuple[EmbeddingType, ...] = ("float", "int8", "uint8", "ubinary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to store vectors and to search them.

    Attributes:
        spec: What the index holds.
        oversampling: Candidates fetched for every result and ranked again by the full float
            vector; 0 takes the results as the index gives them.
    """

    spec: VectorSpec
    oversampling: int = 0

    @property
    def candidates(self) -> int:
        """How many rows the index returns for a query."""
        return TOP * max(1, self.oversampling)

    @property
    def label(self) -> str:
        """The way in words."""
        stored = f"{self.spec.embedding_type} at {self.spec.dimensions} dimensions"
        if not self.oversampling:
            return stored
        return f"{stored}, the best {self.candidates} rescored by float"


def every_way(embedder: Embedder, dimensions: Sequence[int] | None = None) -> tuple[Way, ...]:
    """Return every way to store the vectors of a model, the full float first.

    Args:
        embedder: Says which sizes the model offers.
        dimensions: Only these sizes, beside the full float to compare with; None takes all.

    Raises:
        ConfigurationError: If the model does not offer a size.
    """
    full = embedder.spec()
    sizes = embedder.card.sizes if dimensions is None else tuple(dimensions)
    ways = [Way(spec=full)]
    for size in sorted(set(sizes), reverse=True):
        floats = embedder.spec(dimensions=size)
        for kind in _TYPES:
            if floats.dimensions % 8 and kind == "ubinary":
                continue  # the bits would not fill whole bytes
            spec = embedder.spec(embedding_type=kind, dimensions=size)
            if spec != full:
                ways += [Way(spec=spec, oversampling=times) for times in (0, *OVERSAMPLING)]
    return tuple(ways)


def derive(floats: EmbeddingBatch, spec: VectorSpec) -> EmbeddingBatch:
    """Slice, normalise and quantise full float vectors into those of another spec.

    The result is what ``embed`` gives with that type and size, to the last bit of a float.

    Raises:
        ConfigurationError: If the spec has more dimensions than the floats.
    """
    if spec == floats.spec:
        return floats
    return EmbeddingBatch.from_floats(
        floats.vectors,
        spec=spec,
        input_type=floats.input_type,
        token_counts=floats.token_counts,
        truncated=floats.truncated,
    )
