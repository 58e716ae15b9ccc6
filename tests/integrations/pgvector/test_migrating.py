"""A table goes to another space while it is used: nothing lost, nothing twice, no answer mixed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import psycopg
import pytest
import typer
from typer.testing import CliRunner, Result

import nimbed
from nimbed import FakeEmbedder
from nimbed.bulk import JobReport
from nimbed.errors import ConfigurationError, InputError, NimbedError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed_cli.migrate import migrate
from nimbed_pgvector import AsyncVectorTable, VectorTable

from .stored_rows import decoded

pytestmark = pytest.mark.postgres
ITEMS = [(f"p{n}", f"passage number {n}", {"page": n}) for n in range(300)]
OTHER = dataclasses.replace(FAKE_CARD, id="other/model", passage_prompt="doc: ")
FORMS: list[dict[str, Any]] = [
    {},
    {"embedding_type": "int8"},
    {"embedding_type": "ubinary"},
    {"embedding_type": "ubinary", "also": "halfvec"},
    {"dimensions": 16},
]


def loaded(connection: psycopg.Connection, **kind: Any) -> VectorTable:
    table = VectorTable(connection, "t", FakeEmbedder(), **kind)
    table.load(ITEMS)
    return table


def held(connection: psycopg.Connection, column: str) -> dict[str, np.ndarray]:
    """Every vector of a column by its row's id, read without nimbed."""
    kind = connection.execute(
        "SELECT format_type(atttypid, -1) FROM pg_attribute"
        " WHERE attrelid = 't'::regclass AND attname = %s",
        (column,),
    ).fetchall()[0][0]
    kind = kind.strip('"')
    rows = connection.execute(f"SELECT id, {kind}_send({column}) FROM t").fetchall()
    return {name: decoded(raw, kind) for name, raw in rows}


def columns(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0"
        " AND NOT attisdropped AND (attname ~ '^(embedding|rescoring)') ORDER BY attnum"
    )
    return [row[0] for row in rows]


def expected(card: Any, texts: dict[str, str], **options: Any) -> dict[str, np.ndarray]:
    batch = FakeEmbedder(card).embed(list(texts.values()), input_type="passage", **options)
    rows = batch.bits() if batch.spec.packed else batch.vectors
    return dict(zip(texts, rows, strict=True))


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, vector in left.items():
        np.testing.assert_array_equal(vector, right[name])


WAYS = [(0, 3), (1, 4), (2, 0), (3, 2), (2, 1), (0, 0)]


@pytest.mark.parametrize(("old", "new"), [(FORMS[a], FORMS[b]) for a, b in WAYS], ids=str)
def test_a_table_is_taken_there_and_back(
    connection: psycopg.Connection, old: dict[str, Any], new: dict[str, Any]
) -> None:
    table = loaded(connection, **old)
    table.index()
    before = table.search("a question", 5)
    there = FakeEmbedder(OTHER)
    keep = bool(old)  # the first and the last drop the old index, and get it back with the way back
    done = table.migrate(there, keep_index=keep, **{"embedding_type": "float", **new})
    assert not table.index()  # built before the switch
    assert (done.state, done.report.loaded, done.spec.model) == ("switched", 300, "other/model")
    assert {finding.name for finding in done.findings} >= {"neighbours", "index"}
    kind = {name: value for name, value in new.items() if name != "also"}
    texts = {name: text for name, text, _ in ITEMS}
    space = f"_{done.spec.fingerprint[:8]}"
    same(held(connection, f"embedding{space}"), expected(OTHER, texts, **kind))
    like = {**old, **new} if new.get("embedding_type") == "ubinary" else new  # also= stays
    fresh = VectorTable(connection, "t2", there, **like)
    fresh.load(ITEMS)
    found = table.search("a question", 5)
    assert [hit.id for hit in found] == [hit.id for hit in fresh.search("a question", 5)]
    assert table.load([*ITEMS, ("new", "a new passage")]).loaded == 1
    assert VectorTable(connection, "t", there).audit().ok
    back = table.rollback(FakeEmbedder())
    assert (back.state, back.report.loaded) == ("rolled back", 1)  # what was written since
    assert not table.index()
    connection.execute("DELETE FROM t WHERE id = 'new'")
    assert table.search("a question", 5) == before
    again = table.rollback(there)
    assert again.spec == done.spec
    assert table.search("a question", 5) == found
    assert table.finish().state == "finished"
    assert all(name.endswith(space) for name in columns(connection))
    assert table.search("a question", 5) == found
    with pytest.raises(psycopg.errors.NotNullViolation):
        connection.execute("INSERT INTO t (id, text, content_hash) VALUES ('x', 'y', '')")
    left = connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'c'"
        " UNION SELECT tgname FROM pg_trigger WHERE tgrelid = 't'::regclass"
        " UNION SELECT proname FROM pg_proc WHERE proname LIKE 'nimbed%'"
        " UNION SELECT relname FROM pg_class WHERE relname LIKE 'nimbed_pending%'"
    ).fetchall()
    assert left == []


