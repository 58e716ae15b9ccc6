"""A table's layout in, the statement that finds the nearest of its passages out.

The index reads its settings while it is scanned. They are set by the expression that gives it the
question's vector, so one statement, and one trip to the server, does both in this order.
"""

from __future__ import annotations

import functools

from psycopg import sql

from nimbed.errors import ConfigurationError
from nimbed_pgvector.columns import Column, Layout
from nimbed_pgvector.schema import Table, identifier
from nimbed_pgvector.steps import Statement, trusted

__all__ = ["Filter", "nearest", "wide"]

#: A condition in SQL; the parameters' places are written %s.
Filter = str | sql.Composable

_LEAST_EF, _MOST_EF = 40, 1000
_INLINE = 1_000  # bytes of a vector that a row of usual length holds itself
_TEXT_BYTES = 300  # of a row without its vectors, as a guess
_ITERATES = (0, 8)  # the version of pgvector from which an index goes on where it came short


def nearest(table: Table, where: Filter | None, *, bound: bool, k: int, reach: int) -> Statement:
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

    Raises:
        ConfigurationError: If the table's name is none.
    """
    iterates = table.pgvector >= _ITERATES
    if where is None or isinstance(where, str):
        return _known(table.name, table.layout, iterates, where, bound, k, reach)
    return _statement(table.name, table.layout, iterates, _condition(where, bound), k, reach)


@functools.lru_cache(maxsize=64)
def wide(layout: Layout) -> Statement | None:
    """Return the statement that tells the planner what a scan of the table costs.

    It does not count vectors that are stored out of line: at 20,000 rows of vector(1024) it would
    read them all rather than use the index. Meant for searches without a condition; a condition
    spares most of the vectors. None for narrow columns.
    """
    stored = layout.embedding.stored_bytes
    if stored < _INLINE:
        return None
    pages = 1 + stored // _TEXT_BYTES
    return sql.SQL("SELECT set_config('seq_page_cost', {}, true)").format(sql.Literal(str(pages)))


@functools.lru_cache(maxsize=256)
def _known(
    name: str,
    layout: Layout,
    iterates: bool,
    where: str | None,
    bound: bool,
    k: int,
    reach: int,
) -> sql.SQL:
    # To compose it takes as long as to send it and to read the answer.
    statement = _statement(name, layout, iterates, _condition(where, bound), k, reach)
    return trusted(statement.as_string(None))


def _statement(
    name: str, layout: Layout, iterates: bool, where: sql.Composable, k: int, reach: int
) -> sql.Composed:
    # Limits are written out: with a limit that it does not know, the server plans anew each time.
    ordered = layout.rescoring is None and not layout.spec.packed
    places: dict[str, sql.Composable] = {
        "table": identifier(name),
        "where": where,
        "distance": _distance(
            layout.embedding, _setting(layout.embedding, reach, iterates, ordered)
        ),
        "column": sql.Identifier(layout.embedding.name),
        "reach": sql.Literal(reach),
        "k": sql.Literal(k),
    }
    if ordered:
        return sql.SQL(
            "SELECT tableoid, id, text, metadata::text, {distance} AS distance FROM {table} {where}"
            " ORDER BY distance LIMIT {k}"
        ).format(**places)
    if layout.rescoring is None:
        # bit_send, since a client may have registered a loader of its own for the type bit.
        return sql.SQL(
            "SELECT tableoid, id, text, metadata::text, bit_send({column}) FROM {table} {where}"
            " ORDER BY {distance} LIMIT {reach}"
        ).format(**places)
    places["column"] = sql.Identifier(layout.rescoring.name)
    places["rank"] = _distance(layout.rescoring, _vector(layout.rescoring))
    return sql.SQL(
        "SELECT tableoid, id, text, metadata::text, {rank} AS distance FROM"
        " (SELECT tableoid, id, text, metadata, {column} FROM {table} {where}"
        " ORDER BY {distance} LIMIT {reach}) AS candidates"
        " ORDER BY distance, id LIMIT {k}"
    ).format(**places)


def _setting(column: Column, reach: int, iterates: bool, ordered: bool) -> sql.Composed:
    """Return the vector, once the settings are made; they end with the transaction."""
    settings = {"hnsw.ef_search": str(min(max(reach, _LEAST_EF), _MOST_EF))}
    if iterates:
        # Otherwise a filter, dead rows or a reach beyond ef_search leave fewer than k hits.
        settings["hnsw.iterative_scan"] = "strict_order" if ordered else "relaxed_order"
    made = sql.SQL(" AND ").join(
        sql.SQL("set_config({}, {}, true) IS NOT NULL").format(name, value)
        for name, value in settings.items()
    )
    return sql.SQL("(SELECT CASE WHEN {} THEN {} END)").format(made, _vector(column))


def _vector(column: Column) -> sql.Composed:
    return sql.SQL("%b::{}").format(trusted(column.type))


def _distance(column: Column, vector: sql.Composable) -> sql.Composed:
    return sql.SQL("{} {} {}").format(sql.Identifier(column.name), trusted(column.operator), vector)


def _condition(where: Filter | None, bound: bool) -> sql.Composable:
    if where is None:
        if bound:
            raise ConfigurationError("there are parameters, but no filter to put them into")
        return sql.SQL("")
    if isinstance(where, str):
        # A condition is SQL by its nature and is the caller's own; its values go into parameters.
        # Without any, a lone % is an operator or a LIKE pattern, not a place.
        where = trusted(where if bound else where.replace("%", "%%"))
    # The line break ends a comment that would swallow the bracket.
    return sql.SQL("WHERE ({}\n)").format(where)
