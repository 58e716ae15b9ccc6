"""Databases that others have set up: schemas, policies, columns, limits and filters."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from nimbed import FakeEmbedder
from nimbed.errors import BackendError, ConfigurationError, NimbedError
from nimbed.rows import Row
from nimbed_pgvector import VectorTable, connect

pytestmark = pytest.mark.postgres

KINDS: list[dict[str, Any]] = [
    {"embedding_type": "float"},
    {"embedding_type": "ubinary"},
    {"embedding_type": "ubinary", "also": "halfvec"},
]
ITEMS = [(f"p{n}", f"passage number {n}", {"rare": n % 180 == 7}) for n in range(3000)]


def changed(items: list[Any]) -> list[Any]:
    return [(name, f"{text}, mended", *rest) for name, text, *rest in items]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_filter_gives_k_hits_or_all_that_match(
    connection: psycopg.Connection, options: dict[str, Any]
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), **options)
    table.load(ITEMS)
    table.index()
    connection.execute("SET enable_seqscan = off")  # so that the index is used at any price
    connection.execute("SET hnsw.max_scan_tuples = 200")
    condition = "metadata->>'rare' = 'true'"
    matching = {name for name, _, facts in ITEMS if facts["rare"]}
    assert len(matching) == 17
    for k in (10, 17, 30):
        hits = table.search("passage number 187", k, filter=condition)
        assert len({hit.id for hit in hits} & matching) == min(k, 17)
        assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
    bound = table.search("what?", 10, filter="metadata->>'rare' = %s", parameters=["true"])
    assert len(bound) == 10
    assert table.search("what?", 10, filter="id = 'nobody'") == []


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_pgvector_may_lie_in_a_schema_off_the_search_path(
    connection: psycopg.Connection, options: dict[str, Any]
) -> None:
    connection.execute('CREATE SCHEMA "Its own"')
    connection.execute('CREATE EXTENSION vector SCHEMA "Its own"')
    table = VectorTable(connection, "t", FakeEmbedder(), **options)
    table.load(ITEMS[:200])
    assert table.index()
    for again in (table, VectorTable(connection, "t", FakeEmbedder())):
        assert again.search("passage number 7", 1, filter="id <> 'p8'")[0].id is not None
    report = VectorTable(connection, "t", FakeEmbedder()).load(changed(ITEMS[:10]) + ITEMS[10:220])
    assert (report.loaded, report.unchanged) == (30, 190)
    assert not table.index()
    assert connection.execute("SHOW search_path").fetchall() == [('"$user", public',)]


def test_a_column_of_somebody_elses_is_left_to_its_default(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:50])
    connection.execute("ALTER TABLE t ADD COLUMN state text NOT NULL DEFAULT 'new'")
    connection.execute("UPDATE t SET state = 'read'")
    table.load(changed(ITEMS[:10]) + ITEMS[10:60])
    states = connection.execute("SELECT state, count(*) FROM t GROUP BY 1 ORDER BY 1").fetchall()
    assert states == [("new", 10), ("read", 50)]


def test_a_role_under_row_level_security_loads_changes_and_searches(
    connection: psycopg.Connection, dsn: str
) -> None:
    VectorTable(connection, "t", FakeEmbedder()).load(ITEMS[:5])
    connection.execute("DROP ROLE IF EXISTS nimbed_tenant")
    connection.execute("CREATE ROLE nimbed_tenant LOGIN")
    try:
        connection.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
        connection.execute(
            "CREATE POLICY theirs ON t TO nimbed_tenant USING (id <> 'p0') WITH CHECK (true)"
        )
        connection.execute("GRANT SELECT, INSERT, UPDATE ON t TO nimbed_tenant")
        connection.execute("GRANT SELECT ON nimbed_spec TO nimbed_tenant")
        connection.execute("GRANT SELECT, INSERT ON nimbed_ledger TO nimbed_tenant")
        with connect(dsn.replace("postgres:@", "nimbed_tenant:@")) as theirs:
            table = VectorTable(theirs, "t", FakeEmbedder())
            report = table.load(ITEMS[1:2000], chunk_rows=500)
            assert (report.loaded, report.unchanged) == (1995, 4)
            assert table.load(changed(ITEMS[1:20])).loaded == 19
            ready = FakeEmbedder().embed([f"ready {n}" for n in range(9)], input_type="passage")
            rows = [Row(n, f"ready {n}", f"p{n}") for n in range(1, 10)]
            assert table.load_embedded([(rows, ready)], ready.spec).loaded == 9
            found = table.search("passage number 0", 1)
            assert found[0].id != "p0"
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(2000,)]
    finally:
        connection.execute("DROP OWNED BY nimbed_tenant")
        connection.execute("DROP ROLE nimbed_tenant")


def test_a_statement_timeout_stops_no_load_and_is_named_where_it_stops_a_search(
    connection: psycopg.Connection,
) -> None:
    connection.execute("CREATE EXTENSION vector")  # which takes about as long by itself
    connection.execute("SET statement_timeout = '30ms'")
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS)
    table.load(changed(ITEMS))
    assert table.index()
    with pytest.raises(BackendError, match=r"statement_timeout is too short.*ALTER ROLE"):
        table.search("what?", filter="pg_sleep(1) IS NOT NULL")
    assert connection.execute("SHOW statement_timeout").fetchall() == [("30ms",)]


@pytest.fixture
def pgbouncer(dsn: str, open_folder: Path) -> Iterator[str]:
    """The DSN of a PgBouncer in transaction mode before the database."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
    facts = conninfo_to_dict(dsn)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    users = open_folder / "users.txt"
    users.write_text('"postgres" ""\n')
    settings = open_folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{facts['dbname']} = host={facts['host']} port={facts['port']}"
        f" user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = trust\nauth_file = {users}\n"
        "pool_mode = transaction\ndefault_pool_size = 2\n"
    )
    as_root = os.geteuid() == 0
    process = subprocess.Popen(
        [program, str(settings)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        user="pgserver" if as_root else None,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"postgresql://postgres@127.0.0.1:{port}/{facts['dbname']}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_pool_in_transaction_mode_is_no_obstacle(pgbouncer: str, options: dict[str, Any]) -> None:
    for items in (ITEMS, changed(ITEMS)):
        with connect(pgbouncer) as first, connect(pgbouncer) as second:
            table = VectorTable(first, "t", FakeEmbedder(), **options)
            assert table.load(items[:1500], chunk_rows=100).loaded == 1500
            # Another client, whose statements meet the same servers.
            other = VectorTable(second, "t", FakeEmbedder())
            assert other.load(items[1500:], chunk_rows=100).loaded == 1500
            assert table.load(items, chunk_rows=100).unchanged == 3000
            table.index()
    with connect(pgbouncer, read_only=True) as reader:
        table = VectorTable(reader, "t", FakeEmbedder())
        for _ in range(10):
            assert len(table.search("what?", 3, filter="metadata->>'rare' = 'true'")) == 3
        with pytest.raises(NimbedError, match="read-only"):
            table.load([("x", "one")])


@pytest.mark.parametrize(
    "authority",
    ["app:se@cret#42@host/db", "app:se/cret@host/db", "app:se?cret@host/db", "a:se?cret=1@host/d"],
)
def test_a_password_is_never_printed(authority: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encode") as caught:
        connect(f"postgresql://{authority}")
    assert "cret" not in str(caught.value)


def test_a_percent_encoded_password_is_one(dsn: str) -> None:
    with connect(dsn.replace("postgres:@", "postgres:se%40cret%2342@")) as connection:
        assert connection.info.password == "se@cret#42"
    with pytest.raises(BackendError, match="cannot connect") as caught:
        connect("postgresql://app:se%40cret@127.0.0.1:1/db?connect_timeout=1")
    assert "cret" not in str(caught.value)
