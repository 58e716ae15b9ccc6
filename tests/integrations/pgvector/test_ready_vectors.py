"""Vectors that exist already: the quick way into an empty table, and the careful one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from tests.integrations.pgvector.stored_rows import ITEMS, TEXTS, decoded, stored

from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed.rows import Row
from nimbed_pgvector import AsyncVectorTable, LoadReport, VectorTable, copy
from nimbed_pgvector.copy import Ready

pytestmark = pytest.mark.postgres
TEXT = "passage {} of a few hundred characters" + ", and so on" * 20


def test_ready_vectors_are_loaded_without_a_model(connection: psycopg.Connection) -> None:
    batch = FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="ubinary")
    rows = [Row(place, text, name) for place, (name, text) in enumerate(ITEMS, 1)]
    parts = [(rows[:250], batch.select(slice(250))), (rows[250:], batch.select(slice(250, 400)))]
    table = VectorTable(connection, "t")
    report = table.load_embedded(parts, batch.spec)
    assert report.loaded == 400
    given = np.stack([decoded(row[3], "bit") for row in stored(connection, "t")])
    np.testing.assert_array_equal(given, batch.bits())
    assert table.load_embedded(parts, batch.spec).unchanged == 400
    flipped = EmbeddingBatch(
        vectors=batch.vectors[:1] ^ 255,
        spec=batch.spec,
        input_type="passage",
        token_counts=batch.token_counts[:1],
    )
    assert table.load_embedded([(rows[:1], flipped)], batch.spec).loaded == 1


def test_ready_floats_become_bits_with_floats_beside_them(connection: psycopg.Connection) -> None:
    batch = FakeEmbedder().embed(TEXTS, input_type="passage")
    rows = [Row(place, text, name) for place, (name, text) in enumerate(ITEMS, 1)]
    rows[7] = Row(8, "twice", "p3")
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary", also="halfvec")
    report = table.load_embedded([(rows, batch)], batch.spec)
    assert (report.loaded, report.rejected) == (399, 1)
    given = np.stack([decoded(row[3], "bit") for row in stored(connection, "t")])
    kept = np.delete(batch.vectors, 7, axis=0)
    np.testing.assert_array_equal(given, np.packbits(kept > 0, axis=1))
    assert table.search("what?", 1, candidates=399)[0].id in {name for name, _ in ITEMS}


def test_ready_queries_or_a_wrong_count_are_refused(connection: psycopg.Connection) -> None:
    queries = FakeEmbedder().embed(["a"], input_type="query")
    table = VectorTable(connection, "t")
    with pytest.raises(ConfigurationError, match="embedded as queries"):
        table.load_embedded([([Row(1, "a", "a")], queries)], queries.spec)
    with pytest.raises(ConfigurationError, match="0 rows came with 1 vectors"):
        table.load_embedded([([], queries)], queries.spec)
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(0,)]


def many(count: int, *, shift: int = 0) -> Iterator[Ready]:
    """Yield rows and vectors from the one numbered ``shift`` on, in uneven parts."""
    random = np.random.default_rng(3)
    spec = FakeEmbedder().spec(embedding_type="ubinary")
    vectors = random.integers(0, 256, (count, spec.width), np.uint8)
    rows = [Row(n, TEXT.format(n), n, {"page": n}) for n in range(count)]
    order = np.roll(np.arange(count), -shift)
    for start in range(0, count, 1700):
        places = order[start : start + 1700]
        batch = EmbeddingBatch(
            vectors=vectors[places],
            spec=spec,
            input_type="passage",
            token_counts=np.ones(len(places), np.int32),
        )
        yield [rows[place] for place in places], batch


def complete(connection: psycopg.Connection, count: int) -> bool:
    expected = np.concatenate([batch.vectors for _, batch in many(count)])
    rows = connection.execute(
        "SELECT id::int, text, metadata, bit_send(embedding) FROM t ORDER BY 1"
    ).fetchall()
    assert [row[:3] for row in rows] == [(n, TEXT.format(n), {"page": n}) for n in range(count)]
    given = np.stack([decoded(row[3], "bit") for row in rows])
    return bool((given == expected).all())


@pytest.fixture
def small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "_TRANSACTION", 2**20)


@pytest.mark.usefixtures("small_transactions")
def test_an_empty_table_is_filled_in_few_transactions_and_filled_up_by_row(
    connection: psycopg.Connection,
) -> None:
    table = VectorTable(connection, "t")
    spec = FakeEmbedder().spec(embedding_type="ubinary")
    told: list[int] = []
    report = table.load_embedded(
        many(15_000), spec, source="file", on_progress=lambda report: told.append(report.read)
    )
    assert (report.loaded, report.unchanged, told[-1]) == (15_000, 0, 15_000)
    assert told == sorted(told)
    ledger = connection.execute("SELECT passages, source FROM nimbed_ledger").fetchall()
    assert 3 < len(ledger) < 15
    assert sum(passages for passages, _ in ledger) == 15_000
    assert {source for _, source in ledger} == {"file"}
    assert complete(connection, 15_000)
    connection.execute("DELETE FROM t WHERE id::int % 7 = 0")
    connection.execute("UPDATE t SET text = 'x', content_hash = '' WHERE id::int % 7 = 1")
    assert table.load_embedded(many(15_000), spec).loaded == sum(n % 7 < 2 for n in range(15_000))
    assert complete(connection, 15_000)


@pytest.mark.usefixtures("small_transactions")
def test_two_that_fill_one_table_agree(dsn: str, connection: psycopg.Connection) -> None:
    spec = FakeEmbedder().spec(embedding_type="ubinary")
    reports: list[LoadReport] = []
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def fill(shift: int) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                start.wait()
                table = VectorTable(own, "t")
                reports.append(table.load_embedded(many(12_000, shift=shift), spec))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fill, args=(shift,)) for shift in (0, 5_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(report.loaded for report in reports) == 12_000
    assert sum(report.unchanged for report in reports) == 12_000
    assert complete(connection, 12_000)


async def test_more_loads_at_once_than_the_loop_has_threads(dsn: str) -> None:
    spec = FakeEmbedder().spec(embedding_type="ubinary")

    async def load(name: str) -> int:
        # Tables made at the same moment, in a database that has not even the extension.
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as own:
            return (await AsyncVectorTable(own, name).load_embedded(many(3000), spec)).loaded

    assert await asyncio.gather(*(load(f"t{n}") for n in range(40))) == [3000] * 40


@pytest.mark.usefixtures("small_transactions")
def test_a_file_that_breaks_off_leaves_whole_transactions(connection: psycopg.Connection) -> None:
    def broken() -> Iterator[Ready]:
        yield from many(15_000)
        raise OSError("the disk came off")

    table = VectorTable(connection, "t")
    spec = FakeEmbedder().spec(embedding_type="ubinary")
    with pytest.raises(OSError, match="came off"):
        table.load_embedded(broken(), spec)
    (stored_rows,) = connection.execute("SELECT count(*) FROM t").fetchall()[0]
    (noted,) = connection.execute("SELECT sum(passages) FROM nimbed_ledger").fetchall()[0]
    assert 0 < stored_rows == noted < 15_000
    assert table.load_embedded(many(15_000), spec).unchanged == stored_rows
    assert complete(connection, 15_000)
