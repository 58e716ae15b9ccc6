"""Plans, filters and settings of the search, on a real PostgreSQL."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError, NimbedError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.search import nearest
from nimbed_pgvector import VectorTable
from nimbed_pgvector.schema import find
from nimbed_pgvector.search import search
from nimbed_pgvector.statements import Query, run

pytestmark = pytest.mark.postgres

ITEMS = [
    (f"p{n}", f"passage number {n}", {"page": n, "lang": "en" if n % 50 else "de"})
    for n in range(3000)
]
KINDS: list[dict[str, Any]] = [
    {"embedding_type": "float"},
    {"embedding_type": "int8"},
    {"embedding_type": "uint8"},
    {"embedding_type": "ubinary"},
    {"embedding_type": "binary", "also": "halfvec"},
    {"embedding_type": "int8", "also": "float"},
]


def filled(connection: psycopg.Connection, **options: Any) -> VectorTable:
    table = VectorTable(connection, "t", FakeEmbedder(), **options)
    table.load(ITEMS)
    assert table.index()
    return table


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_kind_is_searched_through_its_index(
    connection: psycopg.Connection, options: dict[str, Any]
) -> None:
    filled(connection, **options)
    table = run(connection, find("t"))
    assert table is not None
    query = FakeEmbedder().embed(["what?"], input_type="query")
    if options == {"embedding_type": "uint8"}:
        query = FakeEmbedder().embed(["what?"], input_type="query", embedding_type="uint8")
    asked = next(search(table, query, k=10))
    assert isinstance(asked, Query)

    plan = plan_of(connection, asked)
    assert '"Index Name": "t_embedding_idx"' in plan
    assert "Seq Scan" not in plan


def plan_of(connection: psycopg.Connection, asked: Query) -> str:
    explain = sql.SQL("EXPLAIN (FORMAT JSON) {}").format(asked.statement)

    def explained() -> Any:
        return (yield dataclasses.replace(asked, statement=explain))

    return json.dumps(run(connection, explained(), each_alone=True))


@pytest.mark.parametrize(("metric", "ops"), [("dot", "ip"), ("euclidean", "l2")])
def test_a_model_that_ranks_by_length_too_is_searched_by_its_metric(
    connection: psycopg.Connection, metric: Any, ops: str
) -> None:
    fake = FakeEmbedder(dataclasses.replace(FAKE_CARD, metric=metric))
    table = VectorTable(connection, "t", fake)
    table.load(ITEMS[:500])
    assert table.index()
    query = fake.embed(["what?"], input_type="query")
    texts = [text for _, text, _ in ITEMS[:500]]
    best = nearest(query, fake.embed(texts, input_type="passage"), 10)
    hits = table.search("what?", 10)
    assert [hit.id for hit in hits] == [f"p{row}" for row in best.rows[0]]
    np.testing.assert_allclose([hit.distance for hit in hits], best.distances[0], rtol=1e-5)
    made = connection.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 't'").fetchall()
    assert any(f"vector_{ops}_ops" in index for (index,) in made)


def test_vectors_stored_out_of_line_are_searched_through_the_index(
    connection: psycopg.Connection,
) -> None:
    """The planner counts the pages of the texts alone, and so takes a scan for cheap."""
    embedder = FakeEmbedder(dataclasses.replace(FAKE_CARD, dimensions=1024))
    rest = " and so on" * 40
    items = ((f"p{n}", f"passage {n}{rest}") for n in range(6000))
    VectorTable(connection, "t", embedder).load(items)
    table = VectorTable(connection, "t", embedder)
    table.index(m=8, ef_construction=16)
    found = run(connection, find("t"))
    assert found is not None
    query = embedder.embed(["what?"], input_type="query")
    asked = next(search(found, query, k=10))
    assert isinstance(asked, Query)
    assert "t_embedding_idx" in plan_of(connection, asked)
    assert "Seq Scan" in plan_of(connection, dataclasses.replace(asked, planned_with=None))
    # A condition spares the vectors of the rows that it refuses: the planner decides.
    filtered = next(search(found, query, k=10, where="id = 'p7'"))
    assert isinstance(filtered, Query)
    assert filtered.planned_with is None
    assert [hit.id for hit in table.search("what?", filter="id = 'p7'")] == ["p7"]
    assert len(table.search("what?")) == 10
    with connection.pipeline():
        assert len(table.search("what?")) == 10
    with connection.transaction():
        assert len(table.search("what?")) == 10
        assert connection.execute("SHOW seq_page_cost").fetchall() == [("1",)]
    connection.autocommit = False
    assert len(table.search("what?")) == 10
    assert connection.execute("SHOW seq_page_cost").fetchall() == [("1",)]


def test_a_filter_binds_its_values_and_still_finds_k(connection: psycopg.Connection) -> None:
    table = filled(connection, embedding_type="ubinary", also="halfvec")
    hits = table.search("what?", 10, filter="metadata->>'lang' = %s", parameters=["de"])
    assert len(hits) == 10
    assert {hit.metadata["lang"] for hit in hits} == {"de"}
    both = table.search(
        "what?",
        5,
        filter="(metadata->>'page')::int < %s AND id LIKE %s",
        parameters=[100, "p9%"],
    )
    assert {hit.id for hit in both} <= {"p9", *(f"p{n}" for n in range(90, 100))}


def test_a_filter_without_values_may_hold_percent_signs_and_comments(
    connection: psycopg.Connection,
) -> None:
    table = filled(connection)
    hits = table.search("what?", 50, filter="id LIKE 'p10%' -- those of ten")
    assert {hit.id[:3] for hit in hits} == {"p10"}


@pytest.mark.parametrize(
    "attack",
    [
        "true); DROP TABLE t; --",
        "true) --",
        "metadata->>'lang' = 'x' ; DELETE FROM t",
    ],
)
def test_a_filter_cannot_become_a_second_statement(
    connection: psycopg.Connection, attack: str
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:10])
    with pytest.raises(NimbedError):
        table.search("what?", filter=attack)
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(10,)]


def test_a_value_is_never_sql(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:10])
    assert (
        table.search("'; DROP TABLE t; --", 2, filter="id = %s", parameters=["' OR '1'='1"]) == []
    )
    assert len(table.search("' OR 1=1 --", 20)) == 10


def test_k_may_exceed_what_the_index_looks_at_by_itself(connection: psycopg.Connection) -> None:
    table = filled(connection, embedding_type="ubinary")
    assert len(table.search("what?", 300)) == 300  # 2,400 candidates, ef_search ends at 1,000


def test_settings_end_with_the_search(connection: psycopg.Connection) -> None:
    table = filled(connection, embedding_type="ubinary")
    connection.execute("SET hnsw.ef_search = 77")
    table.search("what?", 10)
    assert connection.execute("SHOW hnsw.ef_search").fetchall() == [("77",)]
    assert connection.execute("SHOW hnsw.iterative_scan").fetchall() == [("off",)]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_settings_are_made_before_the_index_is_scanned(
    connection: psycopg.Connection, options: dict[str, Any]
) -> None:
    """With its session's settings the index would look at one neighbour and stop."""
    table = filled(connection, **options)
    connection.execute("SET hnsw.ef_search = 1; SET hnsw.iterative_scan = off")
    connection.execute("SET enable_seqscan = off")
    for _ in range(8):  # from the sixth on by a prepared statement and its generic plan
        assert len(table.search("what?", 30)) == 30


