"""Sparse vectors that are a table's only ones, and those that the rows of a file bring."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow
import pytest
from pyarrow import parquet
from tests.integrations.pgvector.weighed_rows import (
    BOTH,
    ITEMS,
    QUESTION,
    ROWS,
    TEXTS,
    K,
    Weighed,
    batches,
    commands,
    expected,
)

import nimbed
from nimbed import FakeEmbedder, search
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.rows import Row
from nimbed_pgvector import VectorTable
from nimbed_pgvector.sparse import MOST_INDEXED

pytestmark = pytest.mark.postgres


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nimbed, "load", lambda *_, **__: Weighed())
    return commands()


def test_a_table_of_sparse_vectors_alone(connection: psycopg.Connection) -> None:
    embedder = Weighed()
    table = VectorTable(connection, "t", embedder, kinds=("sparse",))
    assert table.load(ITEMS[:150], chunk_rows=60).loaded == 150
    again = VectorTable(connection, "t", Weighed())
    report = again.load(ITEMS, chunk_rows=60)
    assert (report.loaded, report.unchanged) == (50, 150)
    spec = embedder.sparse_spec(max_active=MOST_INDEXED)
    assert again.find_spec() == spec
    found = connection.execute("SELECT column_name, fingerprint FROM nimbed_spec").fetchall()
    assert found == [("sparse", spec.fingerprint)]
    ledger = connection.execute("SELECT DISTINCT fingerprint FROM nimbed_ledger").fetchall()
    assert ledger == [(spec.fingerprint,)]
    query = embedder.embed_sparse([QUESTION], input_type="query", max_active=MOST_INDEXED)
    passages = embedder.embed_sparse(TEXTS, input_type="passage", max_active=MOST_INDEXED)
    exact = search.nearest(query, passages, K)
    hits = again.search(QUESTION, K)
    assert [hit.id for hit in hits] == [f"{row:03}" for row in exact.rows[0]]
    np.testing.assert_allclose([hit.distance for hit in hits], exact.distances[0], rtol=1e-5)
    assert again.nearest(query, K) == hits
    assert len(again.search(QUESTION, K, hybrid="simple", weights=(1, 2))) == K
    assert "::sparsevec" in again.sql(QUESTION, K)
    assert again.find_index() is None
    assert not again.index()
    assert again.index(sparse=True)
    assert again.find_index() is not None
    assert {hit.id for hit in again.search(QUESTION, 3)} <= {hit.id for hit in hits}
    assert again.audit(rows=50).ok
    for refused in (
        lambda: again.search(QUESTION, kinds=("dense",)),
        lambda: again.search(QUESTION, kinds=BOTH),
        lambda: again.nearest(embedder.embed([QUESTION], input_type="query")),
        lambda: again.migrate(FakeEmbedder(dataclasses.replace(FAKE_CARD, id="nimbed/other"))),
        lambda: again.spec,
    ):
        with pytest.raises(ConfigurationError, match="sparse vectors alone, and this needs dense"):
            refused()
    with pytest.raises(ConfigurationError, match="has a column of sparse vectors alone; leave"):
        VectorTable(connection, "t", Weighed(), kinds=BOTH).load(ITEMS)
    other = Weighed()
    other.vocabulary = "another"
    with pytest.raises(SpaceMismatchError, match="vocabulary 'hashed words' and 'another'"):
        VectorTable(connection, "t", other).search(QUESTION)


def test_ready_sparse_vectors_alone_are_loaded(connection: psycopg.Connection) -> None:
    found = batches(Weighed(), TEXTS, "passage")
    rows = [Row(n, text, name, facts) for n, (name, text, facts) in enumerate(ITEMS, 1)]
    table = VectorTable(connection, "t", Weighed())
    assert table.load_embedded([(rows, found.sparse)], found.sparse.spec).loaded == ROWS
    assert table.load_embedded([(rows, found.sparse)], found.sparse.spec).unchanged == ROWS
    exact = search.nearest(batches(Weighed(), [QUESTION], "query").sparse, found.sparse, K)
    hits = table.search(QUESTION, K)
    assert [hit.id for hit in hits] == [f"{row:03}" for row in exact.rows[0]]
    with pytest.raises(ConfigurationError, match="holds sparse vectors; these rows bring dense"):
        table.load_embedded([(rows, found.dense)], found.dense.spec)
    with pytest.raises(SpaceMismatchError, match="holds sparse vectors; got dense ones"):
        table.load_embedded([(rows, found.dense)], found.sparse.spec)
    table = VectorTable(connection, "both", Weighed(), kinds=BOTH)
    with pytest.raises(ConfigurationError, match="holds dense and sparse vectors; these rows"):
        table.load_embedded([(rows, found.sparse)], found.sparse.spec)


def test_two_commands_load_sparse_vectors_alone(dsn: str, typed: Any) -> None:
    start = ("load", dsn, "--table", "t", "rows.jsonl", "--id-field", "id")
    said = typed(*start, "--kinds", "sparse")
    assert "t: 200 new" in said
    assert "there is no index: a search compares every row (--sparse-index builds one)" in said
    assert "the index is built" in typed(*start, "--kinds", "sparse", "--sparse-index")
    hits = [
        json.loads(line)
        for line in typed("search", dsn, "--table", "t", QUESTION, "-k", "5", "--json").splitlines()
    ]
    assert len(hits) == 5
    assert all(hit["distance"] < 0 and "score" not in hit for hit in hits)
    with pytest.raises(ConfigurationError, match="sparse vectors alone, and this needs dense"):
        typed("search", dsn, "--table", "t", QUESTION, "--kinds", "dense")


FORMS: dict[str, Any] = {
    "dict": lambda row: {str(i): w for i, w in row.items()},
    "qdrant": lambda row: {"indices": list(row), "values": list(row.values())},
    "tei": lambda row: [{"index": i, "value": w} for i, w in row.items()],
    "text": lambda row: json.dumps(row),
}


def write_rows(path: str, rows: list[dict[str, Any]], sparse: Any = None) -> None:
    """Write rows as JSON or Parquet, which has a type for the field of sparse vectors."""
    if path.endswith(".jsonl"):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    table = pyarrow.Table.from_pylist([{**row, "s": None} for row in rows])
    column = pyarrow.array([row["s"] for row in rows], sparse)
    place = table.column_names.index("s")
    parquet.write_table(table.set_column(place, "s", column), path)


PAIR = [("index", pyarrow.int32()), ("value", pyarrow.float32())]
MAP = pyarrow.map_(pyarrow.int32(), pyarrow.float32())


@pytest.mark.parametrize(
    ("name", "form", "kind"),
    [
        ("rows.jsonl", "dict", None),
        ("rows.jsonl", "tei", None),
        ("rows.parquet", "qdrant", None),
        ("rows.parquet", "tei", pyarrow.list_(pyarrow.struct(PAIR))),
        ("rows.parquet", "text", None),
        ("rows.parquet", "map", MAP),
    ],
)
def test_sparse_vectors_of_a_file_are_not_embedded_again(
    dsn: str, typed: Any, name: str, form: str, kind: Any
) -> None:
    found = batches(Weighed(), TEXTS, "passage")
    write = FORMS.get(form, lambda row: list(row.items()))
    rows = [
        {"id": key, "text": text, "s": write(weights)}
        for (key, text, _), weights in zip(ITEMS, found.sparse.dicts(), strict=True)
    ]
    write_rows(name, rows, kind)
    start = ("load", dsn, "--table", "t", name, "--id-field", "id", "--sparse-field", "s")
    with pytest.raises(ConfigurationError, match="say by --card NAME"):
        typed(*start)
    assert "t: 200 new" in typed(*start, "--card", "nimbed/fake")
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", Weighed())
        assert table.find_spec() == found.sparse.spec
        exact = search.nearest(batches(Weighed(), [QUESTION], "query").sparse, found.sparse, K)
        hits = table.search(QUESTION, K)
        assert [hit.id for hit in hits] == [f"{row:03}" for row in exact.rows[0]]
        assert set(hits[0].metadata) == set()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_both_kinds_of_a_file_are_loaded_and_bad_rows_left_out(
    dsn: str, typed: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimbed.files.ready_vectors.find", lambda _: FAKE_CARD)
    found = batches(Weighed(), TEXTS, "passage")
    rows = [
        {"id": key, "text": text, "v": dense.tolist(), "s": FORMS["qdrant"](weights)}
        for (key, text, _), dense, weights in zip(
            ITEMS, found.dense.vectors, found.sparse.dicts(), strict=True
        )
    ]
    good = rows[0]["s"]
    for place, bad in enumerate(
        (
            None,
            {"indices": [1, 1], "values": [1.0, 2.0]},
            {"indices": [1], "values": [-1.0]},
            {"indices": [99_999_999], "values": [1.0]},
            {"indices": [1, 2], "values": [1.0]},
        )
    ):
        rows[place]["s"] = bad
    rows[5]["s"] = {"indices": [*good["indices"], 3], "values": [*good["values"], 0.0]}
    write_rows(name, rows)
    said = typed(
        *("load", dsn, "--table", "t", name, "--id-field", "id", "--card", "nimbed/fake"),
        *("--vector-field", "v", "--sparse-field", "s", "--sparse-index"),
    )
    assert "t: 195 new, 0 changed, 0 unchanged, 5 left out" in said
    reasons = [
        json.loads(line)["reason"] for line in Path("t.rejects.jsonl").read_text().splitlines()
    ]
    for reason, words in zip(
        reasons,
        ("no sparse vector in", "twice", "negative", "99999999; the voc", "no sparse vector of"),
        strict=True,
    ):
        assert words in reason
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = VectorTable(connection, "t", Weighed())
        hits = table.search(QUESTION, K, filter="id > '005'")
        assert [hit.id for hit in hits] == expected("rrf", None, slice(6, None))[0]
