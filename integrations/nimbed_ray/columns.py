"""A batch of vectors as Arrow columns, and what their types will be.

Knows no texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed import EmbeddingBatch, VectorSpec
from nimbed.files.arrow import TOKENS_FIELD, TRUNCATED_FIELD, VECTOR_FIELD, Column, Table, arrow

__all__ = ["ERROR_FIELD", "rejected_rows", "vector_columns", "vector_fields"]

#: Why a row has no vector.
ERROR_FIELD = "embedding_error"


def vector_fields(spec: VectorSpec, *, nullable: bool) -> list[Any]:
    """Return the Arrow fields that :func:`vector_columns` fills.

    Args:
        spec: The contract of the vectors.
        nullable: Whether rows without a vector stay, and say why in a column of their own.
    """
    pa = arrow()
    element = pa.from_numpy_dtype(np.dtype(spec.dtype))
    fields = [
        pa.field(VECTOR_FIELD, pa.list_(element, spec.width), nullable=nullable),
        pa.field(TOKENS_FIELD, pa.int32(), nullable=nullable),
        pa.field(TRUNCATED_FIELD, pa.bool_(), nullable=nullable),
    ]
    return [*fields, pa.field(ERROR_FIELD, pa.string())] if nullable else fields


def vector_columns(
    batch: EmbeddingBatch,
    places: NDArray[np.int64],
    *,
    size: int,
    reasons: Mapping[int, str] | None,
) -> list[Column]:
    """Return the columns of a table in which only some rows have a vector.

    Args:
        batch: The vectors.
        places: Where in the table each of them belongs, ascending.
        size: Rows of the table.
        reasons: Why the others have none; None if every row has one and no column is wanted.
    """
    pa = arrow()
    absent: NDArray[np.bool_] = np.ones(size, bool)
    absent[places] = False
    truncated = np.zeros(size, bool)
    truncated[places[list(batch.truncated)]] = True
    if len(batch) == size:
        vectors, tokens, mask = batch.vectors, batch.token_counts, None
    else:
        vectors = np.zeros((size, batch.spec.width), batch.vectors.dtype)
        vectors[places] = batch.vectors
        tokens = np.zeros(size, np.int32)
        tokens[places] = batch.token_counts
        mask = absent
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    columns = [
        pa.FixedSizeListArray.from_arrays(
            flat, batch.spec.width, mask=None if mask is None else pa.array(mask)
        ),
        pa.array(tokens, mask=mask),
        pa.array(truncated, mask=mask),
    ]
    if reasons is not None:
        columns.append(pa.array([reasons.get(place) for place in range(size)], pa.string()))
    return columns


def rejected_rows(table: Table, reasons: Mapping[int, str]) -> Table:
    """Return the rows of a table that have a reason, with that in a column more."""
    pa, places = arrow(), sorted(reasons)
    chosen = table.take(pa.array(places, pa.int64()))
    texts = pa.array([reasons[place] for place in places], pa.string())
    return chosen.append_column(ERROR_FIELD, texts)
