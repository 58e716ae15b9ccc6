"""The index: built once, with progress, by the operator class of the spec."""

from __future__ import annotations

import threading
from typing import Any, get_args

import psycopg
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType
from nimbed_pgvector import VectorTable
from nimbed_pgvector import table as table_module
from nimbed_pgvector.index import IndexPlan, build, plan_index
from nimbed_pgvector.schema import Table, find
from nimbed_pgvector.statements import Procedure, run

pytestmark = pytest.mark.postgres

ITEMS = [(f"p{n}", f"passage number {n}") for n in range(2000)]
CLASSES = {
    "float": "vector_cosine_ops",
    "int8": "halfvec_cosine_ops",
    "uint8": "halfvec_l2_ops",
    "binary": "bit_hamming_ops",
    "ubinary": "bit_hamming_ops",
}


@pytest.mark.parametrize("embedding_type", get_args(EmbeddingType))
def test_the_operator_class_follows_the_metric_and_statistics_are_fresh(
    connection: psycopg.Connection, embedding_type: EmbeddingType
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type=embedding_type)
    table.load(ITEMS[:300])
    assert table.index(m=8, ef_construction=32)
    (row,) = connection.execute(
        "SELECT indexdef FROM pg_indexes WHERE indexname = 't_embedding_idx'"
    ).fetchall()
    assert f"(embedding {CLASSES[embedding_type]})" in row[0]
    assert "m='8', ef_construction='32'" in row[0]
    assert connection.execute(
        "SELECT reltuples::int FROM pg_class WHERE relname = 't'"
    ).fetchall() == [(300,)]
    assert not table.index()


def test_progress_is_told_on_another_connection(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:1000])
    told: list[tuple[int, int]] = []
    # One worker, many links: slow enough to be seen at least once.
    table.index(m=64, ef_construction=900, workers=0, on_progress=lambda *at: told.append(at))
    assert told
    assert all(0 <= done <= total for done, total in told)
    assert told == sorted(told)


def test_two_builders_make_one_index(dsn: str, connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder()).load(ITEMS)
    errors: list[BaseException] = []

    def build() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                VectorTable(own, "t", FakeEmbedder()).index()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert connection.execute(
        "SELECT count(*) FROM pg_indexes WHERE tablename = 't' AND indexdef LIKE '%%hnsw%%'"
    ).fetchall() == [(1,)]


def test_memory_and_workers_follow_the_rows_and_the_server(connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary").load(ITEMS)
    table = run(connection, find("t"))
    assert table is not None
    plan = run(connection, plan_index(table))
    assert plan.rows == 2000
    assert plan.memory == 64 * 2**20
    assert plan.workers == 7
    assert run(connection, plan_index(table, memory=2**27, workers=1)).memory == 2**27


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"m": 1}, "m must lie"), ({"m": 40}, "2 m = 80"), ({"ef_construction": 2000}, "1000")],
)
def test_numbers_out_of_range_are_refused(
    connection: psycopg.Connection, arguments: dict[str, Any], sentence: str
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:5])
    with pytest.raises(ConfigurationError, match=sentence):
        table.index(**arguments)


def test_a_renamed_table_keeps_its_index_and_the_next_of_its_name_gets_one(
    connection: psycopg.Connection,
) -> None:
    for _ in range(2):
        table = VectorTable(connection, "t", FakeEmbedder())
        table.load(ITEMS[:100])
        assert table.index()
        connection.execute("DROP TABLE IF EXISTS old")
        connection.execute("ALTER TABLE t RENAME TO old")
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:100])
    assert table.index()
    assert connection.execute(
        "SELECT tablename FROM pg_indexes WHERE indexdef LIKE '%%hnsw%%' ORDER BY 1"
    ).fetchall() == [("old",), ("t",)]


def test_an_index_by_another_operator_is_no_index_for_the_search(
    connection: psycopg.Connection,
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:100])
    connection.execute("CREATE INDEX ON t USING hnsw (embedding vector_l2_ops)")
    assert table.index()
    assert not table.index()


def test_where_workers_find_no_shared_memory_one_process_builds(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:100])
    tried: list[int] = []

    def full(table: Table, plan: IndexPlan) -> Procedure[bool]:
        tried.append(plan.workers)
        if plan.workers:
            raise psycopg.errors.DiskFull("could not resize shared memory segment")
        return (yield from build(table, plan))

    monkeypatch.setattr(table_module, "build", full)
    assert table.index(workers=2)
    assert tried == [2, 0]
    assert not table.index()
