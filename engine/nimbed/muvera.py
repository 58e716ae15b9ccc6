"""MUVERA: fixed-dimensional encodings, one dense vector in place of a text's multi-vector.

Dhulipala et al. 2024, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings" (arXiv
2405.19504): the dot product of a query's encoding and a passage's estimates their MaxSim, so that
any store of dense vectors finds candidates, whose order MaxSim then decides.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.kinds import MultiVectorBatch, require_comparable
from nimbed.spec import InputType, MultiVectorSpec, VectorSpec, check_size

__all__ = ["Muvera"]

# Cells of space a repetition: 2 to this power. The paper goes to 2^6; a cell without a passage's
# token holds a copy of another's vector, so that more cells than tokens add nothing.
_MOST_PLANES = 16


class _Draws(NamedTuple):
    """The random numbers of an encoding.

    Attributes:
        planes: Normals of the planes that cut space into cells: (repetitions, dimensions, ksim).
        signs: ±1 / √dprojections, (repetitions, dimensions, dprojections); None to project nothing.
        order: The encoding's dimensions, in the order of the sums they go into, where it is cut.
        starts: Where each sum begins in that order.
        flips: ±1 a dimension, in that order.
    """

    planes: NDArray[np.float32]
    signs: NDArray[np.float32] | None
    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    flips: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Muvera:
    """Encodes multi-vectors as dense vectors; the parameters are named as Weaviate names them.

    Each repetition cuts space into 2^ksim cells by random planes (SimHash). A query's encoding has
    for each cell the sum of its tokens' vectors there, a passage's their mean, or where it has
    none, the vector of the token whose cell differs in the fewest planes, the first of several.
    Each is projected onto ``dprojections`` dimensions by a matrix of random signs, and all are
    joined and divided by the root of ``repetitions``, so that a dot product estimates the MaxSim.

    The same parameters give the same planes and signs in every process and version: they are drawn
    from numpy's ``RandomState``, whose streams are frozen (NEP 19); those of ``Generator`` are not.

    Attributes:
        ksim: Planes a repetition.
        dprojections: Dimensions a cell; None for the tokens' own.
        repetitions: How often space is cut anew.
        dimensions: Length of the vector, to which a count sketch brings it down; None for all
            2^ksim · dprojections · repetitions. Stores have limits: pgvector indexes 4,000.
        seed: Of the random numbers.

    Raises:
        ConfigurationError: If a parameter is out of its range.
    """

    ksim: int = 4
    dprojections: int | None = 16
    repetitions: int = 10
    dimensions: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters that no encoding has."""
        check_size("ksim", self.ksim)
        check_size("repetitions", self.repetitions)
        if self.ksim > _MOST_PLANES:
            raise ConfigurationError(f"ksim must be at most {_MOST_PLANES}; got {self.ksim}")
        for name in ("dprojections", "dimensions"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigurationError(f"seed must be an integer; got {self.seed!r}")
        if not 0 <= self.seed < 2**32:
            raise ConfigurationError(f"seed must lie between 0 and 2^32 - 1; got {self.seed}")

    def spec(self, spec: MultiVectorSpec) -> VectorSpec:
        """Return the contract of the encodings of multi-vectors of a contract; metric ``dot``.

        Raises:
            ConfigurationError: If the parameters do not suit such vectors.
        """
        if self.dprojections is not None and self.dprojections > spec.dimensions:
            raise ConfigurationError(
                f"dprojections is {self.dprojections}, more than the {spec.dimensions} dimensions "
                f"of {spec.model}'s tokens; use at most as many, or None to project nothing"
            )
        full = 2**self.ksim * (self.dprojections or spec.dimensions) * self.repetitions
        if self.dimensions is not None and self.dimensions > full:
            raise ConfigurationError(
                f"dimensions is {self.dimensions}, but the encoding has {full} (2^ksim cells x "
                f"dprojections x repetitions); use at most as many, or None for all"
            )
        return VectorSpec.of(
            model=spec.model,
            revision=spec.revision,
            dimensions=self.dimensions or full,
            metric="dot",
            query_prompt=spec.query_prompt,
            passage_prompt=spec.passage_prompt,
            encoding=(
                f"muvera ksim={self.ksim} dprojections={self.dprojections} "
                f"repetitions={self.repetitions} seed={self.seed} of {spec.dimensions} dimensions, "
                f"{spec.token_type}, pool_factor={spec.pool_factor}"
            ),
        )

    def encode(
        self, batch: MultiVectorBatch, *, passages: MultiVectorSpec | None = None
    ) -> EmbeddingBatch:
        """Return one dense vector a text, which depends on that text alone.

        Args:
            batch: Queries or passages; the two roles are encoded differently.
            passages: The contract of the passages that queries are compared with, where those are
                quantised or pooled and the queries are not.

        Raises:
            ConfigurationError: If the parameters do not suit such vectors, or the passages'
                contract is given for passages.
            SpaceMismatchError: If the queries cannot be compared with such passages.
        """
        contract = batch.spec
        if passages is not None:
            if batch.input_type != "query":
                raise ConfigurationError("passages= is for queries; passages have their own spec")
            require_comparable(contract, passages)
            contract = passages
        spec = self.spec(contract)
        draws = _drawn(self, contract.dimensions)
        vectors = np.empty((len(batch), spec.dimensions), np.float32)
        ends = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
        for row, (start, stop) in enumerate(ends):
            tokens = batch.floats(slice(start, stop))
            vectors[row] = _cut(_encoded(tokens, draws, batch.input_type), draws)
        return EmbeddingBatch(
            vectors=vectors,
            spec=spec,
            input_type=batch.input_type,
            token_counts=batch.token_counts,
            truncated=batch.truncated,
        )


@functools.lru_cache(maxsize=8)
def _drawn(encoder: Muvera, dimensions: int) -> _Draws:
    random = np.random.RandomState(encoder.seed)
    shape = (encoder.repetitions, dimensions)
    planes = random.standard_normal((*shape, encoder.ksim)).astype(np.float32)
    signs = None
    if encoder.dprojections is not None:
        drawn = 2 * random.randint(0, 2, (*shape, encoder.dprojections)) - 1
        signs = (drawn / np.sqrt(encoder.dprojections)).astype(np.float32)
    full = 2**encoder.ksim * (encoder.dprojections or dimensions) * encoder.repetitions
    kept = encoder.dimensions or full
    if kept == full:
        order = starts = np.arange(full)
        return _Draws(planes, signs, order, starts, np.ones(full, np.float32))
    # Each dimension is added, with a random sign, to one of those that are kept: every one of them
    # gets as many, but for one.
    order = random.permutation(full)
    starts = np.arange(kept) * full // kept
    flips = (2 * random.randint(0, 2, full) - 1).astype(np.float32)
    return _Draws(planes, signs, order, starts, flips)


def _encoded(
    tokens: NDArray[np.float32], draws: _Draws, input_type: InputType
) -> NDArray[np.float32]:
    """Return the joined cells of one text's tokens, of shape (repetitions * cells * width,)."""
    repetitions, _, planes = draws.planes.shape
    width = tokens.shape[1] if draws.signs is None else draws.signs.shape[2]
    cells = np.arange(2**planes)
    out = np.empty((repetitions, len(cells), width), np.float32)
    for place in range(repetitions):
        above = tokens @ draws.planes[place] > 0
        cell = above @ (1 << np.arange(planes)[::-1])
        vectors = tokens if draws.signs is None else tokens @ draws.signs[place]
        inside = cells[:, None] == cell
        out[place] = inside.astype(np.float32) @ vectors
        if input_type == "query":
            continue
        counts = inside.sum(axis=1)
        empty = np.flatnonzero(counts == 0)
        nearest = np.bitwise_count(cells[empty, None] ^ cell).argmin(axis=1)
        out[place, empty] = vectors[nearest]
        out[place] /= np.maximum(counts, 1)[:, None]
    return out.ravel() / np.float32(np.sqrt(repetitions))


def _cut(full: NDArray[np.float32], draws: _Draws) -> NDArray[np.float32]:
    if len(draws.starts) == len(full):
        return full
    sums: NDArray[np.float32] = np.add.reduceat(full[draws.order] * draws.flips, draws.starts)
    return sums
