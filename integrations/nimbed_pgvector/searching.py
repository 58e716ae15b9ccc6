"""A question's vector in, the nearest passages of a table out.

Packed columns are searched in two stages: candidates by Hamming distance through the index, then
their order by the stored floats, or by the float query's dot product with the stored signs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nimbed import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed_pgvector.nearest import Filter, nearest, wide
from nimbed_pgvector.schema import Table, same_table
from nimbed_pgvector.steps import Query, Rows, Statement, Steps
from nimbed_pgvector.vectors import for_columns

__all__ = ["Hit", "search"]

# Recall@10 of 384 bits against float, on 1,000 real passages: 0.93 at 4 times, 0.98 at 8 times.
_OVERSAMPLE = 8


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    Attributes:
        id: Its primary key.
        text: Its text.
        metadata: Its other fields.
        distance: Smaller is closer: cosine distance, or Euclidean for uint8. For packed columns
            the cosine distance to the stored floats, or to the stored signs.
    """

    id: str
    text: str
    metadata: Mapping[str, Any]
    distance: float


def search(
    table: Table,
    query: EmbeddingBatch,
    *,
    k: int,
    where: Filter | None = None,
    parameters: Sequence[Any] = (),
    candidates: int | None = None,
) -> Steps[list[Hit]]:
    """Return the k nearest passages, nearest first.

    Args:
        table: Where to look.
        query: One vector, as :func:`nimbed_pgvector.vectors.embed_question` gives it.
        k: How many.
        where: A condition that every hit fulfils.
        parameters: Values for the condition's %s, always bound.
        candidates: How many of a packed column's nearest are rescored; 8 k if None.

    Raises:
        ConfigurationError: If k or candidates are out of range.
    """
    layout = table.layout
    rescored = layout.spec.packed or layout.rescoring is not None
    if k < 1:
        raise ConfigurationError(f"k must be at least 1; got {k}")
    if query.input_type != "query":
        raise ConfigurationError(
            f"search wants a vector embedded as a query; this one is a {query.input_type}"
        )
    if candidates is not None and not rescored:
        raise ConfigurationError(
            f"candidates are for columns that are rescored; the table {table.name} holds "
            f"{layout.spec.embedding_type} alone, whose distances are final: leave it out"
        )
    reach = k if not rescored else _OVERSAMPLE * k if candidates is None else candidates
    if reach < k:
        raise ConfigurationError(f"candidates must be at least k = {k}; got {candidates}")
    asked = nearest(table, where, bound=bool(parameters), k=k, reach=reach)
    costs = wide(layout) if where is None else None
    if layout.rescoring is not None:
        return (yield from _rescored(table, query, asked, parameters, costs))
    if layout.spec.packed:
        return (yield from _by_signs(table, query, asked, parameters, k))
    return (yield from _one_stage(table, query, asked, parameters, costs))


def _one_stage(
    table: Table,
    query: EmbeddingBatch,
    asked: Statement,
    parameters: Sequence[Any],
    costs: Statement | None,
) -> Steps[list[Hit]]:
    layout = table.layout
    (vector,) = for_columns(query, layout)
    rows = yield Query(asked, (layout.embedding.parameter(vector), *parameters), costs)
    yield from _of_that_table(table, rows)
    # The column holds the levels of uint8; their distances become distances of values.
    step = (layout.spec.int8_step if layout.spec.metric == "euclidean" else None) or 1.0
    return [_hit(row[1:4], row[4] * step) for row in rows]


def _rescored(
    table: Table,
    query: EmbeddingBatch,
    asked: Statement,
    parameters: Sequence[Any],
    costs: Statement | None,
) -> Steps[list[Hit]]:
    layout = table.layout
    vectors = for_columns(query, layout)
    first, second = (
        column.parameter(vector) for column, vector in zip(layout.columns, vectors, strict=True)
    )
    rows = yield Query(asked, (second, *parameters, first), costs)
    yield from _of_that_table(table, rows)
    return [_hit(row[1:4], row[4]) for row in rows]


def _by_signs(
    table: Table, query: EmbeddingBatch, asked: Statement, parameters: Sequence[Any], k: int
) -> Steps[list[Hit]]:
    """Rank candidates by the float query against their signs: finer than bit against bit."""
    (bits,) = for_columns(query, table.layout)
    rows = yield Query(asked, (*parameters, table.layout.embedding.parameter(bits)))
    if not rows:
        return []
    yield from _of_that_table(table, rows)
    # bit_send gives int32 bits, then the packed bytes.
    sent = np.frombuffer(b"".join([row[4] for row in rows]), np.uint8).reshape(len(rows), -1)
    ones = np.unpackbits(sent[:, 4:], axis=1).astype(np.float32)
    unit = query.floats()[0] / np.float32(np.sqrt(query.spec.dimensions))
    # The dot product with signs 2 b - 1, without making the signs.
    distances = 1.0 - (2.0 * (ones @ unit) - unit.sum())
    best = np.argsort(distances, kind="stable")[:k].tolist()
    return [_hit(rows[row][1:4], float(distances[row])) for row in best]


def _of_that_table(table: Table, rows: Rows) -> Steps[None]:
    # A migration ends with a RENAME under the feet of a running server.
    if rows:
        yield from same_table(table, rows[0][0])


def _hit(row: Sequence[Any], distance: float) -> Hit:
    name, text, metadata = row
    return Hit(name, text, json.loads(metadata), distance)