def test_rows_that_are_written_meanwhile_are_embedded_too(connection: psycopg.Connection) -> None:
    table = loaded(connection)
    writer = VectorTable(connection, "t", FakeEmbedder())
    texts = {name: text for name, text, _ in ITEMS}
    changes = {"p0": "another text", "p299": "yet another", "p900": "new"}
    told: list[int] = []

    def write(report: JobReport) -> None:
        if not told:
            with psycopg.connect(connection.info.dsn, autocommit=True) as own:
                VectorTable(own, "t", FakeEmbedder()).load(list(changes.items()))
                own.execute("UPDATE t SET text = 'by hand' WHERE id = 'p1'")
                own.execute("DELETE FROM t WHERE id = 'p2'")
        told.append(report.loaded)

    table.migrate(FakeEmbedder(OTHER), batch_rows=50, on_progress=write)
    texts = {**texts, **changes, "p1": "by hand"}
    del texts["p2"]
    name = columns(connection)[1]
    assert name.startswith("embedding_")
    assert not name.endswith("_next")
    same(held(connection, name), expected(OTHER, texts))
    with pytest.raises(SpaceMismatchError, match="nimbed/fake.*other/model|other/model.*nimbed"):
        writer.search("what?")
    with pytest.raises(SpaceMismatchError):
        writer.load(ITEMS)
    # A text that is changed by hand has no old vector any more, and a way back makes it anew.
    connection.execute("UPDATE t SET text = 'again by hand' WHERE id = 'p3'")
    back = table.rollback(FakeEmbedder())
    assert back.report.loaded == 1
    same(held(connection, "embedding"), expected(FAKE_CARD, {**texts, "p3": "again by hand"}) | {
        "p1": held(connection, "embedding")["p1"]})  # fmt: skip


def test_rows_that_are_filled_stay_in_their_pages(connection: psycopg.Connection) -> None:
    """So that the old index is not told of them, which takes milliseconds a row."""
    wide = dataclasses.replace(FAKE_CARD, dimensions=384, matryoshka=())
    table = VectorTable(connection, "t", FakeEmbedder(wide))
    table.load([(f"{n:05}", f"passage {n}") for n in range(1000)])
    table.index()
    options = "SELECT reloptions FROM pg_class WHERE oid = 't'::regclass"
    there = FakeEmbedder(dataclasses.replace(wide, id="other/model"))
    assert table.migrate(there, switch=False).report.loaded == 1000
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((updated, stayed),) = connection.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 't'"
    ).fetchall()
    assert updated == 1000
    assert stayed > 0.8 * updated
    assert connection.execute(options).fetchall() == [(["toast_tuple_target=1000"],)]
    table.migrate(there)
    assert connection.execute(options).fetchall() == [(None,)]


def test_without_an_index_the_vectors_that_are_searched_stay_in_their_rows(
    connection: psycopg.Connection,
) -> None:
    """PostgreSQL would move the old ones out, where each costs a look into another table."""
    wide = dataclasses.replace(FAKE_CARD, dimensions=384, matryoshka=())
    table = VectorTable(connection, "t", FakeEmbedder(wide))
    table.load([(f"{n:05}", f"passage {n}") for n in range(300)])
    there = FakeEmbedder(dataclasses.replace(wide, id="other/model"))
    assert table.migrate(there, switch=False).report.loaded == 300
    moved = (
        "SELECT pg_relation_size(reltoastrelid), reloptions FROM pg_class WHERE oid = 't'::regclass"
    )
    assert connection.execute(moved).fetchall() == [(0, ["toast_tuple_target=8150"])]
    table.migrate(there)
    assert connection.execute(moved).fetchall() == [(0, None)]


