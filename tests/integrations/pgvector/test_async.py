"""The async face does what the sync one does, and lets the loop breathe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.rows import Row
from nimbed_pgvector import AsyncVectorTable, VectorTable

pytestmark = pytest.mark.postgres
ITEMS = [(f"p{n}", f"passage number {n}", {"page": n}) for n in range(500)]


async def test_load_index_and_search_agree_with_the_sync_face(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(
            connection, "t", FakeEmbedder(), embedding_type="ubinary", also="halfvec"
        )
        told: list[int] = []
        report = await table.load(
            ITEMS, chunk_rows=100, on_progress=lambda report: told.append(report.read)
        )
        assert (report.loaded, told[-1]) == (500, 500)
        assert (await table.load(ITEMS)).unchanged == 500
        assert await table.index()
        assert not await table.index()
        found = await table.search("what?", 5, filter="id LIKE %s", parameters=["p1%"])
        spec = await table.spec()
    with psycopg.connect(dsn, autocommit=True) as own:
        same = VectorTable(own, "t", FakeEmbedder())
        assert same.search("what?", 5, filter="id LIKE %s", parameters=["p1%"]) == found
        assert same.spec == spec


async def test_a_pool_serves_searches_at_once(dsn: str) -> None:
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=3) as pool:
        table = AsyncVectorTable(pool, "t", FakeEmbedder(), embedding_type="int8")
        assert (await table.load(ITEMS)).loaded == 500
        found = await asyncio.gather(*(table.search(f"question {n}", 3) for n in range(20)))
        assert [len(hits) for hits in found] == [3] * 20


def test_a_sync_pool_is_taken_too(dsn: str) -> None:
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        table = VectorTable(pool, "t", FakeEmbedder())
        assert table.load(ITEMS).loaded == 500
        assert table.index(on_progress=lambda done, total: None)
        assert len(table.search("what?", 3)) == 3


async def test_ready_vectors_are_loaded(dsn: str) -> None:
    batch = FakeEmbedder().embed([text for _, text, _ in ITEMS], input_type="passage")
    rows = [Row(n, text, name, facts) for n, (name, text, facts) in enumerate(ITEMS, 1)]
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(connection, "t")
        assert (await table.load_embedded([(rows, batch)], batch.spec)).loaded == 500


async def test_a_cancelled_load_lets_go_of_its_connection(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(connection, "t", FakeEmbedder())
        begun = threading.Event()

        def endless() -> Iterator[Any]:
            n = 0
            while True:
                yield f"p{n}", f"passage number {n}"
                n += 1
                if n == 300:
                    begun.set()

        loading = asyncio.create_task(table.load(endless(), chunk_rows=50))
        while not begun.is_set():
            await asyncio.sleep(0.001)  # the loop is free while it loads
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        rows = await (await connection.execute("SELECT count(*) FROM t")).fetchall()
        assert rows[0][0] >= 250
        assert rows[0][0] % 50 == 0


async def test_errors_are_the_same(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        table = AsyncVectorTable(connection, "t", FakeEmbedder())
        with pytest.raises(ConfigurationError, match="no table t"):
            await table.search("what?")
        await table.load(ITEMS[:5])
        with pytest.raises(SpaceMismatchError):
            await AsyncVectorTable(connection, "t", FakeEmbedder(), dimensions=16).load(ITEMS)
        await connection.execute("SELECT 1")
        with pytest.raises(ConfigurationError, match="inside a transaction"):
            await table.load(ITEMS)
