"""Search: the statement that finds the nearest passages of a table, and the hits it gives.

The index reads its settings while it is scanned. They are set by the expression that gives it the
question's vector, so one statement, and one trip to the server, does both in this order. Packed
columns are searched in two stages: candidates by Hamming distance through the index, then
their order by the stored floats, or by the float query's dot product with the stored signs.

An index stops looking after ``hnsw.max_scan_tuples`` rows, whatever a condition has left of them.
Where that gave fewer than k hits, all rows that fulfil the condition are ranked instead.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from nimbed import Embedder, EmbeddingBatch
from nimbed.chunks import CHUNK_FIELDS
from nimbed.errors import ConfigurationError
from nimbed_pgvector.columns import TEXT_BYTES, AnyColumn, Layout
from nimbed_pgvector.schema import Table, identifier, same_table
from nimbed_pgvector.statements import Procedure, Query, Rows, Statement, trusted

__all__ = [
    "FIRST_PAGE",
    "Filter",
    "Hit",
    "Page",
    "Way",
    "condition_of",
    "distance_to",
    "embed_question",
    "hit_of",
    "indexed_vector",
    "nearest_ids",
    "pasted",
    "scan_cost",
    "search",
    "sign_distances",
    "vector_of",
    "way_to",
    "written",
]

#: A condition in SQL; the parameters' places are written %s.
Filter = str | sql.Composable
#: Where a page ends: the distance and the id of its last hit.
Page = tuple[float, str]
#: Where the first page begins.
FIRST_PAGE: Page = (-math.inf, "")

# Recall@10 of 384 bits against float, on 1,000 real passages: 0.93 at 4 times, 0.98 at 8 times.
_OVERSAMPLE = 8
_LEAST_EF, _MOST_EF = 40, 1000
# Rows that an index looks at for a condition before all that match are compared instead, each the
# time of some 50 of these; pgvector's own limit, 20,000, took twice as long at 100,000 rows.
_MOST_SCANNED = sql.SQL(
    "(SELECT set_config('hnsw.max_scan_tuples', CASE WHEN reltuples < 0 THEN '20000' ELSE"
    " least(20000, greatest(1000, reltuples / 20))::int::text END, true) IS NOT NULL"
    " FROM pg_class WHERE oid = to_regclass({}))"
)
_INLINE = 1_000  # bytes of a vector that a row of usual length holds itself
_ITERATES = (0, 8)  # the version of pgvector from which an index goes on where it came short


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    Attributes:
        id: Its primary key.
        text: Its text.
        metadata: Its other fields.
        distance: Smaller is closer: cosine distance, or Euclidean for uint8. For packed columns
            the cosine distance to the stored floats, or to the stored signs. Of a search by
            sparse vectors alone the negative dot product.
        score: Of a search by several rankings: larger is better; by places up to 1/61 for each.
    """

    id: str
    text: str
    metadata: Mapping[str, Any]
    distance: float
    score: float | None = None

    @property
    def document(self) -> str:
        """The id of the document that a chunk belongs to; of a whole passage its own."""
        return str(self.metadata.get(CHUNK_FIELDS[0], self.id))


def embed_question(embedder: Embedder, layout: Layout, question: str) -> EmbeddingBatch:
    """Return the query's vector: floats where candidates are rescored, else the column's type."""
    spec = layout.spec
    rescored = spec.packed or layout.rescoring is not None
    return embedder.embed(
        [question],
        input_type="query",
        embedding_type="float" if rescored else spec.embedding_type,
        dimensions=spec.dimensions,
        int8_scale=None if rescored else spec.int8_scale,
    )


