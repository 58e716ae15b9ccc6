"""Inputs of a load besides files of texts: tables, queries, vectors of others; on a PostgreSQL."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.integrations.pgvector.test_cli import (  # noqa: F401 - fixtures
    fake_model,
    in_an_empty_folder,
    typed,
)

from nimbed import FakeEmbedder, cards
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD
from nimbed_pgvector.query_rows import query_rows

pytestmark = pytest.mark.postgres

ROWS = 2500


@pytest.fixture
def articles(connection: psycopg.Connection) -> psycopg.Connection:
    connection.execute("CREATE EXTENSION vector")
    connection.execute(
        "CREATE TABLE articles (key uuid PRIMARY KEY, n int, title text, body text, day date,"
        " price numeric, facts jsonb, raw bytea, emb vector(3), words tsvector)"
    )
    connection.execute(
        "INSERT INTO articles SELECT md5(n::text)::uuid, n, 'Title ' || n, 'Body of 100% ' || n,"
        " '2026-01-02', 1.50, '{\"a\": 1}', '\\x00', '[1,2,3]', to_tsvector('x')"
        f" FROM generate_series(1, {ROWS}) n"
    )
    connection.execute("UPDATE articles SET body = NULL WHERE n = 7")
    return connection


def test_a_table_is_loaded_with_its_keys_and_joined_texts(
    dsn: str, articles: psycopg.Connection
) -> None:
    done = typed(
        "load", dsn, "--table", "t", "--from-table", "articles", "--id-field", "key",
        "--text-field", "title", "--text-field", "body",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"t: {ROWS:,} new, 0 changed" in done.output
    joined = articles.execute(
        "SELECT count(*) FROM t JOIN articles a ON a.key::text = t.id"
        " WHERE t.text = concat_ws(E'\\n\\n', a.title, a.body)"
    ).fetchall()
    assert joined == [(ROWS,)]
    facts = articles.execute("SELECT DISTINCT metadata - 'n' FROM t").fetchall()
    assert facts == [({"day": "2026-01-02", "price": "1.50", "facts": {"a": 1}},)]
    articles.execute(
        "UPDATE articles SET title = 'New' WHERE n = 3; DELETE FROM articles WHERE n = 4"
    )
    again = typed(
        "load", dsn, "--table", "t", "--from-table", "articles", "--id-field", "key",
        "--template", "{title}\n\n{body}", "--prune",
    )  # fmt: skip
    # Without a body there is nothing behind the empty line of a template.
    assert f"t: 0 new, 2 changed, {ROWS - 3:,} unchanged, 0 left out, 1 removed" in again.output


def test_a_query_is_loaded(dsn: str, articles: psycopg.Connection) -> None:
    query = "SELECT n AS id, body AS text FROM articles WHERE body LIKE '%100%% 1%' OR n = 7; "
    done = typed("load", dsn, "--table", "t", "--from-query", query, "--id-field", "id")
    assert done.exit_code == 0, done.output
    wanted = articles.execute(
        "SELECT count(*) FROM articles WHERE body LIKE '%100%% 1%'"
    ).fetchall()[0][0]
    assert f"t: {wanted:,} new, 0 changed, 0 unchanged, 1 left out" in done.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"table": "nowhere"}, "nowhere"),
        ({"table": "articles"}, "no column 'text'; it has key, n, title"),
        ({"query": "DELETE FROM articles RETURNING 1"}, "refuses|read-only"),
        ({"query": "SELECT 1; DROP TABLE articles"}, "refuses"),
        ({"table": "a", "query": "b"}, "either a table or a query"),
    ],
)
def test_what_cannot_be_read_is_refused_and_changes_nothing(
    dsn: str, articles: psycopg.Connection, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        list(query_rows(dsn, **options))
    assert articles.execute("SELECT count(*) FROM articles").fetchall() == [(ROWS,)]


def others(count: int, width: int) -> list[dict[str, Any]]:
    vectors = np.random.default_rng(0).standard_normal((count, width)) * 7
    return [
        {"id": n, "text": f"text {n}", "emb": vector, "page": n}
        for n, vector in enumerate(vectors.tolist())
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "table"])
def test_vectors_of_others_are_taken_under_a_declared_contract(
    dsn: str,
    connection: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr("nimbed.files.ready_vectors.find", lambda name: FAKE_CARD)
    rows = others(40, 64)
    source = ["rows." + kind]
    if kind == "jsonl":
        rows[3]["emb"], rows[4]["emb"], rows[5]["emb"] = [0.0] * 64, [1.0] * 32, None
        Path(*source).write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), *source)
    else:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE old (id int, text text, page int, emb vector(64))")
        for row in rows:
            connection.execute(
                "INSERT INTO old VALUES (%(id)s, %(text)s, %(page)s, %(emb)s::float8[]::vector)",
                row,
            )
        source = ["--from-table", "old"]
    done = typed(
        "load", dsn, "--table", "t", *source, "--id-field", "id",
        "--vector-field", "emb", "--card", FAKE_CARD.id,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    left_out = 3 if kind == "jsonl" else 0
    assert f"t: {40 - left_out} new, 0 changed, 0 unchanged, {left_out} left out" in done.output
    stored = connection.execute("SELECT id, metadata, embedding::text FROM t").fetchall()
    for name, metadata, vector in stored:
        given = np.array(rows[int(name)]["emb"])
        np.testing.assert_allclose(json.loads(vector), given / math.hypot(*given), atol=1e-6)
        assert metadata == {"page": int(name)}
    found = typed("search", dsn, "--table", "t", "what?", "-k", "2", "--json")
    assert len(found.output.splitlines()) == 2


def test_vectors_that_are_not_declared_are_warned_of(dsn: str) -> None:
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, others(3, 64))))
    done = typed("load", dsn, "--table", "t", "rows.jsonl", "--id-field", "id")
    assert "the field emb holds 64 numbers a row" in done.output
    assert "--vector-field emb --card MODEL" in done.output
    kept = typed("load", dsn, "--table", "u", "rows.jsonl", "--metadata-field", "page")
    assert "numbers a row" not in kept.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["x.jsonl", "--vector-field", "emb"], "which model made the vectors"),
        (["x.jsonl", "--vector-field", "emb", "--card", FAKE_CARD.id], "nimbed/fake"),
        (["--from-table", "a", "x.jsonl"], "take the place of INPUT"),
    ],
)
def test_what_cannot_be_meant_is_refused(dsn: str, words: list[str], sentence: str) -> None:
    Path("x.jsonl").write_text("\n".join(map(json.dumps, others(3, 64))))
    done = typed("load", dsn, "--table", "t", *words)
    assert isinstance(done.exception, ConfigurationError)
    assert sentence in str(done.exception)


def test_a_declared_width_must_be_one_of_the_models() -> None:
    from nimbed.files.ready_vectors import declared_spec

    name = cards.DEFAULT_MODEL
    assert declared_spec(name, 384) == cards.find(name).spec()
    with pytest.raises(ConfigurationError, match="300"):
        declared_spec(name, 300)
    assert FakeEmbedder().spec(dimensions=32) == FAKE_CARD.spec(dimensions=32)
