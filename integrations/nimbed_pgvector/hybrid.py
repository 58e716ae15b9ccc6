"""Hybrid search: dense vectors, sparse vectors and words in one statement, their rankings fused.

Fused as :func:`nimbed.fusion.fuse` does it: by the places of a passage in the rankings that it is
in, or by its scores there, normalised. Of the words of the question a passage need not have all;
of its tokens it must share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import sql

from nimbed import Embedder, EmbeddingBatch, EmbeddingKinds, SparseBatch
from nimbed.embedder import giving
from nimbed.errors import ConfigurationError
from nimbed.fusion import DAMPING, Fusion, check_weights
from nimbed.spec import Kind
from nimbed_pgvector.schema import Table, identifier, same_table
from nimbed_pgvector.search import (
    Filter,
    Hit,
    Way,
    condition_of,
    distance_to,
    hit_of,
    indexed_vector,
    nearest_ids,
    pasted,
    scan_cost,
    sign_distances,
    vector_of,
    way_to,
)
from nimbed_pgvector.sparse import sparse_column
from nimbed_pgvector.statements import Procedure, Query, Rows, trusted

__all__ = ["Question", "embed_question_kinds", "hybrid_search", "index_words", "written_hybrid"]

# Of each ranking so many are fused at least, and so many times k.
_LEAST_FUSED, _FUSED = 50, 4
_WHERE = sql.SQL("WHERE")


class Question(NamedTuple):
    """What passages are ranked by: what there is of these, in the order of ``rankings``.

    Attributes:
        dense: One dense vector of a query.
        sparse: One sparse vector of it.
        words: Its words, any of which are looked for, and the text search configuration that
            divides them, such as ``english`` or ``simple``.
        rankings: Their names, in the order of their weights.
    """

    dense: EmbeddingBatch | None = None
    sparse: SparseBatch | None = None
    words: tuple[str, str] | None = None
    rankings: tuple[str, ...] = ("dense",)


def embed_question_kinds(
    embedder: Embedder, table: Table, question: str, kinds: Sequence[Kind]
) -> EmbeddingKinds:
    """Return a question's vectors of several kinds, or of the sparse one, from one forward pass.

    Raises:
        ConfigurationError: If the table has no such column, or the model gives no such vectors.
    """
    layout = table.layout
    sparse = sparse_column(layout.sparse, table.name)
    if kinds == ("sparse",):
        return giving(embedder, "sparse").embed_kinds(
            [question], kinds=kinds, input_type="query", max_active=sparse.spec.max_active
        )
    spec = layout.spec
    rescored = spec.packed or layout.rescoring is not None
    return giving(embedder, "sparse").embed_kinds(
        [question],
        kinds=kinds,
        input_type="query",
        embedding_type="float" if rescored else spec.embedding_type,
        dimensions=spec.dimensions,
        int8_scale=None if rescored else spec.int8_scale,
        max_active=sparse.spec.max_active,
    )


class _Ranking(NamedTuple):
    """A SELECT of (id, distance), and what is bound to its places."""

    name: str
    nearest: sql.Composed
    given: tuple[Any, ...]


def hybrid_search(
    table: Table,
    question: Question,
    *,
    k: int,
    by: Fusion = "rrf",
    weights: Sequence[float] | None = None,
    where: Filter | None = None,
    parameters: Sequence[Any] = (),
) -> Procedure[list[Hit]]:
    """Return the k best passages by all rankings of a question, best first.

    Args:
        table: Where to look.
        question: What the passages are ranked by.
        k: How many.
        by: How the rankings are fused.
        weights: What each ranking counts for; None for 1 each.
        where: A condition that every hit fulfils.
        parameters: Values for the condition's %s, always bound.

    Raises:
        ConfigurationError: If k or a weight is out of range, the table has no such column, or there
            is no such text search configuration.
        SpaceMismatchError: If a vector does not live in the space of its column.
    """
    _check(table, question, k)
    each_weight = check_weights(weights, len(question.rankings))
    if question.words is not None:
        yield from _check_language(question.words[1])
    condition = condition_of(where, bool(parameters))
    rows: Rows = []
    for exact in (False, True):
        way = way_to(table, exact=exact)
        statement, given = _statement(
            way, condition, question, tuple(parameters), k, by, each_weight
        )
        costs = scan_cost(table.layout) if where is None and question.dense is not None else None
        rows = yield Query(statement, given, costs)
        if len(rows) >= k or where is None:
            break
    if not rows:
        return []
    yield from same_table(table, rows[0][0])
    alone = len(question.rankings) == 1
    return [
        hit_of(row[1:4], distance, score=None if alone else float(row[5]))
        for row, distance in zip(rows, _distances(table, question, rows), strict=True)
    ]


def written_hybrid(
    table: Table,
    question: Question,
    *,
    k: int,
    by: Fusion = "rrf",
    weights: Sequence[float] | None = None,
    where: Filter | None = None,
) -> str:
    """Return such a search as SQL to paste; see :func:`nimbed_pgvector.search.written`."""
    _check(table, question, k)
    literals: list[tuple[str, str]] = []
    if question.dense is not None:
        columns, vectors = table.layout.columns, table.layout.batches(question.dense)
        literals += [(c.name, c.literal(v)) for c, v in zip(columns, vectors, strict=True)]
    if question.sparse is not None:
        column = sparse_column(table.layout.sparse, table.name)
        literals.append((column.name, column.literal(question.sparse)))
    way = way_to(table, literals=tuple(literals))
    each_weight = check_weights(weights, len(question.rankings))

    def statement(condition: sql.Composable) -> sql.Composed:
        return _statement(way, condition, question, (), k, by, each_weight)[0]

    return pasted(way, statement, where, reach=_reach(k), ordered=True)


def _check(table: Table, question: Question, k: int) -> None:
    if k < 1:
        raise ConfigurationError(f"k must be at least 1; got {k}")
    for batch in (question.dense, question.sparse):
        if batch is not None and batch.input_type != "query":
            raise ConfigurationError(
                f"search needs a vector embedded as a query; this one is a {batch.input_type}"
            )
    if question.sparse is not None:
        sparse_column(table.layout.sparse, table.name)


def _reach(k: int) -> int:
    return max(_LEAST_FUSED, _FUSED * k)


def _distances(table: Table, question: Question, rows: Rows) -> list[float]:
    """Return the distances of hits: of dense vectors, or else of sparse ones."""
    layout, dense = table.layout, question.dense
    if dense is None:
        return [float(row[4]) for row in rows]
    if layout.spec.packed and layout.rescoring is None:
        return list(map(float, sign_distances(dense, [row[4] for row in rows])))
    step = layout.spec.int8_step if layout.rescoring is None else None
    scale = step if step and layout.spec.metric == "euclidean" else 1.0
    return [row[4] * scale for row in rows]


def _statement(
    way: Way,
    condition: sql.Composable,
    question: Question,
    parameters: tuple[Any, ...],
    k: int,
    by: Fusion,
    weights: Sequence[float],
) -> tuple[sql.Composed, tuple[Any, ...]]:
    """Return the statement, and what is bound to its places.

    Its rows are (tableoid, id, text, metadata as text, distance, score), best first.
    """
    reach, rankings = _reach(k), list[_Ranking]()
    shown: sql.Composable | None = None  # the distance of a hit
    last: tuple[Any, ...] = ()
    for name in question.rankings:
        if name == "dense" and question.dense is not None:
            made, shown, last = _by_dense(way, condition, question.dense, parameters, reach)
        elif name == "sparse" and question.sparse is not None:
            made = _by_sparse(way, condition, question.sparse, parameters, reach)
            if question.dense is None:
                column = sparse_column(way.layout.sparse, way.name)
                shown = distance_to(way, column, vector_of(way, column))
                last = () if way.literals else (column.parameter(question.sparse),)
        else:
            made = _by_words(way, condition, question.words or ("", ""), parameters, reach)
        rankings.append(made)
    part = _PLACES if by == "rrf" else _SCORES
    lists = [
        sql.SQL("{} AS (SELECT id, {} AS part FROM ({}) AS n WHERE {})").format(
            sql.Identifier(ranking.name),
            part.format(weight=sql.Literal(weight), damping=sql.Literal(DAMPING)),
            ranking.nearest,
            # What shares no token with the question is not found by it.
            sql.SQL("distance < 0" if ranking.name == "sparse" else "true"),
        )
        for ranking, weight in zip(rankings, weights, strict=True)
    ]
    names = [sql.Identifier(ranking.name) for ranking in rankings]
    joined = [names[0], *(sql.SQL("FULL JOIN {} USING (id)").format(name) for name in names[1:])]
    parts = [sql.SQL("coalesce({}.part, 0)").format(name) for name in names]
    statement = sql.SQL(
        "WITH {lists}, best AS (SELECT id, {score} AS score FROM {joined}"
        " ORDER BY score DESC, id LIMIT {k})"
        " SELECT t.tableoid, id, text, metadata::text, {distance}, score"
        " FROM best JOIN {table} AS t USING (id) ORDER BY score DESC, id"
    ).format(
        lists=sql.SQL(", ").join(lists),
        score=sql.SQL(" + ").join(parts),
        joined=sql.SQL(" ").join(joined),
        k=sql.Literal(k),
        distance=shown or sql.SQL("NULL::float8"),
        table=identifier(way.name),
    )
    given = tuple(value for ranking in rankings for value in ranking.given)
    return statement, (*given, *last)


_PLACES = sql.SQL("{weight}::float8 / ({damping} + row_number() OVER (ORDER BY distance, id))")
# 1 for the nearest, 0 for the farthest, and 1 for all where they are equally far.
_SCORES = sql.SQL(
    "{weight}::float8 * coalesce((max(distance) OVER () - distance)"
    " / nullif(max(distance) OVER () - min(distance) OVER (), 0), 1)"
)


def _by_dense(
    way: Way,
    condition: sql.Composable,
    query: EmbeddingBatch,
    parameters: tuple[Any, ...],
    reach: int,
) -> tuple[_Ranking, sql.Composable, tuple[Any, ...]]:
    """Return the ranking by dense vectors, the distance of a hit, and what is bound to that."""
    layout = way.layout
    nearest = nearest_ids(way, condition, reach)
    column = layout.rescoring or layout.embedding
    by_signs = layout.spec.packed and layout.rescoring is None
    shown: sql.Composable = distance_to(way, column, vector_of(way, column))
    if by_signs and not way.literals:
        shown = sql.SQL("bit_send({})").format(sql.Identifier(column.name))
    if way.literals:
        return _Ranking("dense", nearest, parameters), shown, ()
    *indexed, ranking = (
        each.parameter(vector)
        for each, vector in zip(layout.columns, layout.batches(query), strict=True)
    )
    made = _Ranking("dense", nearest, (ranking, *parameters, *indexed))
    return made, shown, () if by_signs else (ranking,)


def _by_sparse(
    way: Way,
    condition: sql.Composable,
    query: SparseBatch,
    parameters: tuple[Any, ...],
    reach: int,
) -> _Ranking:
    column = sparse_column(way.layout.sparse, way.name)
    passages = sql.SQL("{} {}").format(identifier(way.name), condition)
    if way.exact:
        passages = sql.SQL("(SELECT * FROM {} OFFSET 0) AS matching").format(passages)
    nearest = sql.SQL("SELECT id, {} AS distance FROM {} ORDER BY distance, id LIMIT {}").format(
        distance_to(way, column, indexed_vector(way, column, reach, True)),
        passages,
        sql.Literal(reach),
    )
    given = () if way.literals else (column.parameter(query),)
    return _Ranking("sparse", nearest, (*given, *parameters))


def _by_words(
    way: Way,
    condition: sql.Composable,
    words: tuple[str, str],
    parameters: tuple[Any, ...],
    reach: int,
) -> _Ranking:
    question, language = words
    # All words of a question are in few passages, any of them in many: the rank tells.
    nearest = sql.SQL(
        "WITH asked AS MATERIALIZED (SELECT replace(plainto_tsquery({language}, {question})::text,"
        " '&', '|')::tsquery AS q)"
        " SELECT id, -ts_rank_cd({vector}, (SELECT q FROM asked))::float8 AS distance FROM {table}"
        " {condition} {vector} @@ (SELECT q FROM asked) ORDER BY distance, id LIMIT {reach}"
    ).format(
        vector=sql.SQL("to_tsvector({}, text)").format(sql.Literal(language)),
        language=sql.Literal(language),
        question=sql.Literal(question) if way.literals else trusted("%s"),
        table=identifier(way.name),
        condition=sql.SQL("{} AND").format(condition) if condition.as_string(None) else _WHERE,
        reach=sql.Literal(reach),
    )
    return _Ranking("words", nearest, parameters if way.literals else (question, *parameters))


def index_words(table: Table, language: str) -> Procedure[None]:
    """Build the index by which words are found, if there is none of this language.

    Raises:
        ConfigurationError: If there is no such text search configuration.
    """
    yield from _check_language(language)
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