def search(
    table: Table,
    query: EmbeddingBatch,
    *,
    k: int,
    where: Filter | None = None,
    parameters: Sequence[Any] = (),
    candidates: int | None = None,
    after: Page | None = None,
) -> Procedure[list[Hit]]:
    """Return the k nearest passages, nearest first.

    Args:
        table: Where to look.
        query: One vector, as :func:`embed_question` gives it.
        k: How many.
        where: A condition that every hit fulfils.
        parameters: Values for the condition's %s, always bound.
        candidates: How many of a packed column's nearest are rescored; 8 k if None.
        after: Where the last page ended, as (distance, id); :data:`FIRST_PAGE` for the first.

    Raises:
        ConfigurationError: If k or candidates are out of range, or pages cannot be.
    """
    layout = table.layout
    rescored = layout.spec.packed or layout.rescoring is not None
    if after is not None and rescored:
        raise ConfigurationError(
            f"pages need distances that are final; the candidates of the table {table.name} are "
            f"ranked again: ask for more of them, by k"
        )
    if k < 1:
        raise ConfigurationError(f"k must be at least 1; got {k}")
    if query.input_type != "query":
        raise ConfigurationError(
            f"search needs a vector embedded as a query; this one is a {query.input_type}"
        )
    if candidates is not None and not rescored:
        raise ConfigurationError(
            f"candidates applies only to columns that are rescored; the table {table.name} holds "
            f"{layout.spec.embedding_type} alone, whose distances are final: leave it out"
        )
    reach = k if not rescored else _OVERSAMPLE * k if candidates is None else candidates
    if reach < k:
        raise ConfigurationError(f"candidates must be at least k = {k}; got {candidates}")
    by_signs = layout.spec.packed and layout.rescoring is None
    *indexed, ranking = (
        column.parameter(vector)
        for column, vector in zip(layout.columns, layout.batches(query), strict=True)
    )
    given = (*parameters, ranking) if by_signs else (ranking, *parameters, *indexed)
    # The column holds the levels of uint8; their distances become distances of values.
    levels = layout.rescoring is None and layout.spec.metric == "euclidean"
    step = (layout.spec.int8_step if levels else None) or 1.0
    if after is not None:
        condition = condition_of(where, bool(parameters))
        found = _page(table, condition, (*given, ranking, *after), k=k, step=step)
        return (yield from found)
    costs = None if where is not None or by_signs else scan_cost(layout)
    bound = bool(parameters)
    asked = _nearest(table, where, bound=bound, k=k, reach=reach, exact=False)
    rows = yield Query(asked, given, costs)
    if where is not None and len(rows) < k:
        asked = _nearest(table, where, bound=bound, k=k, reach=reach, exact=True)
        rows = yield Query(asked, given)
    yield from _of_that_table(table, rows)
    if by_signs:
        return _by_signs(query, rows, k)
    return [hit_of(row[1:4], row[4] * step) for row in rows]


def _page(
    table: Table, condition: sql.Composable, given: Sequence[Any], *, k: int, step: float
) -> Procedure[list[Hit]]:
    """Return the k nearest passages behind a place, in the order of distances and then of ids.

    Args:
        table: Where to look.
        condition: A WHERE clause, or nothing.
        given: The vector, the condition's parameters, the vector again, and where the last page
            ended.
        k: How many.
        step: What a distance of the column is of one of values.
    """
    rows: Rows = []
    filtered = bool(condition.as_string(None))
    for exact in (False, True):
        way = way_to(table, exact=exact)
        column = table.layout.embedding
        behind = sql.SQL("{} {} (({}) * {}, id) > (%s, %s)").format(
            condition,
            sql.SQL("AND" if filtered else "WHERE"),
            distance_to(way, column, vector_of(way, column)),
            sql.Literal(step),
        )
        statement = _statement(way, behind, k, k, by_id=True)
        rows = yield Query(statement, given, None if filtered else scan_cost(table.layout))
        if len(rows) == k:
            break
    yield from _of_that_table(table, rows)
    return [hit_of(row[1:4], row[4] * step) for row in rows]