def test_a_search_is_one_statement_outside_a_transaction_and_part_of_one_inside(
    connection: psycopg.Connection,
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary")
    table.load(ITEMS[:20])
    assert len(table.search("what?", 3)) == 3
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with connection.transaction():
        connection.execute("DELETE FROM t WHERE id <> 'p7'")
        assert [hit.id for hit in table.search("what?", 3)] == ["p7"]
        raise psycopg.Rollback
    assert len(table.search("what?", 3)) == 3
    with connection.pipeline():
        assert len(table.search("what?", 3)) == 3
    connection.autocommit = False
    assert len(table.search("what?", 3)) == 3
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"candidates": 5}, "distances are final"),
        ({"parameters": [1]}, "no filter to put them into"),
        ({"filter": ("id = %s", ["p1"])}, "its values come as parameters=.*got tuple"),
        ({"filter": "no_such_column = 1"}, "no_such_column"),
        ({"filter": "id = %s", "parameters": [1, 2]}, "placeholders"),
    ],
)
def test_a_wrong_search_is_answered_with_a_sentence(
    connection: psycopg.Connection, arguments: dict[str, Any], sentence: str
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:10])
    with pytest.raises(ConfigurationError, match=sentence):
        table.search("what?", **arguments)


def test_a_missing_table_is_named(connection: psycopg.Connection) -> None:
    with pytest.raises(ConfigurationError, match="there is no table nowhere"):
        VectorTable(connection, "nowhere", FakeEmbedder()).search("what?")


def test_own_adapters_and_rows_of_the_caller_do_not_disturb(connection: psycopg.Connection) -> None:
    connection.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
    table = filled(connection, embedding_type="ubinary", also="halfvec")
    assert len(table.search("what?", 3)) == 3


@pytest.mark.parametrize(
    "options", [{}, {"embedding_type": "ubinary"}, {"embedding_type": "int8", "also": "float"}]
)
def test_a_table_replaced_behind_a_server_is_noticed(
    connection: psycopg.Connection, options: dict[str, Any]
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), **options)
    table.load(ITEMS[:20])
    assert table.search("what?", 3)
    # The same vectors again, as after a repair: the search goes on.
    VectorTable(connection, "same", FakeEmbedder(), **options).load(ITEMS[:20])
    connection.execute("ALTER TABLE t RENAME TO t1; ALTER TABLE same RENAME TO t")
    assert table.search("what?", 3)
    # Vectors of as many dimensions by another model: only the contract tells them apart.
    other = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="other/model"))
    VectorTable(connection, "other", other, **options).load(ITEMS[:20])
    connection.execute("ALTER TABLE t RENAME TO t2; ALTER TABLE other RENAME TO t")
    with pytest.raises(SpaceMismatchError, match=r"replaced by one of .* of other/model"):
        table.search("what?", 3)
