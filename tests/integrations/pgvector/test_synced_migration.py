"""A synced table goes to another model while its rows change: both sets of vectors stay in step."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
import uuid
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.integrations.pgvector.crash_migrator import OTHER, migrate_synced_slowly
from tests.integrations.pgvector.test_migration_crash import killed_again_and_again

import nimbed
from nimbed import FakeEmbedder
from nimbed.bulk import JobReport
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed_pgvector import AsyncVectorTable, SyncedTable, VectorTable

from .stored_rows import decoded

pytestmark = pytest.mark.postgres
INTO = pytest.mark.parametrize("column", [None, "embedding"], ids=["beside", "column"])
VIEW = "articles_embedding"


@pytest.fixture
def articles(connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> psycopg.Connection:
    cards = {card.id: card for card in (FAKE_CARD, OTHER)}
    monkeypatch.setattr(nimbed, "load", lambda name, **_: FakeEmbedder(cards[name]))
    connection.execute("CREATE TABLE articles (id int PRIMARY KEY, body text, author text)")
    connection.execute(
        "INSERT INTO articles SELECT n, 'body ' || n, 'x' FROM generate_series(1, 300) n"
    )
    return connection


def synced(connection: Any, column: str | None, card: Any = FAKE_CARD) -> SyncedTable:
    return SyncedTable(
        connection, "articles", FakeEmbedder(card), text_fields=["body"], column=column
    )


def in_step(connection: psycopg.Connection, view: str, card: Any) -> bool:
    """Whether a view shows the vector of every row, by a model."""
    texts = dict(connection.execute("SELECT id::text, body FROM articles").fetchall())
    ((column,),) = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s)"
        " AND attname ~ '^embedding'",
        (view,),
    ).fetchall()
    rows = connection.execute(f"SELECT id, vector_send({column}) FROM {view}").fetchall()
    held = {name: decoded(raw, "vector") for name, raw in rows}
    made = FakeEmbedder(card).embed(list(texts.values()), input_type="passage").vectors
    return held.keys() == texts.keys() and all(
        np.array_equal(held[name], vector) for name, vector in zip(texts, made, strict=True)
    )


@INTO
def test_a_synced_table_is_taken_there_and_back(
    articles: psycopg.Connection, dsn: str, column: str | None
) -> None:
    first = synced(articles, column)
    first.prepare()
    first.run()
    first.index()
    reader = VectorTable(articles, VIEW)
    before = reader.search("what?", 5)
    told: list[int] = []

    def change(report: JobReport) -> None:
        if not told:
            with psycopg.connect(dsn, autocommit=True) as own:
                own.execute("UPDATE articles SET body = 'changed ' || id WHERE id <= 20")
                own.execute("DELETE FROM articles WHERE id BETWEEN 21 AND 25")
                own.execute("INSERT INTO articles VALUES (900, 'new', 'y')")
        told.append(report.loaded)

    there = FakeEmbedder(OTHER)
    table = VectorTable(articles, VIEW)
    done = table.migrate(there, batch_rows=50, on_progress=change)
    assert (done.state, done.spec.model) == ("switched", "other/model")
    assert {finding.name for finding in done.findings} >= {"neighbours", "index"}
    assert in_step(articles, VIEW, OTHER)
    # The old set has its own worker still to come, which a way back begins with.
    assert not in_step(articles, f"{VIEW}_previous", FAKE_CARD)
    hits = reader.search("what?", 5)  # it follows
    assert hits != before
    assert {tuple(hit.metadata) for hit in hits} == {("author",)}
    with pytest.raises(SpaceMismatchError, match="shows vectors of another model than nimbed/fake"):
        first.run()
    with pytest.raises(SpaceMismatchError, match="nimbed migrate --table articles_embedding"):
        synced(articles, column).prepare()
    second = synced(articles, column, OTHER)
    assert not second.prepare()
    assert not second.index()  # it was built before the switch
    articles.execute("UPDATE articles SET body = 'again ' || id WHERE id BETWEEN 30 AND 39")
    assert second.run().loaded == 10
    assert in_step(articles, VIEW, OTHER)
    back = table.rollback()
    assert (back.state, back.spec.model, in_step(articles, VIEW, FAKE_CARD)) == (
        "rolled back", "nimbed/fake", True,
    )  # fmt: skip
    assert table.rollback().spec.model == "other/model"
    assert table.finish().state == "finished"
    assert in_step(articles, VIEW, OTHER)
    articles.execute("UPDATE articles SET body = 'more' WHERE id = 50")
    assert (second.run().loaded, in_step(articles, VIEW, OTHER)) == (1, True)
    left = articles.execute(
        "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'nimbed%'),"
        " (SELECT count(*) FROM pg_proc WHERE proname LIKE 'nimbed%'),"
        " (SELECT count(*) FROM pg_class WHERE relname LIKE 'articles_embedding%store'),"
        " (SELECT count(*) FROM nimbed_queue)"
    ).fetchall()
    assert left == [(2, 1, 0 if column else 1, 0)]


@INTO
def test_it_is_prepared_resumed_or_abandoned(
    articles: psycopg.Connection, column: str | None
) -> None:
    synced(articles, column).prepare()
    synced(articles, column).run()
    table, there = VectorTable(articles, VIEW), FakeEmbedder(OTHER)
    reader = f"reader_{uuid.uuid4().hex[:8]}"
    articles.execute(f"CREATE ROLE {reader}")
    try:
        articles.execute(f"GRANT SELECT ON {VIEW} TO {reader}")
        assert table.migrate(there, switch=False).state == "prepared"
        # Both sets have workers of their own, and changes reach both.
        articles.execute("UPDATE articles SET body = 'changed' WHERE id <= 5")
        assert synced(articles, column).run().loaded == 5
        assert synced(articles, column, OTHER).run().loaded == 5
        assert in_step(articles, VIEW, FAKE_CARD)
        assert in_step(articles, f"{VIEW}_next", OTHER)
        assert all(set(hit.metadata) == {"author"} for hit in table.search("what?", 3))
        with pytest.raises(ConfigurationError, match="on its way to other/model"):
            table.migrate(there, embedding_type="int8")
        assert table.rollback().state == "abandoned"
        assert table.migrate(there).report.loaded == 300
        articles.execute(f"SET ROLE {reader}")
        assert len(VectorTable(articles, VIEW).search("what?", 3)) == 3
        articles.execute("RESET ROLE")
        with pytest.raises(ConfigurationError, match="still keeps vectors of nimbed/fake"):
            table.migrate(there, embedding_type="int8")
        table.finish()
        for undo in (table.rollback, table.finish):
            with pytest.raises(ConfigurationError, match="undone|keeps nothing"):
                undo()
        with pytest.raises(ConfigurationError, match="of this space already"):
            table.migrate(there)
    finally:
        articles.execute("RESET ROLE")
        articles.execute(f"DROP OWNED BY {reader}")
        articles.execute(f"DROP ROLE {reader}")


def test_rows_that_the_new_model_refuses_are_named_and_nothing_is_switched(
    articles: psycopg.Connection,
) -> None:
    articles.execute("INSERT INTO articles VALUES (901, ' ', 'no text for either')")
    synced(articles, None).prepare()
    synced(articles, None).run()
    short = FakeEmbedder(dataclasses.replace(OTHER, max_tokens=5))
    articles.execute("UPDATE articles SET body = 'one two three four five six' WHERE id = 7")
    synced(articles, None).run()
    table = VectorTable(articles, VIEW)
    with pytest.raises(InputError, match="1 row of articles_embedding cannot be.*'7'"):
        table.migrate(short)
    articles.execute("UPDATE articles SET body = 'short' WHERE id = 7")
    assert table.migrate(short).state == "switched"


def test_a_worker_that_goes_on_ends_with_a_sentence_once_others_are_shown(
    articles: psycopg.Connection, dsn: str
) -> None:
    table = synced(articles, None)
    table.prepare()
    table.run()
    said: list[Exception] = []

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            try:
                synced(own, None).run(stop=lambda: False)
            except SpaceMismatchError as error:
                said.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    VectorTable(articles, VIEW).migrate(FakeEmbedder(OTHER))
    thread.join(20)
    assert "sync with the model that it names" in str(said[0])


def test_local_weights_under_another_name_take_the_vectors_over(
    articles: psycopg.Connection,
) -> None:
    synced(articles, None).prepare()
    synced(articles, None).run()
    copy = dataclasses.replace(FAKE_CARD, id="local/copy")
    assert VectorTable(articles, VIEW).relabel(FakeEmbedder(copy)).ok
    assert VectorTable(articles, VIEW).spec.model == "local/copy"
    articles.execute("UPDATE articles SET body = 'changed' WHERE id = 1")
    assert synced(articles, None, copy).run().loaded == 1


async def test_the_async_face_does_the_same(articles: psycopg.Connection, dsn: str) -> None:
    synced(articles, None).prepare()
    synced(articles, None).run()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(connection, VIEW)
        assert (await table.migrate(FakeEmbedder(OTHER))).report.loaded == 300
        assert (await table.rollback()).state == "rolled back"
        await table.rollback(FakeEmbedder(OTHER))
        assert (await table.finish()).state == "finished"


@INTO
def test_a_migration_killed_while_rows_change_loses_nothing(
    articles: psycopg.Connection, dsn: str, column: str | None
) -> None:
    synced(articles, column).prepare()
    synced(articles, column).run()
    over, chance = threading.Event(), random.Random(3)
    faults: list[Any] = []

    def change_and_search() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            reader, number = VectorTable(own, VIEW), 0
            while not over.is_set():
                number += 1
                own.execute(
                    "INSERT INTO articles VALUES (%s, %s, 'x')"
                    " ON CONFLICT (id) DO UPDATE SET body = EXCLUDED.body",
                    (chance.randrange(400), f"written {number}"),
                )
                own.execute("DELETE FROM articles WHERE id = %s", (chance.randrange(400),))
                if len(reader.search("what?", 10)) != 10:
                    faults.append(number)
                time.sleep(0.01)

    changing = threading.Thread(target=change_and_search)
    changing.start()
    try:
        assert killed_again_and_again(migrate_synced_slowly, dsn, 4, 0.2) >= 2
    finally:
        over.set()
        changing.join()
    synced(articles, column, OTHER).run()
    assert faults == []
    assert VectorTable(articles, VIEW).spec.model == OTHER.id
    assert in_step(articles, VIEW, OTHER)
