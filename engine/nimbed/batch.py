"""A batch of vectors with their contract, and how a model's floats become them.

An :class:`EmbeddingBatch` cannot be built from an array that does not fit its spec, nor joined
with vectors of another space. Slicing, normalising and quantising are pure functions over arrays of
shape (n, dimensions): the code of a row depends on that row alone, never on its batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import BackendError, ConfigurationError, InputError, missing_extra, name_rows
from nimbed.reports import Report
from nimbed.spec import (
    Contract,
    InputType,
    Int8Scale,
    Metric,
    VectorSpec,
    check_literal,
    require_same_space,
)

__all__ = [
    "EmbeddingBatch",
    "PartialResult",
    "all_truncated",
    "common_contract",
    "concatenate",
    "dequantize_int8",
    "normalize",
    "pack_bits",
    "pool_tokens",
    "quantize",
    "quantize_int8",
    "signs_from_bits",
    "slice_normalize",
    "still_truncated",
    "stored",
]

FloatArray = NDArray[np.float32]

_INPUT_TYPES = get_args(InputType)
_SIGNS = np.array([-1.0, 1.0], dtype=object)
# Rows at a time, so that temporaries stay in the cache: 1.5 times as fast as one pass when they
# are normalised, 1.6 times when they are packed.
_CACHED_ROWS = 2048


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class EmbeddingBatch:
    """Vectors, and everything that must be known to store and compare them.

    Attributes:
        vectors: Array of shape (n, spec.width) and dtype spec.dtype.
        spec: The contract of the vectors.
        input_type: The role that all of them were embedded for.
        token_counts: Tokens the model read for each input, prompt and special tokens included,
            after truncation; int32 of shape (n,).
        truncated: Row numbers of the inputs that were cut, ascending.
        report: What the call cost, where an embedder says so.
    """

    vectors: NDArray[Any]
    spec: VectorSpec
    input_type: InputType
    token_counts: NDArray[np.int32]
    truncated: tuple[int, ...] = ()
    report: Report | None = None

    def __post_init__(self) -> None:
        """Refuse an array that does not fit its spec."""
        if self.input_type not in _INPUT_TYPES:
            check_literal("input_type", self.input_type, InputType)
        vectors, spec = self.vectors, self.spec
        if vectors.ndim != 2 or vectors.shape[1] != spec.width:
            raise ConfigurationError(
                f"the spec promises shape (n, {spec.width}); got {vectors.shape}"
            )
        if vectors.dtype != np.dtype(spec.dtype):
            raise ConfigurationError(f"the spec promises {spec.dtype}; got {vectors.dtype}")
        if len(self.token_counts) != len(vectors):
            raise ConfigurationError(
                f"{len(vectors)} vectors but {len(self.token_counts)} token counts"
            )
        if self.truncated and not 0 <= min(self.truncated) <= max(self.truncated) < len(vectors):
            raise ConfigurationError(f"truncated rows lie outside the {len(vectors)} vectors")
        if vectors.dtype.kind == "f" and not np.isfinite(vectors).all():
            rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
            raise BackendError(f"NaN or infinity stands in {name_rows(rows)} of the vectors")

    @classmethod
    def from_floats(
        cls,
        floats: NDArray[Any],
        *,
        spec: VectorSpec,
        input_type: InputType,
        token_counts: NDArray[np.int32],
        truncated: tuple[int, ...] = (),
    ) -> EmbeddingBatch:
        """Slice, normalise and quantise pooled model output, in that order.

        Args:
            floats: Array of shape (n, at least spec.dimensions), any float dtype.
            spec: The contract to fulfil.
            input_type: The role the inputs were embedded for.
            token_counts: Tokens a row, shape (n,).
            truncated: Rows whose input was cut.

        Raises:
            BackendError: If a value is NaN or infinite.
        """
        finite = np.isfinite(floats).all(axis=1)
        if not finite.all():
            raise BackendError(
                f"the model gave NaN or infinity for {name_rows(np.flatnonzero(~finite).tolist())};"
                f" its weights are damaged, or overflow in float16 (try dtype='bfloat16' or "
                f"'float32')"
            )
        return cls(
            vectors=stored(floats, spec),
            spec=spec,
            input_type=input_type,
            token_counts=token_counts,
            truncated=truncated,
        )

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return (
            f"EmbeddingBatch({len(self)} {self.input_type} vectors, {self.spec.model}, "
            f"{self.spec.dimensions} dimensions, {self.spec.embedding_type}, {self.metric})"
        )

    @property
    def metric(self) -> Metric:
        """The only metric by which these vectors may be compared."""
        return self.spec.metric

    def bits(self) -> NDArray[np.uint8]:
        """Return packed unsigned bytes, MSB first, of shape (n, dimensions / 8).

        Raises:
            ConfigurationError: If the type is not a packed one.
        """
        if not self.spec.packed:
            raise ConfigurationError(
                f"{self.spec.embedding_type} vectors have no bits; "
                f"embed with embedding_type='ubinary' or 'binary'"
            )
        stored: NDArray[np.uint8] = self.vectors.view(np.uint8)
        return stored if self.spec.embedding_type == "ubinary" else stored ^ np.uint8(0x80)

    def signs(self) -> NDArray[np.float32]:
        """Return +1 and -1 as float32 of shape (n, dimensions), unpacked.

        Their dot product ranks exactly as the Hamming distance of the bits does.
        """
        return signs_from_bits(self.bits())

    def floats(self) -> NDArray[np.float32]:
        """Return the vectors as float32 of shape (n, dimensions), dequantised.

        Floats are returned unchanged, int8 and uint8 as the value of their level, packed types as
        ±1/√dimensions.
        """
        if self.spec.embedding_type == "float":
            return self.vectors
        if self.spec.packed:
            return self.signs() / np.float32(np.sqrt(self.spec.dimensions))
        return _dequantized(self.vectors, self.spec)

    def lists(self) -> list[list[float]]:
        """Return lists of Python floats, for stores and caches that take nothing else.

        Packed types become ±1 a dimension, whose dot product and cosine rank like the Hamming
        distance; the others are as in :meth:`floats`. Equal bits and levels share one object:
        half the time and a quarter of the memory of as many floats.
        """
        if self.spec.packed:
            return _filled(np.unpackbits(self.bits(), axis=1), _SIGNS)
        if self.spec.int8_step is None:
            return _filled(self.vectors)
        codes = np.arange(256, dtype=np.uint8).view(self.vectors.dtype)
        levels = np.array(_dequantized(codes, self.spec).tolist(), dtype=object)
        return _filled(self.vectors.view(np.uint8), levels)

    def select(self, rows: Sequence[int] | NDArray[np.intp] | slice) -> EmbeddingBatch:
        """Return the batch of the given rows, in the given order."""
        picked = np.arange(len(self))[rows]
        return EmbeddingBatch(
            vectors=self.vectors[picked],
            spec=self.spec,
            input_type=self.input_type,
            token_counts=self.token_counts[picked],
            truncated=still_truncated(self.truncated, picked),
        )

    def split(self, lengths: Sequence[int]) -> list[EmbeddingBatch]:
        """Return consecutive parts, which share no memory with the whole or with each other.

        The parts are not validated again, since a scheduler splits a batch among many callers of
        one input each.

        Args:
            lengths: Rows of each part; together all rows.

        Raises:
            ConfigurationError: If the lengths do not add up to the number of rows.
        """
        if sum(lengths) != len(self):
            raise ConfigurationError(
                f"a batch of {len(self)} rows cannot be split into parts of {sum(lengths)} rows "
                f"in all"
            )
        parts: list[EmbeddingBatch] = []
        start = 0
        for length in lengths:
            stop = start + length
            parts.append(self._part(start, stop))
            start = stop
        return parts

    def _part(self, start: int, stop: int) -> EmbeddingBatch:
        part = object.__new__(EmbeddingBatch)
        give = object.__setattr__
        give(part, "vectors", self.vectors[start:stop].copy())
        give(part, "spec", self.spec)
        give(part, "input_type", self.input_type)
        give(part, "token_counts", self.token_counts[start:stop].copy())
        cut = self.truncated
        give(part, "truncated", tuple([r - start for r in cut if start <= r < stop]) if cut else ())
        give(part, "report", self.report)
        return part


def _filled(rows: NDArray[Any], objects: NDArray[Any] | None = None) -> list[list[float]]:
    """Return the rows as lists: their numbers, or the objects that their numbers stand for."""
    # Empty lists first: creating thousands of lists triggers the garbage collector again and again,
    # and each time it visits every number in the new ones (measured: 13 of 45 us a row of 1,024).
    # Filling an existing list triggers nothing.
    lists: list[list[float]] = [[] for _ in range(len(rows))]
    for filled, row in zip(lists, rows, strict=True):
        filled.extend((row if objects is None else objects.take(row)).tolist())
    return lists


def _dequantized(codes: NDArray[Any], spec: VectorSpec) -> NDArray[np.float32]:
    signed = codes if spec.embedding_type == "int8" else (codes ^ np.uint8(0x80)).view(np.int8)
    return dequantize_int8(signed, step=spec.int8_step or 0.0)


V = TypeVar("V")


@dataclass(frozen=True, eq=False, slots=True)
class PartialResult(Generic[V]):
    """What a call had finished when it failed, so that it need not be paid for again.

    Attributes:
        rows: The caller's row numbers of the finished inputs, ascending.
        batch: Their vectors, in that order: of ``embed`` an :class:`EmbeddingBatch`, whose
            ``vectors[i]`` belongs to ``rows[i]``; of ``embed_kinds`` :class:`EmbeddingKinds`.
    """

    rows: tuple[int, ...]
    batch: V


def concatenate(batches: Sequence[EmbeddingBatch]) -> EmbeddingBatch:
    """Join batches of one space and one role, in order.

    Raises:
        InputError: If there is nothing to join.
        SpaceMismatchError: If two batches have different fingerprints.
        ConfigurationError: If queries were about to be joined with passages.
    """
    common_contract(batches)
    return EmbeddingBatch(
        vectors=np.concatenate([batch.vectors for batch in batches]),
        spec=batches[0].spec,
        input_type=batches[0].input_type,
        token_counts=np.concatenate([batch.token_counts for batch in batches]),
        truncated=all_truncated(batches),
    )


class _Batch(Protocol):
    """What batches of every kind of vector have."""

    @property
    def spec(self) -> Contract: ...
    @property
    def input_type(self) -> InputType: ...
    @property
    def truncated(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...


def common_contract(batches: Sequence[_Batch]) -> None:
    """Raise as :func:`concatenate` does unless batches of any kind have one space and role."""
    if not batches:
        raise InputError("there are no batches to concatenate")
    first = batches[0]
    for batch in batches:
        require_same_space(first.spec, batch.spec, doing="concatenate")
        if batch.input_type != first.input_type:
            raise ConfigurationError(
                f"cannot concatenate {first.input_type} vectors with {batch.input_type} vectors"
            )


def all_truncated(batches: Sequence[_Batch]) -> tuple[int, ...]:
    """Return the rows of the whole that were truncated in its parts."""
    starts = itertools.accumulate(map(len, batches), initial=0)
    return tuple(
        start + row
        for start, batch in zip(starts, batches, strict=False)
        for row in batch.truncated
    )


def still_truncated(truncated: tuple[int, ...], picked: NDArray[np.intp]) -> tuple[int, ...]:
    """Return which of the picked rows were truncated, by their new numbers."""
    cut = set(truncated)
    return tuple(new for new, old in enumerate(picked.tolist()) if old in cut)


def normalize(vectors: NDArray[Any]) -> FloatArray:
    """Return the rows at unit length, as float32; a zero row stays zero.

    Args:
        vectors: Array of shape (n, dimensions), of any float dtype.
    """
    floats = np.asarray(vectors, dtype=np.float32)
    unit: FloatArray = np.empty(floats.shape, np.float32)
    for start in range(0, len(floats), _CACHED_ROWS):
        part = floats[start : start + _CACHED_ROWS]
        # In float64 a row of huge float32 components does not overflow to a norm of infinity.
        norms = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        out = unit[start : start + _CACHED_ROWS]
        np.multiply(part, scale[:, None], out=out, casting="same_kind")
    return unit


def slice_normalize(
    vectors: NDArray[Any], dimensions: int, *, normalized: bool = True
) -> FloatArray:
    """Keep the first ``dimensions`` of each row, then normalise it.

    In this order, since a slice of a unit vector (Matryoshka) is not a unit vector. Not
    ``normalized`` are the vectors of a model whose metric counts their length.
    """
    width = vectors.shape[1]
    if not 1 <= dimensions <= width:
        raise ConfigurationError(f"cannot take {dimensions} dimensions of {width}")
    sliced = vectors[:, :dimensions]
    return normalize(sliced) if normalized else np.asarray(sliced, dtype=np.float32)


def quantize_int8(floats: NDArray[Any], *, scale: Int8Scale, step: float) -> NDArray[np.int8]:
    """Return int8 codes whose levels are ``step`` apart.

    ``nim`` truncates toward zero, which is the best fit to NIM's published sample
    (0.0125, -0.0127, 0.0102 gives 1, -1, 1); ``even`` rounds to the nearest level.
    """
    # float32 division by a float64 step would round twice; in float64 the codes are exact.
    levels = np.asarray(floats, dtype=np.float64) / step
    rounded = np.trunc(levels) if scale == "nim" else np.rint(levels)
    return np.clip(rounded, -127, 127).astype(np.int8)


def dequantize_int8(codes: NDArray[np.int8], *, step: float) -> FloatArray:
    """Return the float value of each int8 level."""
    return (codes * np.float32(step)).astype(np.float32)


def pack_bits(floats: NDArray[Any]) -> NDArray[np.uint8]:
    """Return one bit a dimension, ``x > 0``, the first dimension in the highest bit of byte 0.

    Args:
        floats: Array of shape (n, dimensions), dimensions a multiple of 8.

    Returns:
        Unsigned bytes of shape (n, dimensions / 8).
    """
    rows, dimensions = floats.shape
    if dimensions % 8:
        raise ConfigurationError(
            f"only multiples of 8 dimensions pack into bytes; got {dimensions}"
        )
    packed = np.empty((rows, dimensions // 8), dtype=np.uint8)
    for start in range(0, rows, _CACHED_ROWS):
        block = floats[start : start + _CACHED_ROWS]
        packed[start : start + _CACHED_ROWS] = np.packbits(block > 0, axis=1)
    return packed


def signs_from_bits(bits: NDArray[np.uint8]) -> FloatArray:
    """Return +1 and -1 as float32 of shape (n, 8 * width) for packed unsigned bytes."""
    signs = np.unpackbits(bits, axis=1).astype(np.float32)
    signs *= 2.0
    signs -= 1.0
    return signs


def quantize(floats: FloatArray, spec: VectorSpec) -> NDArray[Any]:
    """Convert vectors to the type and width of a spec.

    Args:
        floats: float32 rows of shape (n, spec.dimensions), of unit length if the spec says so.
        spec: The contract to fulfil.

    Returns:
        Array of shape (n, spec.width) and dtype spec.dtype.

    Raises:
        ConfigurationError: If the rows are not spec.dimensions wide.
    """
    if floats.ndim != 2 or floats.shape[1] != spec.dimensions:
        raise ConfigurationError(
            f"the spec wants rows of {spec.dimensions} dimensions; got shape {floats.shape}"
        )
    if spec.embedding_type == "float":
        return np.ascontiguousarray(floats, dtype=np.float32)
    if spec.packed:
        bits = pack_bits(floats)
        # Offset by 128, not a cast: the convention of every public implementation.
        return bits if spec.embedding_type == "ubinary" else (bits ^ 0x80).view(np.int8)
    if spec.int8_scale is None or spec.int8_step is None:
        raise ConfigurationError(f"{spec.embedding_type} needs an int8 scale in its spec")
    codes = quantize_int8(floats, scale=spec.int8_scale, step=spec.int8_step)
    return codes if spec.embedding_type == "int8" else (codes.view(np.uint8) ^ 0x80)


def stored(floats: NDArray[Any], spec: VectorSpec) -> NDArray[Any]:
    """Return a model's floats as a spec stores them: sliced, normalised and quantised.

    Raises:
        ConfigurationError: If the rows are narrower than the spec.
    """
    sliced = slice_normalize(floats, spec.dimensions, normalized=spec.normalized)
    return quantize(sliced, spec)


def pool_tokens(unit: FloatArray, factor: float, *, protected: int = 1) -> FloatArray:
    """Return fewer vectors for the tokens of one text: the means of those that are alike.

    Ward's hierarchical clustering of cosine distances, down to one cluster for ``factor`` tokens,
    as Clavié et al. 2024 do it (arXiv 2409.14683); the first token, in most models ``[CLS]``, stays
    alone, as in PyLate and in sentence-transformers' ``HierarchicalTokenPooling``.

    Takes memory for some 14 bytes a pair of tokens, and time for each pair.

    Args:
        unit: Unit vectors of shape (tokens, dimensions).
        factor: How many tokens share a vector on average; 1 for no pooling.
        protected: How many of the first tokens stay alone.

    Returns:
        Array of shape (at least 1 and at most tokens, dimensions), not normalised again.

    Raises:
        MissingExtraError: If SciPy, whose clustering it is, is not installed.
    """
    kept, rest = unit[:protected], unit[protected:]
    clusters = max(1, int(len(rest) // factor))
    if clusters >= len(rest):
        return unit
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise missing_extra("pooling", needs="scipy") from error
    distances = np.clip(1 - rest @ rest.T, 0, 2)
    tree = linkage(squareform(distances, checks=False), method="ward")
    _, cluster = np.unique(fcluster(tree, t=clusters, criterion="maxclust"), return_inverse=True)
    sums = np.zeros((cluster.max() + 1, unit.shape[1]), np.float32)
    np.add.at(sums, cluster, rest)
    return np.concatenate([kept, sums / np.bincount(cluster)[:, None].astype(np.float32)])
