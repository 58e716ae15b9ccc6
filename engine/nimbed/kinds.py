"""Batches of sparse vectors and of multi-vectors, with their contracts.

Siblings of :class:`nimbed.EmbeddingBatch`: neither can be built from arrays that do not fit its
spec, nor joined with vectors of another space. The rows of both have different lengths, so that
they lie end to end in one array, and ``offsets`` says where each begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import (
    EmbeddingBatch,
    all_truncated,
    common_contract,
    dequantize_int8,
    normalize,
    pack_bits,
    pool_tokens,
    quantize_int8,
    signs_from_bits,
    still_truncated,
)
from nimbed.errors import BackendError, ConfigurationError, name_rows
from nimbed.spec import (
    InputType,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
    check_literal,
    require_same_space,
)

__all__ = ["EmbeddingKinds", "MultiVectorBatch", "SparseBatch", "require_comparable"]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class SparseBatch:
    """Sparse vectors in CSR arrays: the weights of the tokens that each text is about.

    A text that no token stands for has an empty vector, whose product with every other is 0.

    Attributes:
        ids: Token ids of all vectors, end to end, ascending within each; int32 of shape (m,).
        weights: Positive float32, one an id.
        offsets: Where each vector begins in them, and where the last ends; int64, (n + 1,).
        spec: The contract of the vectors.
        input_type: The role that all of them were embedded for.
        token_counts: Tokens the model read for each input; int32 of shape (n,).
        truncated: Row numbers of the inputs that were cut, ascending.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]
    spec: SparseSpec
    input_type: InputType
    token_counts: NDArray[np.int32]
    truncated: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit the spec or each other."""
        check_literal("input_type", self.input_type, InputType)
        _check_dtypes(ids=(self.ids, "int32"), weights=(self.weights, "float32"))
        if self.ids.ndim != 1 or self.ids.shape != self.weights.shape:
            raise ConfigurationError(
                f"expected one weight an id; got shapes {self.ids.shape} and {self.weights.shape}"
            )
        _check_rows(self.offsets, len(self.ids), self.token_counts, self.truncated)
        if len(self.ids) == 0:
            return
        if not (np.isfinite(self.weights) & (self.weights > 0)).all():
            bad = ~(np.isfinite(self.weights) & (self.weights > 0))
            raise BackendError(
                f"a weight that is not positive and finite stands in "
                f"{name_rows(_rows_of(self.offsets, np.flatnonzero(bad)))} of the vectors"
            )
        if self.ids.min() < 0 or self.ids.max() >= self.spec.dimensions:
            raise ConfigurationError(
                f"token ids lie between {self.ids.min()} and {self.ids.max()}; the vocabulary has "
                f"{self.spec.dimensions}"
            )
        rising = np.diff(self.ids) > 0
        inner = self.offsets[1:-1]
        rising[inner[(inner > 0) & (inner < len(self.ids))] - 1] = True  # from row to row
        if not rising.all():
            rows = _rows_of(self.offsets, np.flatnonzero(~rising) + 1)
            raise ConfigurationError(f"token ids do not ascend in {name_rows(rows)} of the vectors")
        if self.spec.max_active is not None and (most := int(np.diff(self.offsets).max())) > (
            self.spec.max_active
        ):
            raise ConfigurationError(
                f"the spec promises at most {self.spec.max_active} tokens a vector; one has {most}"
            )

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[tuple[NDArray[Any], NDArray[Any]]],
        *,
        spec: SparseSpec,
        input_type: InputType,
        token_counts: NDArray[np.int32],
        truncated: tuple[int, ...] = (),
    ) -> SparseBatch:
        """Join the (ids, weights) of single texts, of each the largest ``spec.max_active``.

        Equal weights at the border go to the lower id.
        """
        kept = [_largest(ids, weights, spec.max_active) for ids, weights in rows]
        return cls(
            ids=_joined([ids for ids, _ in kept], np.int32),
            weights=_joined([weights for _, weights in kept], np.float32),
            offsets=_offsets([len(ids) for ids, _ in kept]),
            spec=spec,
            input_type=input_type,
            token_counts=token_counts,
            truncated=truncated,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return (
            f"SparseBatch({len(self)} {self.input_type} vectors of {len(self.ids)} weights, "
            f"{self.spec.model}, dot)"
        )

    def rows(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Yield the ids and weights of each vector, as views."""
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.ids[start:stop], self.weights[start:stop]

    def dicts(self) -> list[dict[int, float]]:
        """Return each vector as token id and weight, for stores that take mappings."""
        return [dict(zip(i.tolist(), w.tolist(), strict=True)) for i, w in self.rows()]

    def select(self, rows: Sequence[int] | NDArray[np.intp] | slice) -> SparseBatch:
        """Return the batch of the given rows, in the given order."""
        picked, elements, offsets = _picked(self.offsets, rows)
        return SparseBatch(
            ids=self.ids[elements],
            weights=self.weights[elements],
            offsets=offsets,
            spec=self.spec,
            input_type=self.input_type,
            token_counts=self.token_counts[picked],
            truncated=still_truncated(self.truncated, picked),
        )

    @classmethod
    def concatenate(cls, batches: Sequence[SparseBatch]) -> SparseBatch:
        """Join batches of one space and one role, in order.

        Raises:
            InputError: If there is nothing to join.
            SpaceMismatchError: If two batches have different fingerprints.
            ConfigurationError: If queries were about to be joined with passages.
        """
        common_contract(batches)
        return cls(
            ids=np.concatenate([batch.ids for batch in batches]),
            weights=np.concatenate([batch.weights for batch in batches]),
            offsets=_offsets(np.concatenate([np.diff(batch.offsets) for batch in batches])),
            spec=batches[0].spec,
            input_type=batches[0].input_type,
            token_counts=np.concatenate([batch.token_counts for batch in batches]),
            truncated=all_truncated(batches),
        )


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class MultiVectorBatch:
    """For each text one vector a token, to be compared by MaxSim.

    Attributes:
        vectors: The tokens' vectors of all texts, end to end; array of shape (m, spec.width) and
            dtype spec.dtype.
        offsets: Where each text begins in it, and where the last ends; int64, (n + 1,). Every text
            has a vector at least.
        spec: The contract of the vectors.
        input_type: The role that all of them were embedded for.
        token_counts: Tokens the model read for each input; int32 of shape (n,).
        truncated: Row numbers of the inputs that were cut, ascending.
    """

    vectors: NDArray[Any]
    offsets: NDArray[np.int64]
    spec: MultiVectorSpec
    input_type: InputType
    token_counts: NDArray[np.int32]
    truncated: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit the spec or each other."""
        check_literal("input_type", self.input_type, InputType)
        if self.vectors.ndim != 2 or self.vectors.shape[1] != self.spec.width:
            raise ConfigurationError(
                f"the spec promises shape (m, {self.spec.width}); got {self.vectors.shape}"
            )
        _check_dtypes(vectors=(self.vectors, self.spec.dtype))
        _check_rows(self.offsets, len(self.vectors), self.token_counts, self.truncated)
        lengths = np.diff(self.offsets)
        if not lengths.all():
            raise ConfigurationError(
                f"{name_rows(np.flatnonzero(lengths == 0).tolist())} of the batch has no vectors"
            )
        if self.vectors.dtype.kind == "f" and not np.isfinite(self.vectors).all():
            bad = np.flatnonzero(~np.isfinite(self.vectors).all(axis=1))
            raise BackendError(
                f"NaN or infinity stands in {name_rows(_rows_of(self.offsets, bad))} of the vectors"
            )

    @classmethod
    def from_floats(
        cls,
        rows: Sequence[NDArray[Any]],
        *,
        spec: MultiVectorSpec,
        input_type: InputType,
        token_counts: NDArray[np.int32],
        truncated: tuple[int, ...] = (),
    ) -> MultiVectorBatch:
        """Normalise, pool and quantise the token vectors of single texts, and join them.

        Args:
            rows: For each text an array of shape (tokens, spec.dimensions), any float dtype.
            spec: The contract to fulfil; its ``pool_factor`` holds for passages alone.
            input_type: The role the inputs were embedded for.
            token_counts: Tokens a row, shape (n,).
            truncated: Rows whose input was cut.

        Raises:
            MissingExtraError: If tokens are to be pooled, and SciPy is not installed.
        """
        if spec.pool_factor > 1 and input_type == "passage":
            rows = [pool_tokens(normalize(row), spec.pool_factor) for row in rows]
        empty = np.empty((0, spec.dimensions), np.float32)
        return cls(
            vectors=_stored(normalize(np.concatenate([empty, *rows])), spec),
            offsets=_offsets([len(row) for row in rows]),
            spec=spec,
            input_type=input_type,
            token_counts=token_counts,
            truncated=truncated,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return (
            f"MultiVectorBatch({len(self)} {self.input_type} texts of {len(self.vectors)} vectors, "
            f"{self.spec.model}, {self.spec.dimensions} dimensions, {self.spec.token_type}, maxsim)"
        )

    def rows(self) -> Iterator[NDArray[Any]]:
        """Yield the stored vectors of each text, as views of shape (tokens, spec.width)."""
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.vectors[start:stop]

    def floats(self, tokens: slice = slice(None)) -> NDArray[np.float32]:
        """Return the vectors as float32 of shape (m, dimensions), dequantised.

        int8 as the value of its level, bits as ±1/√dimensions.

        Args:
            tokens: Which of the vectors; all of them.
        """
        vectors = self.vectors[tokens]
        if self.spec.packed:
            return signs_from_bits(vectors) / np.float32(np.sqrt(self.spec.dimensions))
        if self.spec.int8_step is not None:
            return dequantize_int8(vectors, step=self.spec.int8_step)
        return vectors.astype(np.float32, copy=False)

    def compressed(self, token_type: TokenType, *, pool_factor: int = 1) -> MultiVectorBatch:
        """Return what embedding with these options gives, of float vectors at hand.

        Args:
            token_type: How a dimension of a token's vector is stored.
            pool_factor: How many tokens of a passage share a vector on average.

        Raises:
            ConfigurationError: If the batch is compressed already.
            MissingExtraError: If tokens are to be pooled, and SciPy is not installed.
        """
        if self.spec.token_type != "float" or self.spec.pool_factor != 1:
            raise ConfigurationError(
                f"only float vectors of single tokens are compressed; these are "
                f"{self.spec.token_type} with pool_factor {self.spec.pool_factor}"
            )
        return MultiVectorBatch.from_floats(
            list(self.rows()),
            spec=self.spec.stored_as(token_type, pool_factor=pool_factor),
            input_type=self.input_type,
            token_counts=self.token_counts,
            truncated=self.truncated,
        )

    def lists(self) -> list[list[list[float]]]:
        """Return for each text its dequantised vectors as lists of Python floats."""
        floats = self.floats()
        ends = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return [floats[start:stop].tolist() for start, stop in ends]

    def select(self, rows: Sequence[int] | NDArray[np.intp] | slice) -> MultiVectorBatch:
        """Return the batch of the given rows, in the given order."""
        picked, elements, offsets = _picked(self.offsets, rows)
        return MultiVectorBatch(
            vectors=self.vectors[elements],
            offsets=offsets,
            spec=self.spec,
            input_type=self.input_type,
            token_counts=self.token_counts[picked],
            truncated=still_truncated(self.truncated, picked),
        )

    @classmethod
    def concatenate(cls, batches: Sequence[MultiVectorBatch]) -> MultiVectorBatch:
        """Join batches of one space and one role; see :meth:`SparseBatch.concatenate`."""
        common_contract(batches)
        return cls(
            vectors=np.concatenate([batch.vectors for batch in batches]),
            offsets=_offsets(np.concatenate([np.diff(batch.offsets) for batch in batches])),
            spec=batches[0].spec,
            input_type=batches[0].input_type,
            token_counts=np.concatenate([batch.token_counts for batch in batches]),
            truncated=all_truncated(batches),
        )


def require_comparable(asked: MultiVectorSpec, stored: MultiVectorSpec) -> None:
    """Raise SpaceMismatchError unless queries of a contract may be compared with passages.

    A query's tokens are never pooled, and its floats may be compared with what passages' floats
    were stored as; see :func:`nimbed.search.distances`.
    """
    kind = stored.token_type if asked.token_type == "float" else asked.token_type
    read = asked.stored_as(kind, pool_factor=stored.pool_factor)
    require_same_space(read, stored, doing="compare")


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class EmbeddingKinds:
    """What one forward pass gave: a batch for each kind that was asked for, else None.

    Attributes:
        dense: One vector a text.
        sparse: The weights of its tokens.
        multi: One vector a token.
    """

    dense: EmbeddingBatch | None = None
    sparse: SparseBatch | None = None
    multi: MultiVectorBatch | None = None

    @property
    def batches(self) -> tuple[EmbeddingBatch | SparseBatch | MultiVectorBatch, ...]:
        """Those that were asked for."""
        return tuple(batch for batch in (self.dense, self.sparse, self.multi) if batch is not None)

    @property
    def token_counts(self) -> NDArray[np.int32]:
        """Tokens the model read for each input; int32 of shape (n,)."""
        return self.batches[0].token_counts

    @property
    def truncated(self) -> tuple[int, ...]:
        """Row numbers of the inputs that were cut, ascending."""
        return self.batches[0].truncated


def _stored(unit: NDArray[np.float32], spec: MultiVectorSpec) -> NDArray[Any]:
    if spec.packed:
        return pack_bits(unit)
    if spec.int8_step is not None:
        return quantize_int8(unit, scale="even", step=spec.int8_step)
    return unit.astype(spec.dtype, copy=False)


def _largest(
    ids: NDArray[Any], weights: NDArray[Any], most: int | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    if most is None or len(ids) <= most:
        return ids, weights
    kept = np.sort(np.argsort(-weights, kind="stable")[:most])
    return ids[kept], weights[kept]


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts], dtype=dtype, casting="same_kind")


def _offsets(lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)], dtype=np.int64)


def _check_dtypes(**arrays: tuple[NDArray[Any], str]) -> None:
    for name, (array, dtype) in arrays.items():
        if array.dtype != np.dtype(dtype):
            raise ConfigurationError(f"{name} must be {dtype}; got {array.dtype}")


def _check_rows(
    offsets: NDArray[np.int64],
    elements: int,
    token_counts: NDArray[np.int32],
    truncated: tuple[int, ...],
) -> None:
    _check_dtypes(offsets=(offsets, "int64"))
    whole = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == elements
    if not whole or (np.diff(offsets) < 0).any():
        raise ConfigurationError(f"offsets must ascend from 0 to {elements}; got {offsets}")
    if len(token_counts) != len(offsets) - 1:
        raise ConfigurationError(f"{len(offsets) - 1} vectors but {len(token_counts)} token counts")
    if truncated and not 0 <= min(truncated) <= max(truncated) < len(token_counts):
        raise ConfigurationError(f"truncated rows lie outside the {len(token_counts)} vectors")


def _rows_of(offsets: NDArray[np.int64], elements: NDArray[np.intp]) -> list[int]:
    rows: list[int] = np.unique(np.searchsorted(offsets, elements, side="right") - 1).tolist()
    return rows


def _picked(
    offsets: NDArray[np.int64], rows: Sequence[int] | NDArray[np.intp] | slice
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """Return the chosen rows, their elements, and where each row begins in those."""
    picked = np.arange(len(offsets) - 1)[rows]
    starts, lengths = offsets[picked], np.diff(offsets)[picked]
    begins = _offsets(lengths)
    elements = np.arange(begins[-1]) + np.repeat(starts - begins[:-1], lengths)
    return picked, elements, begins