def sign_distances(query: EmbeddingBatch, sent: Sequence[bytes]) -> NDArray[np.float32]:
    """Return the cosine distances of a float query to signs, given as ``bit_send`` gives bits."""
    # bit_send gives int32 bits, then the packed bytes.
    packed = np.frombuffer(b"".join(sent), np.uint8).reshape(len(sent), -1)
    ones = np.unpackbits(packed[:, 4:], axis=1).astype(np.float32)
    unit = query.floats()[0] / np.float32(np.sqrt(query.spec.dimensions))
    # The dot product with signs 2 b - 1, without making the signs.
    distances: NDArray[np.float32] = 1.0 - (2.0 * (ones @ unit) - unit.sum())
    return distances


def _by_signs(query: EmbeddingBatch, rows: Rows, k: int) -> list[Hit]:
    """Rank candidates by the float query against their signs: finer than bit against bit."""
    if not rows:
        return []
    distances = sign_distances(query, [row[4] for row in rows])
    best = np.argsort(distances, kind="stable")[:k].tolist()
    return [hit_of(rows[row][1:4], float(distances[row])) for row in best]


def _of_that_table(table: Table, rows: Rows) -> Procedure[None]:
    # A migration ends with a RENAME under the feet of a running server.
    if rows:
        yield from same_table(table, rows[0][0])


def hit_of(row: Sequence[Any], distance: float, score: float | None = None) -> Hit:
    """Return the hit of a row (id, text, metadata as text)."""
    name, text, metadata = row
    return Hit(name, text, json.loads(metadata), distance, score)


def nearest_ids(way: Way, condition: sql.Composable, reach: int) -> sql.Composed:
    """Return a SELECT of (id, distance) of the nearest passages; by signs of Hamming distance.

    Its places for parameters are those of :func:`search`, but for columns alone the indexed vector
    comes first.
    """
    if not way.layout.spec.packed or way.layout.rescoring is not None:
        return sql.SQL("SELECT id, distance FROM ({}) AS found").format(
            _statement(way, condition, reach, 2 * reach)
        )
    column = way.layout.embedding
    passages = sql.SQL("{} {}").format(identifier(way.name), condition)
    if way.exact:
        passages = sql.SQL("(SELECT * FROM {} OFFSET 0) AS matching").format(passages)
    return sql.SQL("SELECT id, {} AS distance FROM {} ORDER BY distance LIMIT {}").format(
        distance_to(way, column, indexed_vector(way, column, reach, True)),
        passages,
        sql.Literal(reach),
    )


def _nearest(
    table: Table, where: Filter | None, *, bound: bool, k: int, reach: int, exact: bool
) -> Statement:
    """Return the statement whose rows are (tableoid, id, text, metadata as text, rank).

    The rank is the distance, nearest first, for the k nearest; of a packed column alone it is the
    column as ``bit_send`` gives it, for the ``reach`` nearest. The places for parameters are in
    this order: the vector to rescore by, if there is one; the condition's; the indexed vector,
    which comes first where it is all there is.

    Args:
        table: Where to look.
        where: A condition that every passage fulfils.
        bound: Whether the condition has parameters.
        k: How many to return.
        reach: How many the index gives.
        exact: Whether every passage is compared that fulfils the condition, without the index.

    Raises:
        ConfigurationError: If the table's name is none.
    """
    way = way_to(table, exact=exact)
    if where is None or isinstance(where, str):
        return _cached_statement(way, where, bound, k, reach)
    return _statement(way, condition_of(where, bound), k, reach)


class Way(NamedTuple):
    """How a table is searched.

    Attributes:
        name: The table's.
        layout: Its columns.
        extension: As :class:`nimbed_pgvector.schema.Table` has it.
        iterates: Whether the index can go on where it came short.
        exact: Whether it is left out.
        literals: The vectors by their columns, where they are written into the statement.
    """

    name: str
    layout: Layout
    extension: str
    iterates: bool
    exact: bool
    literals: tuple[tuple[str, str], ...] = ()


def way_to(table: Table, *, exact: bool = False, literals: tuple[tuple[str, str], ...] = ()) -> Way:
    """Return how a table is searched; see :class:`Way`."""
    iterates = table.pgvector >= _ITERATES
    return Way(table.name, table.layout, table.extension, iterates, exact, literals)


