"""Pages, hybrid search and SQL to paste, against bare SQL on a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed_pgvector import FIRST_PAGE, AsyncVectorTable, VectorTable

pytestmark = pytest.mark.postgres

COUNT = 700
WORDS = ["river", "sky", "tokens", "memory", "query", "cats", "computers", "answering"]
ITEMS = [
    (
        f"p{n:04}",
        f"passage {n % 300} about {WORDS[n % 8]} and {WORDS[n % 7]}",
        {"page": n, "lang": "de" if n % 100 == 7 else "en"},
    )
    for n in range(COUNT)
]
KINDS: list[dict[str, Any]] = [
    {},
    {"embedding_type": "int8"},
    {"embedding_type": "uint8"},
    {"embedding_type": "ubinary"},
    {"embedding_type": "ubinary", "also": "halfvec"},
]


@pytest.fixture(scope="module")
def database(server_dsn: str) -> Iterator[str]:
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE pages")
    dsn = server_dsn.replace("/postgres?", "/pages?")
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number, options in enumerate(KINDS):
            table = VectorTable(connection, f"t{number}", FakeEmbedder(), **options)
            table.load(ITEMS)
            table.index(words="english")
    yield dsn
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute("DROP DATABASE pages WITH (FORCE)")


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture(params=range(len(KINDS)), ids=[str(kind) for kind in KINDS])
def name(request: pytest.FixtureRequest) -> str:
    return f"t{request.param}"


@pytest.fixture
def filled(connection: psycopg.Connection, name: str) -> VectorTable:
    return VectorTable(connection, name, FakeEmbedder())


def is_rescored(table: VectorTable) -> bool:
    return "binary" in table.spec.embedding_type


@pytest.mark.parametrize("where", [None, "metadata->>'lang' = %s"])
def test_pages_repeat_nothing_and_leave_nothing_out(filled: VectorTable, where: str | None) -> None:
    parameters = [] if where is None else ["de"]
    if is_rescored(filled):
        with pytest.raises(ConfigurationError, match="pages need distances that are final"):
            filled.search("what?", after=FIRST_PAGE)
        return
    pages, after = [], FIRST_PAGE
    size = 3 if where else 200
    while hits := filled.search("what?", size, filter=where, parameters=parameters, after=after):
        pages.append(hits)
        after = hits[-1].distance, hits[-1].id
    found = [(hit.distance, hit.id) for page in pages for hit in page]
    assert found == sorted(found)  # passages of one text have one distance
    assert len({name for _, name in found}) == len(found) == (7 if where else COUNT)
    assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)
    exact = filled.search("what?", 10, filter=where, parameters=parameters)
    np.testing.assert_allclose([hit.distance for hit in exact], [each for each, _ in found[:10]])


def test_words_and_meaning_are_fused_by_their_ranks(
    filled: VectorTable, connection: psycopg.Connection, name: str
) -> None:
    question, k = "an answer about a cat", 20
    hits = filled.search(question, k, hybrid="english")
    assert len({hit.id for hit in hits}) == k
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    # The words as SQL by hand has them; the vectors as the search itself ranks them.
    worded = [
        name
        for (name,) in connection.execute(
            f"SELECT id FROM {name} WHERE to_tsvector('english', text) @@ 'answer | cat'::tsquery"
            " ORDER BY ts_rank_cd(to_tsvector('english', text), 'answer | cat'::tsquery) DESC, id"
            " LIMIT 80"
        ).fetchall()
    ]
    assert len(worded) == 80
    by_words = {name: place for place, name in enumerate(worded, 1)}
    for hit in hits:
        by_meaning = 1 / hit.score if hit.id not in by_words else None
        if by_meaning is not None:
            assert 61 <= by_meaning <= 60 + 80
        else:
            assert hit.score >= 1 / (60 + by_words[hit.id]) - 1e-12
    both = [hit for hit in hits if hit.score > 1 / 61 + 1e-9]
    assert both, "nothing is in both lists"
    if not is_rescored(filled):
        wanted = {hit.id: hit.distance for hit in filled.search(question, 80)}
        assert all(hit.distance == wanted.get(hit.id, hit.distance) for hit in hits)
    only = filled.search(
        question, 10, hybrid="english", filter="metadata->>'lang' = %s", parameters=["de"]
    )
    assert len(only) == 7
    assert {hit.metadata["lang"] for hit in only} == {"de"}
    if not is_rescored(filled):  # no word of this is looked for
        none = filled.search("of the", 5, hybrid="english")
        assert [hit.id for hit in none] == [hit.id for hit in filled.search("of the", 5)]


def test_the_words_have_an_index_once(connection: psycopg.Connection) -> None:
    filled = VectorTable(connection, "t0", FakeEmbedder())

    def indexes() -> int:
        return connection.execute(
            "SELECT count(*) FROM pg_indexes WHERE tablename = 't0' AND indexdef LIKE '%gin%'"
        ).fetchall()[0][0]

    assert indexes() == 1
    assert filled.index(words="english") is False
    assert indexes() == 1
    with pytest.raises(ConfigurationError, match="no words of 'klingon'; it knows .*english"):
        filled.search("what?", hybrid="klingon")
    plan = connection.execute(
        "EXPLAIN (FORMAT JSON) SELECT id FROM t0 WHERE to_tsvector('english', text) @@"
        " 'nowhere'::tsquery"
    ).fetchall()
    assert "Bitmap Index Scan" in json.dumps(plan)


@pytest.mark.parametrize("where", [None, "metadata->>'lang' = 'de' AND text LIKE '%%a%'"])
async def test_sql_can_be_pasted(
    filled: VectorTable, database: str, name: str, where: str | None
) -> None:
    statement = filled.sql("what?", 5, filter=where)
    with psycopg.connect(database, autocommit=True) as other:
        cursor = other.execute(statement)
        rows: list[Any] = []
        while True:
            if cursor.description:
                rows = cursor.fetchall()
            if not cursor.nextset():
                break
        assert other.execute("SHOW hnsw.ef_search").fetchall() == [("40",)]
    hits = filled.search("what?", 5, filter=where)
    if filled.spec.packed and "rescoring" not in statement:
        assert [row[4] for row in rows] == sorted(row[4] for row in rows)
        assert len(rows) == 5
    else:
        assert [row[1] for row in rows] == [hit.id for hit in hits]
    assert "%b" not in statement
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other_:
        same = await AsyncVectorTable(other_, name, FakeEmbedder()).sql("what?", 5, filter=where)
    assert same == statement
