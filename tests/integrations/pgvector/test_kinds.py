"""Sparse vectors beside dense ones: loaded, refused, fused in one statement as numpy fuses them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psycopg
import pytest
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
from nimbed import EmbeddingKinds, FakeEmbedder, SparseBatch, SparseSpec, search, stores
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.rows import Row
from nimbed.spec import EmbeddingType
from nimbed_pgvector import FIRST_PAGE, AsyncVectorTable, VectorTable
from nimbed_pgvector.sparse import MOST_INDEXED, SparseColumn

pytestmark = pytest.mark.postgres


@pytest.fixture
def table(connection: psycopg.Connection) -> VectorTable:
    made = VectorTable(connection, "t", Weighed(), kinds=BOTH)
    assert made.load(ITEMS).loaded == ROWS
    return made


@pytest.mark.parametrize(
    ("by", "weights", "where"),
    [("rrf", None, slice(None)), ("rrf", (1, 3), slice(1, None, 2)), ("sum", (2, 1), slice(None))],
)
def test_one_statement_fuses_as_numpy_does(
    table: VectorTable, by: Any, weights: Any, where: slice
) -> None:
    condition = None if where == slice(None) else "(metadata->>'odd')::int = 1"
    hits = table.search(QUESTION, K, filter=condition, fusion=by, weights=weights)
    names, scores = expected(by, weights, where)
    assert [hit.id for hit in hits] == names
    np.testing.assert_allclose([hit.score for hit in hits], scores, rtol=1e-5)
    queries = batches(Weighed(), [QUESTION], "query")
    assert table.nearest(queries, K, filter=condition, fusion=by, weights=weights) == hits
    wanted = {hit.id: hit.distance for hit in table.search(QUESTION, ROWS, kinds=("dense",))}
    np.testing.assert_allclose(
        [hit.distance for hit in hits], [wanted[hit.id] for hit in hits], atol=1e-6
    )


def test_sparse_vectors_alone_rank_as_numpy_does(table: VectorTable) -> None:
    hits = table.search(QUESTION, K, kinds=("sparse",))
    queries = batches(Weighed(), [QUESTION], "query")
    exact = search.nearest(queries.sparse, batches(Weighed(), TEXTS, "passage").sparse, K)
    assert [hit.id for hit in hits] == [f"{row:03}" for row in exact.rows[0]]
    np.testing.assert_allclose([hit.distance for hit in hits], exact.distances[0], rtol=1e-5)
    assert {hit.score for hit in hits} == {None}
    assert table.nearest(queries.sparse, K) == hits
    # What shares no token with the question is no answer, however few there are.
    assert table.search("nothing of that", K, kinds=("sparse",)) == []
    assert len(table.search("nothing of that", K)) == K
    empty = (np.empty(0, np.int32), np.empty(0, np.float32))
    one = np.ones(1, np.int32)
    nothing = SparseBatch.from_rows(
        [empty], spec=queries.sparse.spec, input_type="query", token_counts=one
    )
    assert table.nearest(nothing, K) == []
    table.index(sparse=True)
    again = table.search(QUESTION, K, kinds=("sparse",), filter="id <> '000'")
    assert {hit.id for hit in again} <= {hit.id for hit in table.search(QUESTION, 50)}


@pytest.mark.parametrize("embedding_type", [*get_args(EmbeddingType), "binary, rescored"])
def test_every_type_of_dense_vector_has_sparse_ones_beside_it(
    connection: psycopg.Connection, embedding_type: str
) -> None:
    kind, _, rescored = embedding_type.partition(", ")
    also = "halfvec" if rescored else None
    table = VectorTable(connection, "t", Weighed(), embedding_type=kind, also=also, kinds=BOTH)
    table.load(ITEMS[:100])
    hits = table.search(QUESTION, 100)
    by_dense = {hit.id: hit.distance for hit in table.search(QUESTION, 100, kinds=("dense",))}
    assert {hit.id for hit in hits} == set(by_dense)
    for hit in hits:
        assert hit.distance == pytest.approx(by_dense[hit.id], abs=1e-5)
    assert table.search(QUESTION, 5, fusion="sum", hybrid="simple", weights=(0, 0, 1))
    passages = batches(Weighed(), TEXTS[:100], "passage")
    stored = connection.execute("SELECT sparse::text FROM t ORDER BY id").fetchall()
    text = stores.field(passages.sparse.spec, "pgvector").encode(passages.sparse)
    assert [float(row.partition(":")[2].partition(",")[0]) for (row,) in stored] == pytest.approx(
        [float(row.partition(":")[2].partition(",")[0]) for row in text]
    )
    column = SparseColumn.of(passages.sparse.spec)
    for part in (slice(None), slice(3, 9), slice(5, 5)):
        sent = [bytes(row[4:]) for row in column.wire(passages.sparse, part)]
        read = connection.execute(
            "SELECT sparsevec_send(sparse) FROM t ORDER BY id LIMIT %s OFFSET %s",
            (len(sent), part.start or 0),
        ).fetchall()
        assert sent == [bytes(row) for (row,) in read]


def test_a_load_embeds_both_kinds_at_once_and_goes_on_where_it_was(
    connection: psycopg.Connection,
) -> None:
    embedder = Weighed()
    table = VectorTable(connection, "t", embedder, kinds=BOTH)
    assert table.load(ITEMS[:120], chunk_rows=50).tokens > 0
    assert [len(texts) for _, texts in embedder.calls] == [50, 50, 20]
    report = table.load(ITEMS, chunk_rows=50)
    assert (report.loaded, report.unchanged) == (80, 120)
    changed = [("000", "word1 word5"), ("001", TEXTS[1], {"odd": 1})]
    report = VectorTable(connection, "t", embedder).load(changed)
    assert (report.loaded, report.replaced, report.unchanged) == (1, 1, 1)
    spec = embedder.sparse_spec(max_active=MOST_INDEXED)
    new = embedder.embed_sparse([changed[0][1]], input_type="passage", max_active=MOST_INDEXED)
    stored = connection.execute("SELECT sparse::text FROM t WHERE id = '000'").fetchall()
    assert json.loads(json.dumps(stored[0][0])).count(":") == len(new.ids) > 0
    contracts = connection.execute(
        "SELECT column_name, fingerprint FROM nimbed_spec ORDER BY 1"
    ).fetchall()
    assert contracts == [
        ("embedding", embedder.spec().fingerprint),
        ("sparse", spec.fingerprint),
    ]


def test_two_vocabularies_never_meet(connection: psycopg.Connection, table: VectorTable) -> None:
    other = Weighed()
    other.vocabulary = "another"
    for refused in (
        lambda: VectorTable(connection, "t", other).load(ITEMS),
        lambda: VectorTable(connection, "t", other).search(QUESTION),
        lambda: table.nearest(other.embed_sparse([QUESTION], input_type="query", max_active=1_000)),
    ):
        with pytest.raises(SpaceMismatchError, match="vocabulary 'hashed words' and 'another'"):
            refused()
    with pytest.raises(SpaceMismatchError, match="max_active 1000 and 5"):
        VectorTable(connection, "t", Weighed(), max_active=5).load(ITEMS)
    with pytest.raises(ConfigurationError, match="embedded as a query; this one is a passage"):
        table.nearest(batches(Weighed(), [QUESTION], "passage").sparse)
    assert table.search(QUESTION, 1)  # nothing was harmed
    noted = connection.execute("SELECT col_description('t'::regclass, 6)").fetchall()[0][0]
    edited = other.sparse_spec(max_active=1_000).to_json()
    connection.execute(f"COMMENT ON COLUMN t.sparse IS '{noted.split('{')[0]}{edited}'")
    with pytest.raises(SpaceMismatchError, match="disagree, so one of them was altered"):
        VectorTable(connection, "t").search(QUESTION)


def test_what_cannot_be_is_refused_before_the_first_row(connection: psycopg.Connection) -> None:
    class Dense(FakeEmbedder):
        @property
        def kinds(self) -> Any:
            return ("dense",)

    def loading(embedder: Any = None, **options: Any) -> Any:
        return VectorTable(connection, "t", embedder or Weighed(), **options).load(ITEMS)

    for options, sentence in (
        ({"kinds": ("sparse",), "dimensions": 8}, "are for dense vectors, and the table gets"),
        ({"kinds": ("sparse",), "embedder": Dense()}, "gives no sparse vectors; it gives dense"),
        ({"kinds": ("dense", "multi")}, "pgvector stores no multi-vectors: .*rescore"),
        ({"kinds": ("dense", "spares")}, "kinds must be one of"),
        ({"kinds": BOTH, "max_active": 16_001}, "at most 16000 weights a vector"),
        ({"max_active": 5}, "max_active is for sparse vectors; ask for them with kinds="),
        ({"kinds": BOTH, "embedder": Dense()}, "gives no sparse vectors; it gives dense"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            loading(**options)
    assert connection.execute("SELECT to_regclass('t')").fetchall() == [(None,)]
    loading()
    with pytest.raises(ConfigurationError, match="has no column of sparse vectors; leave kinds"):
        loading(kinds=BOTH)
    for refused in (
        lambda table: table.search(QUESTION, kinds=BOTH),
        lambda table: table.index(sparse=True),
        lambda table: table.nearest(batches(Weighed(), [QUESTION], "query")),
    ):
        with pytest.raises(ConfigurationError, match="has no column of sparse vectors"):
            refused(VectorTable(connection, "t", Weighed()))


def test_a_table_of_both_says_what_does_not_go(
    connection: psycopg.Connection, table: VectorTable
) -> None:
    for options, sentence in (
        ({"after": FIRST_PAGE}, "pages need distances that are final"),
        ({"candidates": 50}, "candidates applies to a search by dense vectors alone"),
        ({"fusion": "max"}, "fusion must be one of 'rrf', 'sum'"),
        ({"weights": (1, 2, 3)}, "2 rankings take as many weights; got 3"),
        ({"k": 0}, "k must be at least 1"),
        ({"kinds": ("multi",)}, "a table holds no multi-vectors"),
        ({"kinds": ("dense",), "weights": (1,)}, "this search has one, by dense vectors"),
        ({"kinds": ("sparse",), "fusion": "sum"}, "this search has one, by sparse vectors"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            table.search(QUESTION, **options)
    assert table.search(QUESTION, 3, kinds=("dense",), after=FIRST_PAGE)
    with pytest.raises(ConfigurationError, match="has a column of sparse vectors; leave kinds"):
        VectorTable(connection, "t", Weighed(), kinds=("dense",)).load(ITEMS)
    dense = Weighed().embed(TEXTS[:1], input_type="passage")
    with pytest.raises(ConfigurationError, match="these rows bring dense ones alone"):
        table.load_embedded([([Row(1, TEXTS[0])], dense)], dense.spec)
    other = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="nimbed/other"))
    with pytest.raises(ConfigurationError, match="which a migration would leave behind.*--kinds"):
        table.migrate(other)


async def test_the_async_face_loads_ready_vectors_and_fuses(dsn: str) -> None:
    embedder = Weighed()
    found = batches(embedder, TEXTS, "passage")
    rows = [Row(n, text, name, facts) for n, (name, text, facts) in enumerate(ITEMS, 1)]
    parts = [
        (rows[start : start + 60], EmbeddingKinds(
            dense=found.dense.select(slice(start, start + 60)),
            sparse=found.sparse.select(slice(start, start + 60)),
        ))
        for start in range(0, ROWS, 60)
    ]  # fmt: skip
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(connection, "t", embedder)
        spec, sparse = found.dense.spec, found.sparse.spec
        assert (await table.load_embedded(parts, spec, sparse=sparse)).loaded == ROWS
        assert (await table.load_embedded(parts, spec, sparse=sparse)).unchanged == ROWS
        lighter = dataclasses.replace(found.sparse, weights=found.sparse.weights / 2)
        changed = [(rows, dataclasses.replace(found, sparse=lighter))]
        assert (await table.load_embedded(changed, spec, sparse=sparse)).loaded == ROWS
        assert await table.index()
        hits = await table.search(QUESTION, K)
        assert [hit.id for hit in hits] == expected("rrf", None, slice(None))[0]


def test_a_search_by_both_is_printed_as_sql(
    connection: psycopg.Connection, table: VectorTable
) -> None:
    by = {"filter": "metadata->>'odd' = '1'", "hybrid": "simple", "weights": (1, 2, 0.5)}
    hits = table.search(QUESTION, 5, **by)
    *_, statement, commit = table.sql(QUESTION, 5, **by).strip().split(";\n")
    rows = connection.execute(statement).fetchall()
    assert [row[1] for row in rows] == [hit.id for hit in hits]
    assert [float(row[5]) for row in rows] == pytest.approx([hit.score for hit in hits])
    assert commit == "COMMIT;"


def test_documents_are_found_once_by_both_kinds(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", Weighed(), kinds=BOTH)
    pages = [(str(n), " ".join(TEXTS[20 * n : 20 * n + 20])) for n in range(10)]
    table.load(pages, chunk_tokens=20)
    hits = table.search(QUESTION, 6, group=True)
    assert len({hit.document for hit in hits}) == len(hits) == 6


def test_an_audit_looks_at_sparse_vectors_too(
    connection: psycopg.Connection, table: VectorTable
) -> None:
    found = table.audit(rows=50)
    assert (found.ok, found.rows, found.sound) == (True, 50, 50)
    assert any("50 of 50 rows are nimbed/fake's sparse" in each.detail for each in found.findings)
    connection.execute(
        "UPDATE t SET sparse = (SELECT sparse FROM t WHERE id = '007') WHERE id < '003'"
    )
    found = table.audit(rows=ROWS)
    assert (found.ok, found.sound) == (False, ROWS - 3)
    (fault,) = [each for each in found.findings if each.verdict == "fail"]
    assert "3 of 200 rows hold other sparse vectors" in fault.detail
    query = Weighed().embed_sparse(TEXTS[:1], input_type="query", max_active=1_000)
    text = stores.field(query.spec, "pgvector").encode(query)[0]
    connection.execute("UPDATE t SET sparse = %s::sparsevec WHERE id < '003'", (text,))
    connection.execute("DELETE FROM t WHERE id IN ('001', '002')")
    (fault,) = [each for each in table.audit(rows=ROWS).findings if each.verdict == "fail"]
    assert "1 of 198 rows are nimbed/fake's sparse vectors of queries" in fault.detail


def test_multi_vectors_are_stored_as_their_encodings(connection: psycopg.Connection) -> None:
    embedder, muvera = FakeEmbedder(), nimbed.Muvera()
    tokens = embedder.embed_multi(TEXTS, input_type="passage")
    passages = muvera.encode(tokens)
    query = muvera.encode(embedder.embed_multi([QUESTION], input_type="query"))
    rows = [Row(n, text, name) for n, (name, text, _) in enumerate(ITEMS, 1)]
    table = VectorTable(connection, "t")
    assert table.load_embedded([(rows, passages)], passages.spec).loaded == ROWS
    assert table.spec == passages.spec
    exact = search.nearest(query, passages, K)
    found = table.nearest(query, K)
    # halfvec rounds: what counts is that the nearest are found, but for near ties.
    np.testing.assert_allclose([h.distance for h in found], exact.distances[0], rtol=1e-3)


def test_a_local_model_fills_both_columns(connection: psycopg.Connection, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.engine.local.checkpoints import tiny_m3

    with nimbed.load(str(tiny_m3(tmp_path)), device="cpu", dtype="float32") as model:
        table = VectorTable(connection, "t", model, kinds=BOTH)
        words = [text.replace("word", "w ") for text in TEXTS[:12]]
        assert table.load(list(enumerate(words)), chunk_rows=5).loaded == 12
        queries = model.embed_kinds([words[0]], kinds=BOTH, input_type="query", max_active=1_000)
        passages = model.embed_sparse(words, input_type="passage", max_active=1_000)
        exact = search.nearest(queries.sparse, passages, 3)
        hits = table.search(words[0], 3, kinds=("sparse",))
        np.testing.assert_allclose([h.distance for h in hits], exact.distances[0], rtol=1e-5)
        assert table.search(words[0], 3) == table.nearest(queries, 3)
        assert table.audit(rows=12).ok


def test_a_vector_of_too_many_weights_is_refused_by_its_row() -> None:
    spec = SparseSpec(model="m", vocabulary=None, dimensions=250_002)
    rows = [(np.arange(n, dtype=np.int32), np.ones(n, np.float32)) for n in (3, 16_001)]
    batch = SparseBatch.from_rows(
        rows, spec=spec, input_type="passage", token_counts=np.ones(2, np.int32)
    )
    column = SparseColumn.of(spec)
    assert (column.type, column.operator_class) == ("sparsevec(250002)", "")
    with pytest.raises(ConfigurationError, match="row 1 of the batch has 16001: embed with"):
        column.wire(batch)
    other = dataclasses.replace(batch, spec=dataclasses.replace(spec, vocabulary="v"))
    with pytest.raises(SpaceMismatchError, match="vocabulary None and 'v'"):
        column.wire(other)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nimbed, "load", lambda *_, **__: Weighed())
    return commands()


def test_two_commands_load_and_fuse(dsn: str, typed: Any) -> None:
    start = ("load", dsn, "--table", "t", "rows.jsonl", "--id-field", "id")
    with pytest.raises(ConfigurationError, match="--sparse-index needs --kinds dense,sparse"):
        typed(*start, "--sparse-index")
    said = typed(*start, "--kinds", "dense, sparse", "--sparse-index", "--max-active", "50")
    assert "t: 200 new, 0 changed, 0 unchanged, 0 left out" in said
    assert "t: 0 new, 0 changed, 200 unchanged" in typed(*start)
    with psycopg.connect(dsn, autocommit=True) as connection:
        kinds = connection.execute(
            "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%sparsevec_ip_ops%'"
        ).fetchall()
        assert kinds == [(1,)]
        spec = Weighed().sparse_spec(max_active=50)
        assert connection.execute(
            "SELECT fingerprint FROM nimbed_spec WHERE column_name = 'sparse'"
        ).fetchall() == [(spec.fingerprint,)]
    ask = ("search", dsn, "--table", "t", QUESTION, "-k", "5")
    both = [json.loads(line) for line in typed(*ask, "--json").splitlines()]
    assert all(hit["score"] > 0 for hit in both)
    by_sum = typed(
        *ask, "--json", "--fusion", "sum", "--weights", "1,0.5", "--kinds", "dense,sparse"
    )
    assert len(by_sum.splitlines()) == 5
    alone = [json.loads(line) for line in typed(*ask, "--json", "--kinds", "sparse").splitlines()]
    assert all(hit["distance"] < 0 and "score" not in hit for hit in alone)
    assert typed(*ask).splitlines()[1].split("\t")[0] == f"{both[0]['score']:.4f}"
    assert "<#>" in typed(*ask, "--sql")
    assert "::sparsevec" not in typed(*ask, "--sql", "--kinds", "dense")
    with pytest.raises(ConfigurationError, match="--weights takes numbers parted by commas"):
        typed(*ask, "--weights", "1;2")