@functools.lru_cache(maxsize=64)
def scan_cost(layout: Layout) -> Statement | None:
    """Return the statement that tells the planner what a scan of the table costs.

    It does not count vectors that are stored out of line: at 20,000 rows of vector(1024) it would
    read them all rather than use the index. Meant for searches without a condition; a condition
    spares most of the vectors. None for narrow columns.
    """
    stored = layout.embedding.stored_bytes
    if stored < _INLINE:
        return None
    pages = 1 + stored // TEXT_BYTES
    return sql.SQL("SELECT set_config('seq_page_cost', {}, true)").format(sql.Literal(str(pages)))


@functools.lru_cache(maxsize=256)
def _cached_statement(way: Way, where: str | None, bound: bool, k: int, reach: int) -> sql.SQL:
    # Composing it takes as long as sending it and reading the answer.
    return trusted(_statement(way, condition_of(where, bound), k, reach).as_string(None))


def _statement(
    way: Way, where: sql.Composable, k: int, reach: int, *, by_id: bool = False
) -> sql.Composed:
    filtered = bool(where.as_string(None)) and not by_id  # pages have a condition of their own
    # Limits are written out: with a limit that it does not know, the server plans anew each time.
    layout = way.layout
    # What is pasted shows the distances of bits; ours are ranked again by the client.
    ordered = layout.rescoring is None and (not layout.spec.packed or bool(way.literals))
    passages = sql.SQL("{} {}").format(identifier(way.name), where)
    if way.exact:
        # No index orders what comes out of a subquery with an offset.
        names = [column.name for column in layout.columns]
        passages = sql.SQL("(SELECT {} FROM {} OFFSET 0) AS matching").format(
            sql.SQL(", ").join(map(sql.Identifier, ["tableoid", "id", "text", "metadata", *names])),
            passages,
        )
    places: dict[str, sql.Composable] = {
        "passages": passages,
        "distance": distance_to(
            way, layout.embedding, indexed_vector(way, layout.embedding, reach, ordered, filtered)
        ),
        "column": sql.Identifier(layout.embedding.name),
        "reach": sql.Literal(reach),
        "k": sql.Literal(k),
    }
    if ordered:
        order = "distance, id" if by_id else "distance"
        return sql.SQL(
            "SELECT tableoid, id, text, metadata::text, {distance} AS distance FROM {passages}"
            " ORDER BY {order} LIMIT {k}"
        ).format(order=trusted(order), **places)
    if layout.rescoring is None:
        # bit_send, since a client may have registered a loader of its own for the type bit.
        return sql.SQL(
            "SELECT tableoid, id, text, metadata::text, bit_send({column}) FROM {passages}"
            " ORDER BY {distance} LIMIT {reach}"
        ).format(**places)
    places["column"] = sql.Identifier(layout.rescoring.name)
    places["rank"] = distance_to(way, layout.rescoring, vector_of(way, layout.rescoring))
    return sql.SQL(
        "SELECT tableoid, id, text, metadata::text, {rank} AS distance FROM"
        " (SELECT tableoid, id, text, metadata, {column} FROM {passages}"
        " ORDER BY {distance} LIMIT {reach}) AS candidates"
        " ORDER BY distance, id LIMIT {k}"
    ).format(**places)


def indexed_vector(
    way: Way, column: AnyColumn, reach: int, ordered: bool, filtered: bool = False
) -> sql.Composed:
    """Return the vector, once the settings are made; they end with the transaction."""
    if way.literals:
        return vector_of(way, column)
    made = [
        sql.SQL("set_config({}, {}, true) IS NOT NULL").format(*each)
        for each in _settings(way, reach, ordered).items()
    ]
    if filtered and way.iterates:
        made.append(_MOST_SCANNED.format(identifier(way.name).as_string(None)))
    both = sql.SQL(" AND ").join(made), vector_of(way, column)
    return sql.SQL("(SELECT CASE WHEN {} THEN {} END)").format(*both)


