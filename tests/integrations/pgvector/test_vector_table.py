"""Load, index and search on a real PostgreSQL; numpy says what is right."""

from __future__ import annotations

from typing import get_args

import numpy as np
import psycopg
import pytest
from tests.integrations.pgvector.stored_rows import ITEMS, TEXTS, decoded, stored

from nimbed import FakeEmbedder, search
from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType
from nimbed_pgvector import VectorTable
from nimbed_pgvector.columns import Also

pytestmark = pytest.mark.postgres


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


def test_the_ledger_tells_each_chunk(connection: psycopg.Connection) -> None:
    VectorTable(connection, "t", FakeEmbedder()).load(ITEMS, source="a.jsonl", chunk_rows=150)
    assert connection.execute(
        "SELECT source, first_row, last_row, passages FROM nimbed_ledger ORDER BY chunk"
    ).fetchall() == [
        ("a.jsonl", 1, 150, 150),
        ("a.jsonl", 151, 300, 150),
        ("a.jsonl", 301, 400, 100),
    ]