def test_who_does_not_know_of_the_switch_is_refused_or_follows(
    dsn: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same type, same dimensions: nothing but the columns' names keeps the spaces apart."""
    monkeypatch.setattr(
        nimbed, "load", lambda name=None, **_: FakeEmbedder(OTHER if "other" in name else FAKE_CARD)
    )
    loaded(connection)
    reader, knowing = VectorTable(connection, "t"), VectorTable(connection, "t", FakeEmbedder())
    question = FakeEmbedder().embed(["what?"], input_type="query")
    first = [reader.search("what?", 3), knowing.nearest(question, 3)]
    with psycopg.connect(dsn, autocommit=True) as own:
        VectorTable(own, "t").migrate(FakeEmbedder(OTHER))
    assert reader.search("what?", 3) != first[0]  # by the table's new model
    assert reader.spec.model == "other/model"
    for asked in (lambda: knowing.search("what?", 3), lambda: knowing.nearest(question, 3)):
        with pytest.raises(SpaceMismatchError):
            asked()
    with pytest.raises(ConfigurationError, match="nothing_such"):
        reader.search("what?", filter="nothing_such = 1")


def test_what_cannot_be_embedded_is_named_and_nothing_is_switched(
    connection: psycopg.Connection,
) -> None:
    table = loaded(connection)
    short = dataclasses.replace(OTHER, max_tokens=3)
    rejected: list[Any] = []
    with pytest.raises(InputError, match="300 rows of the table t cannot be embedded.*nothing is"):
        table.migrate(FakeEmbedder(short), on_reject=rejected.append)
    assert len(rejected) == 300
    assert VectorTable(connection, "t", FakeEmbedder()).search("what?", 1)
    done = table.migrate(FakeEmbedder(short), truncate="END")
    assert (done.state, done.report.truncated) == ("switched", 300)


def test_a_migration_is_prepared_resumed_or_abandoned(connection: psycopg.Connection) -> None:
    table = loaded(connection)
    there = FakeEmbedder(OTHER)
    assert table.migrate(there, switch=False).state == "prepared"
    assert columns(connection)[1].endswith("_next")
    assert table.search("what?", 1)
    with pytest.raises(ConfigurationError, match="on its way to float vectors of other/model"):
        table.migrate(there, embedding_type="int8")
    assert table.migrate(there).report.loaded == 0  # nothing is done twice
    with pytest.raises(ConfigurationError, match="still keeps float vectors of nimbed/fake"):
        table.migrate(there, embedding_type="int8")
    with pytest.raises(ConfigurationError, match="holds float vectors of other/model.* already"):
        table.migrate(there)
    table.finish()
    with pytest.raises(ConfigurationError, match="keeps nothing"):
        table.finish()
    with pytest.raises(ConfigurationError, match="can be undone"):
        table.rollback()
    table.migrate(there, embedding_type="ubinary", switch=False)
    assert table.rollback().state == "abandoned"
    assert len(columns(connection)) == 1


async def test_the_async_face_does_the_same(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(connection, "t", FakeEmbedder())
        await table.load(ITEMS)
        await table.index()
        done = await table.migrate(FakeEmbedder(OTHER), embedding_type="ubinary", also="halfvec")
        assert (done.state, done.report.loaded) == ("switched", 300)
        assert len(await table.search("what?", 3)) == 3
        assert (await table.rollback(FakeEmbedder())).state == "rolled back"
        assert (await table.finish()).state == "finished"


def test_a_connection_without_autocommit_will_do(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        table = loaded(connection)
        table.index()
        connection.commit()
        done = table.migrate(FakeEmbedder(OTHER), keep_index=False)
        connection.commit()
        assert (done.state, table.index()) == ("switched", False)
        connection.commit()


def test_local_weights_of_a_model_under_another_name_take_the_table_over(
    connection: psycopg.Connection,
) -> None:
    table = loaded(connection, embedding_type="ubinary", also="halfvec")
    alias = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="local/copy"))
    found = table.relabel(alias)
    assert (found.ok, found.sound) == (True, 100)
    assert VectorTable(connection, "t", alias).spec.model == "local/copy"
    assert len(VectorTable(connection, "t", alias).search("what?", 3)) == 3
    with pytest.raises(
        SpaceMismatchError, match="are not those of other/model.*its contract stays"
    ):
        table.relabel(FakeEmbedder(OTHER))
    assert VectorTable(connection, "t", alias).spec.model == "local/copy"


def typed(*words: str) -> Result:
    app = typer.Typer()
    app.command()(migrate)
    return CliRunner().invoke(app, list(words))


def test_the_command_says_what_was_done_and_what_can_be_done_next(
    dsn: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"other/model": OTHER, "copy": dataclasses.replace(FAKE_CARD, id="copy")}
    monkeypatch.setattr(
        nimbed, "load", lambda name=None, **_: FakeEmbedder(known.get(name, FAKE_CARD))
    )
    loaded(connection)
    common = (dsn, "--table", "t")
    done = typed(*common, "--model", "other/model")
    assert done.exit_code == 0, done.output
    assert "300 rows embedded" in done.stderr
    assert "--rollback goes back, --finish drops the old ones" in done.stderr
    assert "the same by nimbed/fake and by other/model" in done.stdout
    assert "nimbed/fake, 64 wide again" in typed(*common, "--rollback").stderr
    assert "the old vectors are dropped" in typed(*common, "--finish").stderr
    kept = typed(*common, "--same-vectors", "--model", "copy")
    assert "t has the contract of copy now" in kept.stderr
    for wrong in (common, (*common, "--rollback", "--finish"), (dsn, "--model", "copy")):
        assert isinstance(typed(*wrong).exception, NimbedError)
