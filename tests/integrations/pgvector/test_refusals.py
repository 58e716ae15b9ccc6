"""What is wrong is refused or listed with a sentence, and nothing is half-done."""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg
import pytest
from tests.integrations.pgvector.stored_rows import ITEMS

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.rows import BadRow, Row
from nimbed_pgvector import Reject, VectorTable

pytestmark = pytest.mark.postgres


def test_bad_rows_are_told_with_their_reason_and_the_rest_goes_in(
    connection: psycopg.Connection,
) -> None:
    long = "word " * 600
    items: list[Any] = [
        ("a", "first"),
        ("b", "nul \0 inside"),
        ("a", "the same id again"),
        BadRow(40, "not JSON"),
        ("c", long),
        ("d", "  "),
        ("e", "fine", {"weight": float("nan")}),
        ("f", "fine", {"note": "nul \0"}),
        ("g", "fine", {"note": "a backslash \\u0000 written out"}),
        ("", "no id"),
        ("x" * 3000, "a long id"),
        Row(50, "from a file", None, {}),
        ("h", "lone \ud800 surrogate"),
    ]
    told: list[Reject] = []
    report = VectorTable(connection, "t", FakeEmbedder()).load(
        items, source="script.py", on_reject=told.append
    )
    reasons = {reject.number: reject.reason for reject in told}
    assert "NUL" in reasons[2]
    assert "the id 'a' came before" in reasons[3]
    assert reasons[40] == "not JSON"
    assert "601 exceeds" in reasons[5] or "exceeds the" in reasons[5]
    assert "blank" in reasons[6]
    assert "JSON" in reasons[7]
    assert "metadata holds a NUL" in reasons[8]
    assert "id is empty" in reasons[10]
    assert "3000 bytes" in reasons[11]
    assert "Unicode" in reasons[13]
    assert (report.loaded, report.rejected) == (3, len(told)) == (3, 10)
    assert report.first_rejects == told[:10]
    names = connection.execute("SELECT id FROM t ORDER BY id").fetchall()
    assert names == [("a",), ("g",), ("script.py:50",)]


def test_an_id_that_comes_twice_far_apart_is_found(connection: psycopg.Connection) -> None:
    told: list[Reject] = []
    report = VectorTable(connection, "t", FakeEmbedder()).load(
        [*ITEMS, ("p3", "once more")], chunk_rows=50, on_reject=told.append
    )
    assert (report.loaded, report.rejected) == (400, 1)
    assert told == [Reject(401, "p3", "the id 'p3' came before in this input")]


def test_another_model_type_or_size_is_refused_and_the_way_out_named(
    connection: psycopg.Connection,
) -> None:
    VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary").load(ITEMS[:3])
    other = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="other/model"))
    with pytest.raises(SpaceMismatchError, match=r"nimbed/fake.*other/model"):
        VectorTable(connection, "t", other).load(ITEMS)
    with pytest.raises(
        SpaceMismatchError, match=r"embedding_type 'ubinary' and 'int8'.*nimbed migrate"
    ):
        VectorTable(connection, "t", FakeEmbedder(), embedding_type="int8").load(ITEMS)
    with pytest.raises(SpaceMismatchError, match="dimensions 64 and 32"):
        VectorTable(connection, "t", FakeEmbedder(), dimensions=32).load(ITEMS)
    with pytest.raises(
        ConfigurationError,
        match="has no column for rescoring, but also= asks for a column of halfvec",
    ):
        VectorTable(connection, "t", FakeEmbedder(), also="halfvec").load(ITEMS)
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(3,)]
    with pytest.raises(SpaceMismatchError, match="other/model"):
        VectorTable(connection, "t", other).search("what?")


def test_an_altered_contract_is_noticed(connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder()).load(ITEMS[:3])
    other = FakeEmbedder().spec(dimensions=32).to_json()
    connection.execute("UPDATE nimbed_spec SET spec = %s::jsonb", (other,))
    with pytest.raises(SpaceMismatchError, match="nimbed_spec"):
        VectorTable(connection, "t", FakeEmbedder()).load(ITEMS)
    connection.execute("ALTER TABLE t DROP COLUMN embedding")
    with pytest.raises(ConfigurationError, match="lacks embedding"):
        VectorTable(connection, "t", FakeEmbedder()).load(ITEMS)


def test_a_table_of_somebody_else_is_left_alone(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t (id int, body text)")
    with pytest.raises(ConfigurationError, match=r"not made by nimbed \(it lacks text, metadata"):
        VectorTable(connection, "t", FakeEmbedder()).load(ITEMS)
    assert connection.execute("SELECT to_regclass('nimbed_spec')").fetchall() == [(None,)]


def test_a_name_is_quoted_and_a_schema_respected(connection: psycopg.Connection) -> None:
    connection.execute('CREATE SCHEMA "my; schema"')
    name = 'my; schema.t"; DROP TABLE x; --{}'
    table = VectorTable(connection, name, FakeEmbedder(), embedding_type="ubinary")
    table.load(ITEMS[:20])
    assert table.load(ITEMS[:20]).unchanged == 20
    assert table.load([("p1", "changed")]).loaded == 1
    assert table.index()
    assert len(table.search("what?", 3, filter="metadata = '{}'")) == 3
    tables = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'my; schema' ORDER BY 1"
    ).fetchall()
    assert [row[0] for row in tables] == ["nimbed_ledger", "nimbed_spec", name[11:]]
    for wrong in ("x" * 64, "", "a.", "a.b.c", "a%s"):
        with pytest.raises(ConfigurationError, match="is named TABLE or SCHEMA.TABLE"):
            VectorTable(connection, wrong, FakeEmbedder())


def test_a_connection_inside_a_transaction_is_refused(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        table = VectorTable(connection, "t", FakeEmbedder())
        assert table.load(ITEMS[:5]).loaded == 5  # idle: fine, and committed
        connection.execute("SELECT 1")
        with pytest.raises(ConfigurationError, match="inside a transaction"):
            table.load(ITEMS)
        connection.rollback()
    with psycopg.connect(dsn) as other:
        assert other.execute("SELECT count(*) FROM t").fetchall() == [(5,)]
