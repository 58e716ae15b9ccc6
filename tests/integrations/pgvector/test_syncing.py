"""The vectors of a table that somebody else owns follow its rows, on a real PostgreSQL."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import typer
from psycopg import sql
from tests.integrations.pgvector.sync_worker import work_slowly
from tests.integrations.pgvector.test_crash import PROCESSES
from typer.testing import CliRunner

import nimbed
from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.rows import Reject
from nimbed_cli.sync import sync
from nimbed_pgvector import AsyncSyncedTable, SyncedTable, VectorTable, index

from .stored_rows import decoded

pytestmark = pytest.mark.postgres
INTO = pytest.mark.parametrize("column", [None, "embedding"], ids=["beside", "column"])


@pytest.fixture
def articles(connection: psycopg.Connection) -> psycopg.Connection:
    connection.execute(
        "CREATE TABLE articles (id int PRIMARY KEY, title text, body text, author text DEFAULT 'x')"
    )
    connection.execute(
        "INSERT INTO articles SELECT n, 'Title ' || n, 'body ' || n FROM generate_series(1, 200) n"
    )
    return connection


def synced(connection: Any, column: str | None = None, **more: Any) -> SyncedTable:
    more.setdefault("embedder", FakeEmbedder())
    return SyncedTable(connection, "articles", text_fields=["title", "body"], column=column, **more)


def expected(connection: psycopg.Connection) -> dict[str, np.ndarray]:
    """What every row should have, from the rows themselves."""
    rows = connection.execute("SELECT id, title, body FROM articles").fetchall()
    texts = {
        str(name): "\n\n".join(part for part in parts if part and part.strip())
        for name, *parts in rows
    }
    texts = {name: text for name, text in texts.items() if text and len(text.split()) < 500}
    batch = FakeEmbedder().embed(list(texts.values()), input_type="passage")
    return dict(zip(texts, batch.vectors, strict=True))


def held(connection: psycopg.Connection) -> dict[str, np.ndarray]:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    rows = connection.execute("SELECT id, vector_send(embedding) FROM articles_embedding")
    return {name: decoded(raw, "vector") for name, raw in rows}


def converged(connection: psycopg.Connection) -> bool:
    left, right = held(connection), expected(connection)
    return left.keys() == right.keys() and all(
        np.array_equal(left[name], right[name]) for name in left
    )


@INTO
def test_an_existing_table_is_embedded_searched_and_audited(
    articles: psycopg.Connection, column: str | None
) -> None:
    before = articles.execute("SELECT id, title, body, author FROM articles ORDER BY id").fetchall()
    table = synced(articles, column)
    assert table.prepare()
    assert not table.prepare()
    report = table.run()
    assert (report.loaded, report.replaced, report.rejected) == (200, 0, 0)
    assert converged(articles)
    assert table.index()
    assert not table.index()
    view = VectorTable(articles, table.view, FakeEmbedder())
    hits = view.search("what?", 5)
    near = FakeEmbedder().embed(["what?"], input_type="query").vectors[0]
    best = sorted(expected(articles).items(), key=lambda each: -float(each[1] @ near))[:5]
    assert [hit.id for hit in hits] == [name for name, _ in best]
    assert hits[0].text == f"Title {hits[0].id}\n\nbody {hits[0].id}"
    assert hits[0].metadata == {"author": "x"}
    (only,) = view.search("what?", 5, filter="id = '17'")
    assert only.id == "17"
    assert view.audit().ok
    after = articles.execute("SELECT id, title, body, author FROM articles ORDER BY id").fetchall()
    assert after == before
    assert (table.run().loaded, converged(articles)) == (0, True)


@INTO
def test_changes_are_followed_and_others_are_not(
    articles: psycopg.Connection, column: str | None
) -> None:
    table = synced(articles, column)
    table.prepare()
    table.run()
    articles.execute("UPDATE articles SET author = 'another'")  # no text of ours
    assert table.run().loaded == 0
    articles.execute("UPDATE articles SET title = 'New ' || id WHERE id <= 10")
    articles.execute("DELETE FROM articles WHERE id BETWEEN 11 AND 15")
    articles.execute("INSERT INTO articles VALUES (900, 'Nine', NULL), (901, ' ', 'body alone')")
    report = table.run()
    assert (report.loaded, report.replaced) == (12, 10)
    assert converged(articles)
    articles.execute("UPDATE articles SET title = title || '!' WHERE id = 20")
    articles.execute("UPDATE articles SET id = 2000 WHERE id = 20")
    table.run()
    assert converged(articles)


@INTO
def test_a_poison_row_is_listed_and_blocks_nobody(
    articles: psycopg.Connection, column: str | None
) -> None:
    table = synced(articles, column)
    table.prepare()
    table.run()
    articles.execute("UPDATE articles SET body = repeat('word ', 600) WHERE id = 7")
    articles.execute("UPDATE articles SET body = repeat('word ', 700) WHERE id = 10")
    articles.execute("UPDATE articles SET title = NULL, body = NULL WHERE id = 8")
    articles.execute("UPDATE articles SET title = 'sound' WHERE id IN (6, 9)")
    rejected: list[Reject] = []
    report = table.run(on_reject=rejected.append)
    assert (report.loaded, report.rejected) == (2, 3)
    assert {each.id for each in rejected} == {"7", "8", "10"}
    assert converged(articles)  # no vector of an earlier text stays
    noted = dict(articles.execute("SELECT id, reason FROM nimbed_rejects").fetchall())
    assert noted.keys() == {"7", "8", "10"}
    long = "input length {} exceeds maximum allowed token size 512; split"
    assert noted["7"].startswith(long.format(603))  # "Title 7" and what marks a passage, too
    assert noted["10"].startswith(long.format(703))
    articles.execute("UPDATE articles SET title = 'again', body = 'short' WHERE id IN (7, 8)")
    articles.execute("DELETE FROM articles WHERE id = 10")
    table.prepare()  # which forgets rows that are gone
    assert table.run().loaded == 2
    assert articles.execute("SELECT count(*) FROM nimbed_rejects").fetchall() == [(0,)]
    assert converged(articles)


def test_other_fields_are_refused_and_two_sets_of_vectors_are_both_followed(
    articles: psycopg.Connection,
) -> None:
    for column in (None, "embedding2"):
        synced(articles, column).prepare()
        other = SyncedTable(
            articles, "articles", FakeEmbedder(), text_fields=["title"], column=column
        )
        with pytest.raises(ConfigurationError, match="shows the text of title, body"):
            other.prepare()
    articles.execute("UPDATE articles SET body = 'new' WHERE id < 3")
    for column in (None, "embedding2"):
        assert synced(articles, column).run().loaded == 200
        assert synced(articles, column).run().loaded == 0


@INTO
def test_the_keys_type_and_odd_names_are_kept(
    connection: psycopg.Connection, column: str | None
) -> None:
    connection.execute('CREATE SCHEMA "My Shop"')
    connection.execute('CREATE TABLE "My Shop"."The Items" ("Key" uuid PRIMARY KEY, "Text" text)')
    keys = [uuid.UUID(int=n) for n in range(5)]
    for key in keys:
        connection.execute('INSERT INTO "My Shop"."The Items" VALUES (%s, %s)', (key, f"t {key}"))
    table = SyncedTable(
        connection, "My Shop.The Items", FakeEmbedder(), text_fields=["Text"], key="Key",
        column=column, embedding_type="ubinary",
    )  # fmt: skip
    table.prepare()
    connection.execute('UPDATE "My Shop"."The Items" SET "Text" = \'new\'')
    assert table.run().loaded == 5
    found = VectorTable(connection, table.view, FakeEmbedder()).search("new", 3)
    assert len(found) == 3
    if column is None:
        kind = connection.execute(
            "SELECT atttypid::regtype::text FROM pg_attribute WHERE attname = 'Key' AND attrelid ="
            ' \'"My Shop"."The Items_embedding_store"\'::regclass'
        ).fetchall()
        assert kind == [("uuid",)]


@INTO
def test_the_grants_are_enough_for_a_worker_a_reader_and_a_writer(
    articles: psycopg.Connection, column: str | None
) -> None:
    table = synced(articles, column)
    table.prepare()
    names = [f"{role}_{uuid.uuid4().hex[:8]}" for role in ("worker", "reader", "writer")]
    worker, reader, writer = names
    try:
        for name in names:
            articles.execute(f"CREATE ROLE {name}")
        for line in table.grants(worker=worker, reader=reader):
            articles.execute(line)
        articles.execute(f"GRANT INSERT, UPDATE, DELETE, SELECT ON articles TO {writer}")
        for name, doing in (
            (writer, lambda: articles.execute("UPDATE articles SET title = 'written'")),
            (worker, lambda: (synced(articles, column).prepare(), synced(articles, column).run())),
            (reader, lambda: VectorTable(articles, table.view, FakeEmbedder()).search("what?", 2)),
        ):
            articles.execute(f"SET ROLE {name}")
            doing()
            articles.execute("RESET ROLE")
        assert converged(articles)
    finally:
        articles.execute("RESET ROLE")
        for name in names:
            articles.execute(f"DROP OWNED BY {name}")
            articles.execute(f"DROP ROLE {name}")


def test_what_cannot_be_synced_is_refused_by_name(articles: psycopg.Connection) -> None:
    fake = FakeEmbedder()
    with pytest.raises(ConfigurationError, match="no table nothing"):
        SyncedTable(articles, "nothing", fake, text_fields=["a"]).prepare()
    with pytest.raises(ConfigurationError, match="no column 'summary'; it has id, title, body"):
        SyncedTable(articles, "articles", fake, text_fields=["summary"]).prepare()
    with pytest.raises(ConfigurationError, match="author of articles has no unique index"):
        SyncedTable(articles, "articles", fake, text_fields=["body"], key="author").prepare()
    with pytest.raises(ConfigurationError, match="each text field once"):
        SyncedTable(articles, "articles", fake, text_fields=[])
    with pytest.raises(ConfigurationError, match="already exists"):
        synced(articles, "author").prepare()
    synced(articles).prepare()
    with pytest.raises(SpaceMismatchError, match="shows vectors of nimbed/fake"):
        synced(articles, embedding_type="int8").prepare()


def test_who_builds_the_index_at_the_same_time_waits_and_finds_it_built(
    articles: psycopg.Connection, dsn: str
) -> None:
    table = synced(articles)
    table.prepare()
    articles.execute(
        "INSERT INTO articles SELECT n, 'Title ' || n, 'body' FROM generate_series(201, 1500) n"
    )
    table.run()
    start = threading.Barrier(4)

    def build() -> bool:
        with psycopg.connect(dsn, autocommit=True) as own:
            start.wait()
            return synced(own).index()

    with ThreadPoolExecutor(4) as builders:
        assert any([each.result() for each in [builders.submit(build) for _ in range(4)]])
    built = articles.execute(
        "SELECT indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " WHERE relname LIKE 'nimbed_hnsw%'"
    ).fetchall()
    assert built == [(True,)]


def test_an_index_that_fails_leaves_the_settings_of_the_connection_as_they_were(
    articles: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = synced(articles)
    table.prepare()
    table.run()
    shown = (
        "SELECT name, setting FROM pg_settings WHERE name IN ('maintenance_work_mem',"
        " 'statement_timeout', 'max_parallel_maintenance_workers', 'search_path')"
    )
    before = articles.execute(shown).fetchall()
    monkeypatch.setattr(index, "_definition", lambda *_: sql.SQL("ON nothing_such (id)"))
    with pytest.raises(ConfigurationError, match="nothing_such"):
        table.index()
    assert articles.execute(shown).fetchall() == before


async def test_the_async_face_does_the_same(articles: psycopg.Connection, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncSyncedTable(
            connection, "articles", FakeEmbedder(), text_fields=["title", "body"]
        )
        assert await table.prepare()
        assert (await table.run()).loaded == 200
        assert await table.index()
        assert len(await table.grants()) == 4
    assert converged(articles)


class Meddler(FakeEmbedder):
    """Does something on the way, once the texts are read and before their vectors are stored."""

    def __init__(self, *doings: Callable[[], object]) -> None:
        super().__init__()
        self.doings = list(doings)

    def embed(self, *arguments: Any, **options: Any) -> EmbeddingBatch:
        if self.doings:
            self.doings.pop(0)()
        return super().embed(*arguments, **options)


@pytest.fixture
def other(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as other:
        yield other


def once_it_waits(watching: psycopg.Connection, act: Callable[[], object]) -> None:
    """Act when a statement of this database waits for a lock, in a thread of its own."""

    def wait() -> None:
        deadline, waits = time.monotonic() + 30, [(0,)]
        while waits == [(0,)] and time.monotonic() < deadline:
            waits = watching.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchall()
        act()

    threading.Thread(target=wait).start()


def test_a_row_that_is_deleted_while_its_vector_is_stored_is_left_alone(
    articles: psycopg.Connection, other: psycopg.Connection
) -> None:
    def delete() -> None:
        other.execute("BEGIN")
        other.execute("DELETE FROM articles WHERE id = 3")  # seen by nobody yet
        once_it_waits(other, other.commit)

    table = synced(articles, embedder=Meddler(delete))
    table.prepare()
    report = table.run()
    assert (report.loaded, report.rejected) == (199, 0)
    assert converged(articles)


def test_the_victim_of_a_deadlock_begins_anew(
    articles: psycopg.Connection, other: psycopg.Connection
) -> None:
    synced(articles).prepare()
    synced(articles).run()
    articles.execute("UPDATE articles SET body = 'new' WHERE id IN (1, 2)")
    articles.execute("SET deadlock_timeout = '3s'")  # the worker notices first, and not too early

    def delete() -> None:
        other.execute("BEGIN")
        other.execute("SET LOCAL deadlock_timeout = '60s'")
        other.execute("DELETE FROM articles WHERE id = 2")

        def delete_more() -> None:
            other.execute("DELETE FROM articles WHERE id = 1")
            other.commit()

        once_it_waits(other, delete_more)

    assert synced(articles, embedder=Meddler(delete)).run().unchanged == 2
    assert converged(articles)


@INTO
@pytest.mark.parametrize("long_first", [True, False])
def test_of_two_workers_the_one_with_the_last_text_wins(
    articles: psycopg.Connection, other: psycopg.Connection, column: str | None, long_first: bool
) -> None:
    synced(articles, column).prepare()
    synced(articles, column).run()
    texts = ["word " * 600, "short"]
    first, last = texts if long_first else texts[::-1]
    write = "UPDATE articles SET body = %s WHERE id = 7"
    articles.execute("UPDATE articles SET body = 'bystander' WHERE id = 8")
    articles.execute(write, (first,))

    def overtake() -> None:
        other.execute(write, (last,))
        synced(other, column).run()

    synced(articles, column, embedder=Meddler(overtake)).run()
    assert converged(articles)
    noted = articles.execute("SELECT id FROM nimbed_rejects").fetchall()
    assert noted == ([] if long_first else [("7",)])
    assert articles.execute("SELECT count(*) FROM nimbed_queue").fetchall() == [(0,)]


@INTO
def test_random_changes_and_kills_converge(
    articles: psycopg.Connection, dsn: str, column: str | None
) -> None:
    converge_under_fire(articles, dsn, column, changes=400, kills=4)


@pytest.mark.slow
def test_ten_thousand_changes_and_fifty_kills_converge(
    articles: psycopg.Connection, dsn: str
) -> None:
    converge_under_fire(articles, dsn, None, changes=10_000, kills=50)


def converge_under_fire(
    connection: psycopg.Connection, dsn: str, column: str | None, *, changes: int, kills: int
) -> None:
    """Two workers, killed and started again, while rows come, change and go."""
    chance, over = random.Random(changes), threading.Event()
    synced(connection, column).prepare()

    def change() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            for number in range(changes):
                key, kind = chance.randrange(1, 400), chance.randrange(10)
                if kind < 3:
                    own.execute(
                        "INSERT INTO articles (id, title, body) VALUES (%s, %s, 'new')"
                        " ON CONFLICT (id) DO NOTHING",
                        (key, f"made {number}"),
                    )
                elif kind < 8:
                    body = "word " * 600 if chance.random() < 0.05 else f"changed {number}"
                    own.execute("UPDATE articles SET body = %s WHERE id = %s", (body, key))
                else:
                    own.execute("DELETE FROM articles WHERE id = %s", (key,))
                if number % 7 == 0:
                    time.sleep(0.004)
        over.set()

    changing = threading.Thread(target=change)
    changing.start()
    workers = [start(dsn, column), start(dsn, column)]
    killed = 0
    while killed < kills:
        time.sleep(0.1 + chance.random() * 0.3)
        place = killed % 2
        assert workers[place].is_alive()
        workers[place].kill()
        workers[place].join()
        workers[place] = start(dsn, column)
        killed += 1
    changing.join()
    deadline = time.monotonic() + 60
    queue = "SELECT count(*) FROM nimbed_queue"
    while connection.execute(queue).fetchall() != [(0,)] and time.monotonic() < deadline:
        time.sleep(0.05)
    for worker in workers:
        worker.kill()
        worker.join()
    synced(connection, column).run()  # what the last two held when they were killed
    assert converged(connection)
    assert over.is_set()


def start(dsn: str, column: str | None) -> Any:
    worker = PROCESSES.Process(target=work_slowly, args=(dsn, column))
    worker.start()
    return worker


def test_the_command_says_what_it_did(
    articles: psycopg.Connection, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nimbed, "load", lambda *_, **__: FakeEmbedder())
    monkeypatch.setattr(FakeEmbedder, "arithmetic", "float32 on cpu by torch", raising=False)
    articles.execute("UPDATE articles SET title = '', body = '' WHERE id = 5")
    app = typer.Typer()
    app.command()(sync)
    words = [dsn, "--from-table", "articles", "--text-field", "title", "--text-field", "body"]
    done = CliRunner().invoke(app, [*words, "--into", "articles.embedding"])
    assert done.exit_code == 0, done.output
    assert "199 rows embedded, 0 of them anew, 0 unchanged or gone, 1 left out" in done.stderr
    assert "computed in float32 on cpu by torch" in done.stderr
    assert "the index is built" in done.stderr
    assert 'GRANT UPDATE ("embedding") ON "articles" TO "worker";' in done.stdout
    (listed,) = Path("articles_embedding.rejects.jsonl").read_text().splitlines()
    assert json.loads(listed)["id"] == "5"
    again = CliRunner().invoke(app, [*words, "--into", "articles.embedding"])
    assert (again.exit_code, again.stdout) == (0, "")
    wrong = CliRunner().invoke(app, [*words, "--into", "other.embedding"])
    assert isinstance(wrong.exception, ConfigurationError)
