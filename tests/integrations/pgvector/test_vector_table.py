"""Load, index and search on a real PostgreSQL; numpy says what is right."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import psycopg
import pytest

from nimbed import EmbeddingBatch, FakeEmbedder, search
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.files.rows import BadRow, Row
from nimbed.spec import EmbeddingType
from nimbed_pgvector import Reject, VectorTable
from nimbed_pgvector.columns import Also

pytestmark = pytest.mark.postgres

TEXTS = [f"passage number {number}" for number in range(400)]
ITEMS = [(f"p{number}", text) for number, text in enumerate(TEXTS)]
Row_ = tuple[Any, ...]


def stored(connection: psycopg.Connection, table: str, column: str = "embedding") -> list[Row_]:
    send = {"bit": "bit_send", "vector": "vector_send", "halfvec": "halfvec_send"}
    kind = connection.execute(
        "SELECT trim(format_type(atttypid, -1), chr(34)) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = %s",
        (table, column),
    ).fetchall()[0][0]
    return connection.execute(
        f"SELECT id, text, metadata, {send[kind]}({column}) FROM {table}"
        " ORDER BY substr(id, 2)::int"
    ).fetchall()


def decoded(raw: bytes, kind: str) -> np.ndarray:
    if kind == "bit":
        return np.frombuffer(raw, np.uint8)[4:]
    return np.frombuffer(raw, ">f4" if kind == "vector" else ">f2", offset=4).astype(np.float32)


@pytest.mark.parametrize("embedding_type", get_args(EmbeddingType))
def test_what_was_loaded_is_what_the_embedder_gave_bit_for_bit(
    connection: psycopg.Connection, embedding_type: EmbeddingType
) -> None:
    embedder = FakeEmbedder()
    table = VectorTable(connection, "passages", embedder, embedding_type=embedding_type)
    report = table.load(ITEMS, chunk_rows=150)
    assert (report.loaded, report.unchanged, report.rejected) == (400, 0, 0)
    expected = FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type=embedding_type)
    rows = stored(connection, "passages")
    assert [(row[0], row[1]) for row in rows] == ITEMS
    kind = {"float": "vector", "int8": "halfvec", "uint8": "halfvec"}.get(embedding_type, "bit")
    given = np.stack([decoded(row[3], kind) for row in rows])
    raw = expected.bits() if kind == "bit" else expected.vectors
    np.testing.assert_array_equal(given, raw)
    assert table.spec == expected.spec


@pytest.mark.parametrize("also", get_args(Also))
def test_the_floats_for_rescoring_stand_beside_the_bits(
    connection: psycopg.Connection, also: Also
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary", also=also)
    table.load(ITEMS)
    expected = FakeEmbedder().embed(TEXTS, input_type="passage").vectors
    kind = "vector" if also == "float" else "halfvec"
    given = np.stack([decoded(row[3], kind) for row in stored(connection, "t", "rescoring")])
    np.testing.assert_array_equal(given, expected if also == "float" else expected.astype("f2"))
    bits = np.stack([decoded(row[3], "bit") for row in stored(connection, "t")])
    np.testing.assert_array_equal(bits, np.packbits(expected > 0, axis=1))


@pytest.mark.parametrize("embedding_type", ["float", "int8", "uint8"])
def test_search_gives_the_exact_neighbours_and_distances(
    connection: psycopg.Connection, embedding_type: EmbeddingType
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type=embedding_type)
    table.load(ITEMS)
    for question in ("what is it?", "another question"):
        hits = table.search(question, k=7)
        expected = neighbours(question, embedding_type, 7)
        assert [hit.id for hit in hits] == [f"p{row}" for row in expected.rows[0]]
        np.testing.assert_allclose(
            [hit.distance for hit in hits], expected.distances[0], atol=2e-6, rtol=2e-6
        )
        assert hits[0].text == TEXTS[expected.rows[0, 0]]


def neighbours(question: str, kind: EmbeddingType, k: int) -> search.Neighbours:
    embedder = FakeEmbedder()
    return search.nearest(
        embedder.embed([question], input_type="query", embedding_type=kind),
        embedder.embed(TEXTS, input_type="passage", embedding_type=kind),
        k,
    )


def test_two_stages_with_floats_are_hamming_candidates_in_float_order(
    connection: psycopg.Connection,
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary", also="float")
    table.load(ITEMS)
    hits = table.search("what is it?", k=5, candidates=400)
    expected = neighbours("what is it?", "float", 5)
    assert [hit.id for hit in hits] == [f"p{row}" for row in expected.rows[0]]
    np.testing.assert_allclose([hit.distance for hit in hits], expected.distances[0], atol=1e-6)
    few = table.search("what is it?", k=5, candidates=5)
    bits = neighbours("what is it?", "ubinary", 400)
    allowed = {f"p{row}" for row in bits.rows[0][bits.distances[0] <= bits.distances[0, 4]]}
    assert {hit.id for hit in few} <= allowed


def test_without_floats_the_query_stays_float_and_meets_the_signs(
    connection: psycopg.Connection,
) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type="binary")
    table.load(ITEMS)
    hits = table.search("what is it?", k=5, candidates=400)
    embedder = FakeEmbedder()
    query = embedder.embed(["what is it?"], input_type="query").vectors[0]
    signs = embedder.embed(TEXTS, input_type="passage", embedding_type="ubinary").signs()
    scores = signs @ query / np.sqrt(64)
    best = np.argsort(-scores)[:5]
    assert [hit.id for hit in hits] == [f"p{row}" for row in best]
    np.testing.assert_allclose([hit.distance for hit in hits], 1 - scores[best], atol=1e-6)


def test_a_ready_vector_is_searched_like_its_question(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary")
    table.load(ITEMS)
    query = FakeEmbedder().embed(["what?"], input_type="query")
    assert table.nearest(query, 3) == table.search("what?", 3)
    passage = FakeEmbedder().embed(["what?"], input_type="passage")
    with pytest.raises(ConfigurationError, match="embedded as a query; this one is a passage"):
        table.nearest(passage, 3)


def test_a_second_load_embeds_nothing_and_changes_nothing(connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder()).load(ITEMS)
    before = connection.execute("SELECT id, xmin::text FROM t ORDER BY id").fetchall()
    embedder = FakeEmbedder()
    report = VectorTable(connection, "t", embedder).load(ITEMS)
    assert (report.loaded, report.unchanged) == (0, 400)
    assert embedder.calls == []
    assert connection.execute("SELECT id, xmin::text FROM t ORDER BY id").fetchall() == before


def test_only_what_changed_is_embedded_again(connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder()).load(ITEMS)
    embedder = FakeEmbedder()
    changed = [*ITEMS[:5], ("p5", "another text"), *ITEMS[6:], ("p400", "a new one")]
    report = VectorTable(connection, "t", embedder).load(changed)
    assert (report.loaded, report.unchanged) == (2, 399)
    assert embedder.calls == [("passage", ("another text", "a new one"))]
    assert [(row[0], row[1]) for row in stored(connection, "t")] == changed
    expected = FakeEmbedder().embed(["another text"], input_type="passage").vectors
    np.testing.assert_array_equal(decoded(stored(connection, "t")[5][3], "vector"), expected[0])


def test_metadata_changes_count_and_are_stored(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load([("a", "one", {"page": 1, "tags": ["x", "ä"]})])
    report = table.load([("a", "one", {"tags": ["x", "ä"], "page": 2})])
    assert report.loaded == 1
    assert connection.execute("SELECT metadata FROM t").fetchall() == [
        ({"page": 2, "tags": ["x", "ä"]},)
    ]
    assert table.load([("a", "one", {"page": 2, "tags": ["x", "ä"]})]).unchanged == 1


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
    with pytest.raises(SpaceMismatchError, match=r"embedding_type 'ubinary' and 'int8'.*swap"):
        VectorTable(connection, "t", FakeEmbedder(), embedding_type="int8").load(ITEMS)
    with pytest.raises(SpaceMismatchError, match="dimensions 64 and 32"):
        VectorTable(connection, "t", FakeEmbedder(), dimensions=32).load(ITEMS)
    with pytest.raises(ConfigurationError, match="no such column for rescoring"):
        VectorTable(connection, "t", FakeEmbedder(), also="halfvec").load(ITEMS)
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(3,)]
    with pytest.raises(SpaceMismatchError, match="other/model"):
        VectorTable(connection, "t", other).search("what?")


def test_the_contract_survives_a_rename_and_is_there_twice(connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder(), embedding_type="ubinary").load(ITEMS[:3])
    connection.execute("ALTER TABLE t RENAME TO renamed")
    table = VectorTable(connection, "renamed", FakeEmbedder())
    assert table.load(ITEMS[:3]).unchanged == 3
    fingerprint = connection.execute(
        "SELECT relation::text, column_name, fingerprint, spec->>'model' FROM nimbed_spec"
    ).fetchall()
    assert fingerprint == [("renamed", "embedding", table.spec.fingerprint, "nimbed/fake")]
    connection.execute("DROP TABLE nimbed_spec")
    assert VectorTable(connection, "renamed", FakeEmbedder()).search("what?", 1)


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
        with pytest.raises(ConfigurationError, match="is called name or schema.name"):
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


def test_the_ledger_tells_each_chunk(connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder()).load(ITEMS, source="a.jsonl", chunk_rows=150)
    assert connection.execute(
        "SELECT source, first_row, last_row, passages FROM nimbed_ledger ORDER BY chunk"
    ).fetchall() == [
        ("a.jsonl", 1, 150, 150),
        ("a.jsonl", 151, 300, 150),
        ("a.jsonl", 301, 400, 100),
    ]


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
