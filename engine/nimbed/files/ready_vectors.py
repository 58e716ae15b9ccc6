"""Vectors that somebody else made: taken from a field of rows under a declared contract."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nimbed.batch import EmbeddingBatch, normalize
from nimbed.bulk import ignore
from nimbed.cards import find
from nimbed.errors import ConfigurationError
from nimbed.rows import BadRow, Reject, Row
from nimbed.spec import VectorSpec

__all__ = ["declared_spec", "ready_parts"]

_PART_ROWS = 1024


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