def _settings(way: Way, reach: int, ordered: bool) -> dict[str, str]:
    settings = {"hnsw.ef_search": str(min(max(reach, _LEAST_EF), _MOST_EF))}
    if way.iterates:
        # Otherwise a filter, dead rows or a reach beyond ef_search leave fewer than k hits.
        settings["hnsw.iterative_scan"] = "strict_order" if ordered else "relaxed_order"
    return settings


def written(
    table: Table,
    query: EmbeddingBatch,
    *,
    k: int,
    where: Filter | None = None,
    candidates: int | None = None,
) -> str:
    """Return a search as SQL that can be pasted: its settings, and the question as a literal.

    The distances of packed columns alone are Hamming distances; what ranks their candidates by the
    float question is no SQL. Places for a condition's parameters (%s) stay.

    Args:
        table: Where to look.
        query: One vector, as :func:`embed_question` gives it.
        k: How many.
        where: A condition that every hit fulfils.
        candidates: How many of a packed column's nearest are rescored; 8 k if None.
    """
    layout = table.layout
    literals = tuple(
        (column.name, column.literal(vector))
        for column, vector in zip(layout.columns, layout.batches(query), strict=True)
    )
    way = way_to(table, literals=literals)
    reach = k if layout.rescoring is None else _OVERSAMPLE * k if candidates is None else candidates
    return pasted(
        way,
        lambda condition: _statement(way, condition, k, reach),
        where,
        reach=reach,
        ordered=layout.rescoring is None,
    )


def pasted(
    way: Way,
    statement: Callable[[sql.Composable], sql.Composed],
    where: Filter | None,
    *,
    reach: int,
    ordered: bool,
) -> str:
    """Return a statement as a transaction that can be pasted, with the settings of its index."""
    condition: sql.Composable = sql.SQL("")
    if where is not None:
        given = trusted(where) if isinstance(where, str) else where
        condition = sql.SQL("WHERE ({}\n)").format(given)
    lines = [
        f"SET LOCAL {name} = {value};" for name, value in _settings(way, reach, ordered).items()
    ]
    return "\n".join(["BEGIN;", *lines, f"{statement(condition).as_string(None)};", "COMMIT;"])


def vector_of(way: Way, column: AnyColumn) -> sql.Composed:
    """Return the vector to compare with a column: a place for it, or a literal."""
    written = dict(way.literals).get(column.name)
    place = trusted("%b") if written is None else sql.Literal(written)
    within = way.extension if column.kind != "bit" else ""  # PostgreSQL's own type
    kind = trusted(f"{within}.{column.type}" if within else column.type)
    return sql.SQL("{}::{}").format(place, kind)


def distance_to(way: Way, column: AnyColumn, vector: sql.Composable) -> sql.Composed:
    """Return the distance of a column to a vector as SQL."""
    within = way.extension
    operator = f"OPERATOR({within}.{column.operator})" if within else column.operator
    return sql.SQL("{} {} {}").format(sql.Identifier(column.name), trusted(operator), vector)


def condition_of(where: Filter | None, bound: bool) -> sql.Composable:
    """Return a WHERE clause for a condition, or nothing; ``bound`` if it has parameters."""
    if where is None:
        if bound:
            raise ConfigurationError("there are parameters, but no filter to put them into")
        return sql.SQL("")
    if not isinstance(where, (str, sql.Composable)):
        kind = type(where).__name__
        raise ConfigurationError(f"a filter is SQL, its values come as parameters=; got {kind}")
    if isinstance(where, str):
        # A condition is SQL by its nature and is the caller's own; its values go into parameters.
        # Without any, a lone % is an operator or a LIKE pattern, not a place.
        where = trusted(where if bound else where.replace("%", "%%"))
    # The line break ends a comment that would swallow the bracket.
    return sql.SQL("WHERE ({}\n)").format(where)
