"""Hybrid search: full text and vectors in one statement, their ranks fused.

Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a passage scores 1 / (60 + place)
in each of the two lists that it is in. Of the words of the question a passage need not have all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from nimbed import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.fusion import DAMPING
from nimbed_pgvector.schema import Table, identifier, same_table
from nimbed_pgvector.search import (
    Filter,
    Hit,
    Way,
    condition_of,
    distance_to,
    hit_of,
    nearest_ids,
    scan_cost,
    sign_distances,
    vector_of,
    way_to,
)
from nimbed_pgvector.statements import Procedure, Query, Rows

__all__ = ["hybrid_search", "index_words"]

# Of each list so many are fused at least, and so many times k.
_LEAST_FUSED, _FUSED = 50, 4


def hybrid_search(
    table: Table,
    question: str,
    query: EmbeddingBatch,
    *,
    k: int,
    language: str,
    where: Filter | None = None,
    parameters: Sequence[Any] = (),
) -> Procedure[list[Hit]]:
    """Return the k best passages by words and by meaning, best first.

    Args:
        table: Where to look.
        question: Its words are looked for; any of them will do.
        query: Its vector, as :func:`nimbed_pgvector.search.embed_question` gives it.
        k: How many.
        language: A text search configuration, such as ``english`` or ``simple``.
        where: A condition that every hit fulfils.
        parameters: Values for the condition's %s, always bound.

    Raises:
        ConfigurationError: If k is out of range, or there is no such configuration.
    """
    if k < 1:
        raise ConfigurationError(f"k must be at least 1; got {k}")
    yield from _check_language(language)
    layout = table.layout
    *indexed, ranking = (
        column.parameter(vector)
        for column, vector in zip(layout.columns, layout.batches(query), strict=True)
    )
    by_signs = layout.spec.packed and layout.rescoring is None
    condition = condition_of(where, bool(parameters))
    last = () if by_signs else (ranking,)
    if layout.rescoring is not None:
        near: tuple[Any, ...] = (ranking, *parameters, *indexed)
    else:
        near = (ranking, *parameters)
    given = (question, *near, *parameters, *last)
    rows: Rows = []
    for exact in (False, True):
        way = way_to(table, exact=exact)
        costs = scan_cost(layout) if where is None else None
        rows = yield Query(_statement(way, condition, k, language), given, costs)
        if len(rows) >= k or where is None:
            break
    if not rows:
        return []
    yield from same_table(table, rows[0][0])
    if by_signs:
        distances = sign_distances(query, [row[4] for row in rows]).tolist()
    else:
        step = layout.spec.int8_step if layout.rescoring is None else None
        scale = step if step and layout.spec.metric == "euclidean" else 1.0
        distances = [row[4] * scale for row in rows]
    return [
        hit_of(row[1:4], distance, score=float(row[5]))
        for row, distance in zip(rows, distances, strict=True)
    ]


def _statement(way: Way, condition: sql.Composable, k: int, language: str) -> sql.Composed:
    layout, fused = way.layout, max(_LEAST_FUSED, _FUSED * k)
    column = layout.rescoring or layout.embedding
    distance: sql.Composable = distance_to(way, column, vector_of(way, column))
    if layout.spec.packed and layout.rescoring is None:
        distance = sql.SQL("bit_send({})").format(sql.Identifier(column.name))
    words = sql.SQL("to_tsvector({}, text)").format(sql.Literal(language))
    return sql.SQL(
        # All words of a question are in few passages, any of them in many: the rank tells.
        "WITH asked AS MATERIALIZED (SELECT replace(plainto_tsquery({language}, %s)::text, '&',"
        " '|')::tsquery AS q),"
        " near AS (SELECT id, row_number() OVER (ORDER BY distance, id) AS place"
        " FROM ({nearest}) AS n),"
        " worded AS (SELECT id, row_number() OVER (ORDER BY score DESC, id) AS place FROM"
        " (SELECT id, ts_rank_cd({words}, (SELECT q FROM asked)) AS score FROM {table}"
        " {condition} {words} @@ (SELECT q FROM asked)"
        " ORDER BY score DESC, id LIMIT {fused}) AS w),"
        " best AS (SELECT id, coalesce(1.0 / ({damping} + near.place), 0)"
        " + coalesce(1.0 / ({damping} + worded.place), 0) AS score"
        " FROM near FULL JOIN worded USING (id) ORDER BY score DESC, id LIMIT {k})"
        " SELECT t.tableoid, id, text, metadata::text, {distance}, score"
        " FROM best JOIN {table} AS t USING (id) ORDER BY score DESC, id"
    ).format(
        language=sql.Literal(language),
        nearest=nearest_ids(way, condition, fused),
        words=words,
        table=identifier(way.name),
        condition=sql.SQL("{} AND").format(condition) if condition.as_string(None) else _WHERE,
        fused=sql.Literal(fused),
        damping=sql.Literal(DAMPING),
        k=sql.Literal(k),
        distance=distance,
    )


_WHERE = sql.SQL("WHERE")


def index_words(table: Table, language: str) -> Procedure[None]:
    """Build the index by which words are found, if there is none of this language.

    Raises:
        ConfigurationError: If there is no such text search configuration.
    """
    yield from _check_language(language)
    yield Query(sql.SQL("SELECT set_config('statement_timeout', '0', true)"))
    rows = yield Query(
        sql.SQL(
            "SELECT 1 FROM pg_index WHERE indrelid = to_regclass(%s) AND indisvalid"
            " AND pg_get_expr(indexprs, indrelid)"
            " = format('to_tsvector(%%L::regconfig, text)', %s::text)"
        ),
        (table.identifier.as_string(None), language),
    )
    if not rows:
        yield Query(
            sql.SQL("CREATE INDEX ON {} USING gin (to_tsvector({}, text))").format(
                table.identifier, sql.Literal(language)
            )
        )


def _check_language(language: str) -> Procedure[None]:
    known = yield Query(sql.SQL("SELECT DISTINCT cfgname::text FROM pg_ts_config ORDER BY 1"))
    names = [name for (name,) in known]
    if language not in names:
        raise ConfigurationError(
            f"this server knows no words of {language!r}; it knows {', '.join(names)}"
        )
