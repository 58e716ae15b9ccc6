"""Vectors that somebody else made: taken from a field of rows under a declared contract."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch, normalize
from nimbed.bulk import ignore
from nimbed.cards import find
from nimbed.errors import ConfigurationError
from nimbed.kinds import EmbeddingKinds, SparseBatch
from nimbed.rows import BadRow, Reject, Row
from nimbed.spec import SparseSpec, VectorSpec

__all__ = [
    "Declared",
    "declared_parts",
    "declared_spec",
    "ready_parts",
    "ready_sparse",
    "sparse_beside",
]

_PART_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Declared:
    """Which fields of rows hold the vectors of which model.

    Attributes:
        model: A catalogued name, of dense vectors.
        dense: A field of dense vectors, if there is one.
        sparse: A field of sparse vectors, if there is one.
        sparse_spec: The contract of these.
    """

    model: str
    dense: str | None
    sparse: str | None = None
    sparse_spec: SparseSpec | None = None


def declared_parts(
    rows: Iterable[Row | BadRow],
    declared: Declared,
    *,
    on_reject: Callable[[Reject], None] = ignore,
) -> tuple[Iterator[tuple[list[Row], Any]], dict[str, Any]]:
    """Return the rows with the vectors that they bring, part by part, and the contracts of these.

    The contracts go by ``spec`` and, of sparse vectors beside dense ones, ``sparse``.

    Args:
        rows: The rows.
        declared: What they bring.
        on_reject: Told each row whose vectors cannot be used.

    Raises:
        ConfigurationError: If the model gives no such vectors, or no row has a dense one.
    """
    field, sparse = declared.sparse, declared.sparse_spec
    if declared.dense is None and field is not None and sparse is not None:
        return ready_sparse(rows, field, sparse, on_reject=on_reject), {"spec": sparse}
    spec_of = functools.partial(declared_spec, declared.model)
    spec, parts = ready_parts(rows, declared.dense or "", spec_of, on_reject=on_reject)
    if field is None or sparse is None:
        return parts, {"spec": spec}
    both = sparse_beside(parts, field, sparse, on_reject=on_reject)
    return both, {"spec": spec, "sparse": sparse}


def declared_spec(card: str, width: int) -> VectorSpec:
    """Return the contract of float vectors that a catalogued model is said to have made.

    Raises:
        UnknownModelError: If the catalogue has no such model.
        ConfigurationError: If the model gives no vectors of that width.
    """
    return find(card).spec(dimensions=width)


def ready_parts(
    rows: Iterable[Row | BadRow],
    field: str,
    spec_of: Callable[[int], VectorSpec],
    *,
    on_reject: Callable[[Reject], None] = ignore,
) -> tuple[VectorSpec, Iterator[tuple[list[Row], EmbeddingBatch]]]:
    """Return the contract of the vectors in a field, and the rows with them, part by part.

    They are normalised, as ours are. A vector is a list of numbers, or such a list as text, as
    PostgreSQL and JSON write it.

    Args:
        rows: The rows.
        field: Which field.
        spec_of: Told the width of the first vector.
        on_reject: Told each row whose vector cannot be used.

    Raises:
        ConfigurationError: If no row has a vector, or its width fits no contract.
    """
    left = _checked(rows, field, on_reject)
    first = next(left, None)
    if first is None:
        raise ConfigurationError(f"no row has a vector in the field {field!r}")
    spec = spec_of(len(first[1]))

    def parts() -> Iterator[tuple[list[Row], EmbeddingBatch]]:
        every = itertools.chain([first], left)
        while some := list(itertools.islice(every, _PART_ROWS)):
            fits = [each for each in some if len(each[1]) == spec.dimensions]
            for row, vector in some:
                if len(vector) != spec.dimensions:
                    reason = f"the vector has {len(vector)} numbers, expected {spec.dimensions}"
                    on_reject(Reject(row.number, row.id, reason))
            if fits:
                vectors = normalize(np.stack([vector for _, vector in fits]))
                yield (
                    [row for row, _ in fits],
                    EmbeddingBatch(
                        vectors=vectors,
                        spec=spec,
                        input_type="passage",
                        token_counts=np.zeros(len(fits), np.int32),
                    ),
                )

    return spec, parts()


def ready_sparse(
    rows: Iterable[Row | BadRow],
    field: str,
    spec: SparseSpec,
    *,
    on_reject: Callable[[Reject], None] = ignore,
) -> Iterator[tuple[list[Row], SparseBatch]]:
    """Yield the rows with the sparse vectors in a field, part by part.

    A vector is what nimbed and FlagEmbedding write, ``{"17": 0.4}`` by token id; what Qdrant does,
    ``{"indices": [17], "values": [0.4]}``; or text-embeddings-inference, ``[{"index": 17, "value":
    0.4}]``; such JSON as text, too. A weight of 0 is left out, and of more than ``max_active`` the
    largest are kept.

    Args:
        rows: The rows.
        field: Which field.
        spec: The contract of the vectors.
        on_reject: Told each row whose vector cannot be used.
    """
    sound: list[Row] = []
    for row in rows:
        if isinstance(row, BadRow):
            on_reject(Reject(row.number, None, row.reason))
            continue
        sound.append(row)
        if len(sound) == _PART_ROWS:
            yield _weighed(sound, field, spec, on_reject)[1:]
            sound = []
    if sound:
        yield _weighed(sound, field, spec, on_reject)[1:]


def sparse_beside(
    parts: Iterable[tuple[list[Row], EmbeddingBatch]],
    field: str,
    spec: SparseSpec,
    *,
    on_reject: Callable[[Reject], None] = ignore,
) -> Iterator[tuple[list[Row], EmbeddingKinds]]:
    """Yield what :func:`ready_parts` does with the sparse vectors in another field beside it."""
    for rows, dense in parts:
        places, kept, sparse = _weighed(rows, field, spec, on_reject)
        yield kept, EmbeddingKinds(dense=dense.select(places), sparse=sparse)


def _weighed(
    rows: list[Row], field: str, spec: SparseSpec, on_reject: Callable[[Reject], None]
) -> tuple[list[int], list[Row], SparseBatch]:
    """Return which rows have a sound sparse vector, these without the field, and the vectors."""
    places: list[int] = []
    kept: list[Row] = []
    vectors: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for place, row in enumerate(rows):
        columns = dict(row.columns)
        vector = _weights(columns.pop(field, None), field, spec.dimensions)
        if isinstance(vector, str):
            on_reject(Reject(row.number, row.id, vector))
            continue
        places.append(place)
        kept.append(dataclasses.replace(row, columns=columns))
        vectors.append(vector)
    counts = np.zeros(len(kept), np.int32)
    batch = SparseBatch.from_rows(vectors, spec=spec, input_type="passage", token_counts=counts)
    return places, kept, batch


def _weights(
    value: Any, field: str, vocabulary: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]] | str:
    """Return token ids, ascending, and their weights; or what is wrong with them."""
    if value is None:
        return f"there is no sparse vector in the field {field!r}"
    try:
        given = json.loads(value) if isinstance(value, str) else value
        if isinstance(given, Mapping) and set(given) == {"indices", "values"}:
            pairs = list(zip(given["indices"], given["values"], strict=True))
        elif isinstance(given, Mapping):
            pairs = list(given.items())
        else:  # Parquet's maps are read as pairs
            pairs = [
                (each["index"], each["value"]) if isinstance(each, Mapping) else tuple(each)
                for each in given
            ]
        ids = np.array([int(index) for index, _ in pairs], np.int64)
        weights = np.array([weight for _, weight in pairs], np.float32)
    except (ValueError, TypeError, KeyError, OverflowError):
        return f"the field {field!r} holds no sparse vector of token ids: {str(value)[:40]!r}"
    if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary):
        worst = ids.max() if ids.max() >= vocabulary else ids.min()
        return f"the field {field!r} has the token id {worst}; the vocabulary has {vocabulary}"
    if len(np.unique(ids)) < len(ids):
        return f"the field {field!r} has a token id twice"
    if not np.isfinite(weights).all() or (weights < 0).any():
        return f"the field {field!r} has a weight that is negative or not finite"
    order = np.argsort(ids)
    order = order[weights[order] > 0]
    return ids[order].astype(np.int32), weights[order]


def _checked(
    rows: Iterable[Row | BadRow], field: str, on_reject: Callable[[Reject], None]
) -> Iterator[tuple[Row, Any]]:
    for row in rows:
        if isinstance(row, BadRow):
            on_reject(Reject(row.number, None, row.reason))
            continue
        columns = dict(row.columns)
        vector, fault = _vector(columns.pop(field, None), field)
        if fault:
            on_reject(Reject(row.number, row.id, fault))
        else:
            yield dataclasses.replace(row, columns=columns), vector


def _vector(value: Any, field: str) -> tuple[Any, str | None]:
    """Return float32 numbers, or what is wrong with them."""
    if value is None:
        return None, f"there is no vector in the field {field!r}"
    try:
        numbers = json.loads(value) if isinstance(value, str) else value
        vector = np.array(numbers, np.float32)
    except (ValueError, TypeError):
        return None, f"the field {field!r} holds no vector: {str(value)[:40]!r}"
    if vector.ndim != 1 or not len(vector):
        return None, f"the field {field!r} holds no list of numbers"
    if not np.isfinite(vector).all() or not vector.any():
        return None, f"the vector in the field {field!r} is zero or not finite"
    return vector, None
