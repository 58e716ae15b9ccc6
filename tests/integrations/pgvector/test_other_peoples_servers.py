"""Databases that others have set up: schemas, policies, columns, limits and filters."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.integrations.pgvector.crash_migrator import OTHER

from nimbed import FakeEmbedder
from nimbed.errors import BackendError, ConfigurationError, NimbedError
from nimbed.fake import FAKE_CARD
from nimbed.rows import Row
from nimbed_pgvector import AsyncVectorTable, SyncedTable, VectorTable, connect
from nimbed_pgvector.query_rows import query_rows

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
    assert not table.index(words="english")
    assert len(table.search("passage number 7", 5, hybrid="english")) == 5
    assert table.migrate(FakeEmbedder(OTHER)).state == "switched"
    assert not table.index()
    assert len(table.search("what?", 5)) == 5
    assert table.rollback(FakeEmbedder()).state == "rolled back"
    assert table.finish().state == "finished"
    assert connection.execute("SHOW search_path").fetchall() == [('"$user", public',)]


PARTED = "CREATE TABLE {0} {1}; CREATE TABLE {0}_0 PARTITION OF {0} FOR VALUES WITH (MODULUS 2,"
PARTED += " REMAINDER 0); CREATE TABLE {0}_1 PARTITION OF {0} FOR VALUES WITH (MODULUS 2, REMAINDER"
PARTED += " 1)"


def test_a_table_in_partitions_is_loaded_searched_and_migrated(
    connection: psycopg.Connection,
) -> None:
    VectorTable(connection, "whole", FakeEmbedder()).load(ITEMS[:1])
    connection.execute(PARTED.format("t", "(LIKE whole INCLUDING ALL) PARTITION BY HASH (id)"))
    table = VectorTable(connection, "t", FakeEmbedder())
    assert table.load(ITEMS[:300]).loaded == 300
    assert table.index(words="english")
    report = table.load(changed(ITEMS[:10]) + ITEMS[10:320])
    assert (report.loaded, report.unchanged) == (30, 290)
    assert [hit.id for hit in table.search("what?", 5, filter="id = 'p7'")] == ["p7"]
    assert len(table.search("passage number 7", 5, hybrid="english")) == 5
    assert table.audit().ok
    assert table.migrate(FakeEmbedder(OTHER)).report.loaded == 320
    assert not table.index()
    assert table.rollback(FakeEmbedder()).state == "rolled back"
    assert table.finish().state == "finished"


@pytest.mark.parametrize("column", [None, "embedding"], ids=["beside", "column"])
def test_a_table_in_partitions_is_kept_in_step(
    connection: psycopg.Connection, column: str | None
) -> None:
    kind = "(id int PRIMARY KEY, body text) PARTITION BY HASH (id)"
    connection.execute(PARTED.format("articles", kind))
    rows = "INSERT INTO articles SELECT n, 'body ' || n FROM generate_series(1, 100) n"
    connection.execute(rows)
    table = SyncedTable(connection, "articles", FakeEmbedder(), text_fields=["body"], column=column)
    table.prepare()
    assert table.run().loaded == 100
    assert table.index()
    connection.execute("UPDATE articles SET body = 'mended' WHERE id < 11")
    connection.execute("DELETE FROM articles WHERE id > 90")
    connection.execute("UPDATE articles SET id = 1000 + id WHERE id BETWEEN 50 AND 59")
    table.run()
    view = VectorTable(connection, table.view, FakeEmbedder())
    for _ in range(2):
        texts = {hit.id: hit.text for hit in view.search("what?", 200)}
        assert texts == dict(connection.execute("SELECT id::text, body FROM articles").fetchall())
        assert view.audit().ok
        if view.spec.model != OTHER.id:
            view.migrate(FakeEmbedder(OTHER))


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


@pytest.mark.parametrize("column", [None, "embedding"], ids=["beside", "column"])
def test_policies_of_a_synced_table_hold_for_who_searches_its_view(
    connection: psycopg.Connection, dsn: str, column: str | None
) -> None:
    connection.execute("CREATE TABLE articles (id int PRIMARY KEY, body text, tenant text)")
    connection.execute(
        "INSERT INTO articles SELECT n, 'body ' || n, CASE WHEN n % 10 = 0 THEN 'a' ELSE 'b' END"
        " FROM generate_series(1, 400) n"
    )
    for role in ("nimbed_tenant", "nimbed_worker"):
        connection.execute(f"DROP ROLE IF EXISTS {role}")
        connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        connection.execute("ALTER TABLE articles ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY own ON articles TO PUBLIC USING (tenant = 'a')")
        made: dict[str, Any] = {"text_fields": ["body"], "column": column}
        table = SyncedTable(connection, "articles", FakeEmbedder(), **made)
        table.prepare()
        granted = table.grants(worker="nimbed_worker", reader="nimbed_tenant")
        for line in granted:
            if "BYPASSRLS" not in line:
                connection.execute(line)
        with connect(dsn.replace("postgres:@", "nimbed_worker:@")) as theirs:
            worker = SyncedTable(theirs, "articles", FakeEmbedder(), **made)
            with pytest.raises(ConfigurationError, match="policies may hide rows.*BYPASSRLS"):
                worker.run()
        connection.execute(next(line for line in granted if "BYPASSRLS" in line))
        with connect(dsn.replace("postgres:@", "nimbed_worker:@")) as theirs:
            worker = SyncedTable(theirs, "articles", FakeEmbedder(), **made)
            assert worker.run().loaded == 400
        table.index()
        everybody = VectorTable(connection, table.view, FakeEmbedder())
        assert len(everybody.search("what?", 400)) == 400
        with connect(dsn.replace("postgres:@", "nimbed_tenant:@")) as theirs:
            hits = VectorTable(theirs, table.view, FakeEmbedder()).search("what?", 400)
            assert {hit.id for hit in hits} == {str(n) for n in range(10, 401, 10)}
            stored = "articles" if column else "articles_embedding_store"
            counted = theirs.execute(f"SELECT count(*) FROM {stored}").fetchall()
            assert counted == [(40,)]
            everybody.migrate(FakeEmbedder(OTHER))
            now = VectorTable(theirs, table.view, FakeEmbedder(OTHER))
            assert len(now.search("what?", 400)) == 40
    finally:
        for role in ("nimbed_tenant", "nimbed_worker"):
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


def test_a_statement_timeout_stops_no_load_and_is_named_where_it_stops_a_search(
    connection: psycopg.Connection,
) -> None:
    connection.execute("SET statement_timeout = '30ms'")
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS)
    table.load(changed(ITEMS))
    assert table.index()
    assert table.migrate(FakeEmbedder(OTHER), keep_index=False).state == "switched"
    assert table.rollback(FakeEmbedder()).state == "rolled back"
    assert table.finish().state == "finished"
    assert table.relabel(FakeEmbedder(dataclasses.replace(FAKE_CARD, id="copy"))).ok
    table = VectorTable(connection, "t", FakeEmbedder(dataclasses.replace(FAKE_CARD, id="copy")))
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


def idle_servers(first: psycopg.Connection, second: psycopg.Connection) -> list[Any]:
    """What the two servers of the pool were left with: settings, and locks of a session."""
    with first.transaction(), second.transaction():
        return [
            each.execute(
                "SELECT current_setting('statement_timeout'), current_setting('search_path'),"
                " current_setting('maintenance_work_mem'), current_setting('client_encoding'),"
                " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"
            ).fetchall()
            for each in (first, second)
        ]


async def test_a_tables_whole_life_goes_through_a_pool_and_leaves_no_trace_on_its_servers(
    pgbouncer: str, connection: psycopg.Connection
) -> None:
    """With other clients between all statements, so that two in a row seldom meet one server."""
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET statement_timeout = '50s'")
    connection.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO articles SELECT n, 'body ' || n FROM generate_series(1, 200) n")
    over = threading.Event()

    def chatter() -> None:
        with connect(pgbouncer) as own:
            while not over.is_set():
                own.execute("SELECT pg_sleep(0.002)")

    with connect(pgbouncer) as first, connect(pgbouncer) as second, ThreadPoolExecutor(2) as others:
        before = idle_servers(first, second)
        talking = [others.submit(chatter) for _ in range(2)]
        try:
            table = VectorTable(first, "t", FakeEmbedder())
            table.load(ITEMS[:500], chunk_rows=100)
            table.index(words="english", on_progress=lambda done, rows: None)
            direct = VectorTable(connection, "t", FakeEmbedder())
            words: dict[str, Any] = {"k": 5, "hybrid": "english"}
            assert table.search("number 7", **words) == direct.search("number 7", **words)
            assert table.audit().ok
            assert table.migrate(FakeEmbedder(OTHER)).state == "switched"
            assert table.rollback(FakeEmbedder()).state == "rolled back"
            assert table.rollback(FakeEmbedder(OTHER)).state == "rolled back"
            assert table.finish().state == "finished"
            found = table.search("what?", 5)
            opened = psycopg.AsyncConnection.connect(
                pgbouncer, autocommit=True, prepare_threshold=None
            )
            async with await opened as own:
                twin = AsyncVectorTable(own, "t", FakeEmbedder(OTHER))
                for _ in range(10):
                    assert await twin.search("what?", 5) == found
                assert (await twin.load(ITEMS[400:600], chunk_rows=50)).loaded == 100
            follower = SyncedTable(first, "articles", FakeEmbedder(), text_fields=["body"])
            assert follower.prepare()
            assert (follower.run(batch_rows=30).loaded, follower.index()) == (200, True)
            second.execute("UPDATE articles SET body = 'mended' WHERE id < 11")
            assert follower.run().loaded == 10
            view = VectorTable(second, follower.view)
            view.migrate(FakeEmbedder(OTHER))
            assert [hit.text for hit in view.search("what?", 200)].count("mended") == 10
            read = query_rows(pgbouncer, table="articles", text_field="body", id_field="id")
            assert len(list(read)) == 200
        finally:
            over.set()
        assert [each.result() for each in talking] == [None, None]
        assert idle_servers(first, second) == before


def test_prepared_statements_behind_a_pool_are_named_with_the_cure(pgbouncer: str) -> None:
    with connect(pgbouncer) as first:
        VectorTable(first, "t", FakeEmbedder()).load(ITEMS[:10])
    clients = [psycopg.connect(pgbouncer, autocommit=True, prepare_threshold=0) for _ in range(2)]

    def ask() -> None:
        for each in clients * 3:
            VectorTable(each, "t", FakeEmbedder()).search("what?", 1)

    try:
        with pytest.raises(ConfigurationError, match="prepare_threshold=None"):
            ask()
    finally:
        for each in clients:
            each.close()


@pytest.fixture
def replica(connection: psycopg.Connection, open_folder: Path) -> Iterator[str]:
    """The DSN of a hot standby of the database."""
    running = Path(f"/proc/{connection.info.backend_pid}/exe")
    if not running.exists():
        pytest.skip("this system does not tell which program a process runs")
    programs = running.resolve().parent
    if not (programs / "pg_basebackup").exists():
        pytest.skip("this PostgreSQL has no pg_basebackup, which copies a server")
    as_root = {"user": "pgserver", "group": "pgserver"} if os.geteuid() == 0 else {}
    data, sockets = open_folder / "standby", open_folder / "sockets"
    for each in (data, sockets):
        each.mkdir(mode=0o700)
        if as_root:
            shutil.chown(each, "pgserver", "pgserver")
    facts = connection.info
    place = ["-h", facts.host, "-p", str(facts.port), "-U", "postgres"]
    copying = [str(programs / "pg_basebackup"), *place, "-D", str(data), "-R", "-c", "fast"]
    copied = subprocess.run(copying, check=False, capture_output=True, cwd="/", **as_root)
    assert copied.returncode == 0, copied.stderr
    log = open_folder / "log"
    with log.open("wb") as said:
        standby = subprocess.Popen(
            [str(programs / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""],
            stdout=said, stderr=said, cwd="/", **as_root,
        )  # fmt: skip
    try:
        dsn = f"postgresql://postgres@/{facts.dbname}?host={sockets}"
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                assert standby.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield dsn
    finally:
        standby.send_signal(signal.SIGINT)
        standby.wait(60)


def caught_up(primary: psycopg.Connection, standby: psycopg.Connection) -> None:
    ((written,),) = primary.execute("SELECT pg_current_wal_insert_lsn()").fetchall()
    deadline = time.monotonic() + 60
    while standby.execute(
        "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (written,)
    ).fetchall() != [(True,)]:
        assert time.monotonic() < deadline
        primary.execute("SELECT pg_logical_emit_message(true, 'test', 'flush')")
        time.sleep(0.05)


async def test_a_read_replica_is_searched_and_audited_and_says_why_it_cannot_be_changed(
    replica: str, connection: psycopg.Connection
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load(ITEMS[:500])
    table.index(words="english")
    connection.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO articles VALUES (1, 'one'), (2, 'two')")
    SyncedTable(connection, "articles", FakeEmbedder(), text_fields=["body"]).prepare()
    with connect(replica) as standby:
        caught_up(connection, standby)
        there = VectorTable(standby, "t", FakeEmbedder())
        assert there.search("what?", 5) == table.search("what?", 5)
        rare = {"filter": "metadata->>'rare' = 'true'"}
        assert there.search("what?", 9, **rare) == table.search("what?", 9, **rare)
        words = there.search("passage number 7", 3, hybrid="english")
        assert words == table.search("passage number 7", 3, hybrid="english")
        assert there.audit().ok
        table.migrate(FakeEmbedder(OTHER))
        caught_up(connection, standby)
        there = VectorTable(standby, "t", FakeEmbedder(OTHER))
        assert there.search("what?", 5) == table.search("what?", 5)
        follower = SyncedTable(standby, "articles", FakeEmbedder(), text_fields=["body"])
        for change in (
            lambda: there.load(ITEMS[:600]),
            lambda: VectorTable(standby, "new", FakeEmbedder()).load(ITEMS),
            there.index,
            lambda: there.migrate(FakeEmbedder()),
            lambda: there.rollback(FakeEmbedder()),
            there.finish,
            follower.prepare,
            follower.run,
            follower.index,
        ):
            with pytest.raises(ConfigurationError, match="read replica.*connect to its primary"):
                change()
    async with await psycopg.AsyncConnection.connect(replica, autocommit=True) as own:
        twin = AsyncVectorTable(own, "t", FakeEmbedder(OTHER))
        assert await twin.search("what?", 5) == table.search("what?", 5)
        with pytest.raises(ConfigurationError, match="read replica.*connect to its primary"):
            await twin.load(ITEMS[:600])


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
