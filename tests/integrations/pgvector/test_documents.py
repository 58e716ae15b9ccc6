"""Documents loaded as chunks, kept in step with their file, on a real PostgreSQL."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.integrations.pgvector.crash_loader import load_documents_slowly
from tests.integrations.pgvector.test_migration_crash import killed_again_and_again

from nimbed import FakeEmbedder
from nimbed.chunks import LateSplitter
from nimbed.errors import ConfigurationError, InputError
from nimbed.rows import BadRow, Row
from nimbed_pgvector import AsyncVectorTable, VectorTable

from .stored_rows import decoded

pytestmark = pytest.mark.postgres

TOKENS, OVERLAP = 48, 8


def prose(seed: int, sentences: int) -> str:
    words = random.Random(seed)
    return "".join(
        " ".join(f"word{words.randrange(900)}" for _ in range(words.randrange(4, 12)))
        + words.choice([". ", "! ", ".\n\n"])
        for _ in range(sentences)
    )


def loaded(table: VectorTable, documents: dict[str, str], **options: Any) -> Any:
    items = [(name, text, {"lang": "en"}) for name, text in documents.items()]
    return table.load(items, chunk_tokens=TOKENS, overlap=OVERLAP, chunk_rows=64, **options)


def in_table(connection: psycopg.Connection) -> dict[str, str]:
    """Return the documents that the chunks of the table are."""
    rows = connection.execute(
        "SELECT id, text, metadata FROM t ORDER BY metadata->>'chunk_of', (metadata->>'chunk')::int"
    ).fetchall()
    whole: dict[str, str] = {}
    for name, text, facts in rows:
        document = facts["chunk_of"]
        assert name == f"{document}#{facts['chunk']}"
        assert facts["lang"] == "en"
        assert len(text.split()) <= TOKENS - 1
        so_far = whole.get(document, "")
        assert facts["chunk_start"] <= len(so_far)
        assert facts["chunk_stop"] == facts["chunk_start"] + len(text)
        whole[document] = so_far + text[len(so_far) - facts["chunk_start"] :]
    return whole


def test_documents_are_in_step_with_their_file(connection: psycopg.Connection) -> None:
    rng = random.Random(3)
    documents = {f"d{n}": prose(n, rng.randrange(1, 60)) for n in range(60)}
    table = VectorTable(connection, "t", FakeEmbedder())
    first = loaded(table, documents)
    assert in_table(connection) == documents
    assert (first.replaced, first.removed, first.unchanged) == (0, 0, 0)
    for round_ in range(4):
        for name in rng.sample(sorted(documents), 12):
            documents[name] = prose(100 * round_ + len(name), rng.choice([1, 2, 30, 120]))
        report = loaded(table, documents)
        assert in_table(connection) == documents
        assert report.replaced
        assert report.removed
    again = loaded(table, documents)
    assert (again.loaded, again.removed) == (0, 0)
    assert again.unchanged == connection.execute("SELECT count(*) FROM t").fetchall()[0][0]
    for name in list(documents)[:7]:
        del documents[name]
    pruned = loaded(table, documents, prune=True)
    assert in_table(connection) == documents
    assert (pruned.loaded, pruned.replaced) == (0, 0)
    assert pruned.removed > 7


def test_a_load_of_documents_killed_again_and_again_is_in_step_at_last(
    dsn: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    documents = {f"d{n}": prose(n, 80) for n in range(60)}
    file = tmp_path / "documents.jsonl"
    for round_ in range(2):
        file.write_text(
            "".join(
                json.dumps({"id": name, "text": text, "lang": "en"}) + "\n"
                for name, text in documents.items()
            )
        )
        work = functools.partial(load_documents_slowly, file=str(file))
        assert killed_again_and_again(work, dsn, 2, 0.1)
        assert in_table(connection) == documents
        for name in list(documents)[:: 2 + round_]:  # longer, shorter
            documents[name] = prose(1000 + int(name[1:]), 5 + 30 * (int(name[1:]) % 4))


def test_no_document_is_too_long(connection: psycopg.Connection) -> None:
    documents = {"prose": prose(1, 4000), "word": "x" * 3000, "emoji": "👩‍👩‍👧‍👦 " * 3000}
    report = loaded(VectorTable(connection, "t", FakeEmbedder()), documents)
    assert report.rejected == 0
    assert in_table(connection) == documents


def test_late_chunks_are_embedded_anew_where_the_text_around_them_changes(
    connection: psycopg.Connection,
) -> None:
    documents = {f"d{n}": prose(n, 30) for n in range(4)}
    fake = FakeEmbedder()
    table = VectorTable(connection, "t", fake)
    first = loaded(table, documents, chunk_mode="late", metadata_fields=["lang"])
    assert in_table(connection) == documents
    assert loaded(table, documents, chunk_mode="late").loaded == 0
    documents["d1"] += "One more sentence."
    report = loaded(table, documents, chunk_mode="late")
    of_d1 = "SELECT id, text FROM t WHERE metadata->>'chunk_of' = 'd1'"
    assert report.loaded == len(connection.execute(of_d1).fetchall())
    assert report.loaded < first.loaded
    assert in_table(connection) == documents
    chunks = [
        chunk
        for text in documents.values()
        for chunk in LateSplitter(fake, tokens=TOKENS, overlap=OVERLAP).split(text)
    ]
    wanted = fake.embed([chunk.text for chunk in chunks], input_type="passage").vectors
    rows = connection.execute(
        "SELECT vector_send(embedding) FROM t"
        " ORDER BY metadata->>'chunk_of', (metadata->>'chunk')::int"
    ).fetchall()
    np.testing.assert_array_equal([decoded(raw, "vector") for (raw,) in rows], wanted)
    assert table.search("what?", 3, group=True)
    for doing, sentence in (
        (lambda: loaded(table, documents), "holds late chunks; .*--chunk-mode late"),
        (lambda: table.load([("p", "a passage")]), "holds late chunks"),
        (table.audit, "cannot be embedded again from it"),
        (lambda: table.migrate(FakeEmbedder()), "into a new table with the new model"),
        (lambda: table.load([("p", "x")], chunk_mode="late"), "give chunk_tokens too"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            doing()


async def test_a_search_gives_a_hit_a_document(dsn: str, connection: psycopg.Connection) -> None:
    documents = {f"d{n}": prose(n, 40 if n < 3 else 1) for n in range(30)}
    table = VectorTable(connection, "t", FakeEmbedder())
    loaded(table, documents)
    table.index()
    every = table.search("what?", 10_000)
    nearest = list(dict.fromkeys(hit.document for hit in every))
    for k in (1, 5, 29, 30, 40):
        grouped = table.search("what?", k, group=True)
        assert [hit.document for hit in grouped] == nearest[:k]
        assert len({hit.document for hit in grouped}) == len(grouped)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        found = await AsyncVectorTable(other, "t", FakeEmbedder()).search("what?", 5, group=True)
    assert [hit.document for hit in found] == nearest[:5]
    with pytest.raises(ConfigurationError, match="holds chunks of documents; load with --chunk"):
        table.load([("d1", "whole")])


def test_chunks_are_not_mixed_with_whole_passages(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load([("d1", "whole")])
    with pytest.raises(ConfigurationError, match="holds whole passages; leave out --chunk"):
        loaded(table, {"d1": "in parts"})
    with pytest.raises(ConfigurationError, match="give chunk_tokens too"):
        table.load([("d1", "whole")], overlap=3)


def test_only_what_an_input_has_lost_is_pruned(connection: psycopg.Connection) -> None:
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load([(f"p{n}", f"passage {n}") for n in range(30)])

    def ids() -> set[str]:
        return {name for (name,) in connection.execute("SELECT id FROM t").fetchall()}

    rows = [Row(n, f"passage {n}" if n != 3 else "word " * 600, f"p{n}") for n in range(20)]
    # A row that cannot be embedded any more keeps what the table has of it.
    report = table.load(rows, prune=True)
    assert (report.removed, report.rejected) == (10, 1)
    assert ids() == {f"p{n}" for n in range(20)}
    with pytest.raises(InputError, match="nothing was pruned, .* row 9: not valid JSON"):
        table.load([*rows[:5], BadRow(9, "not valid JSON")], prune=True)
    assert len(ids()) == 20
    assert table.load([], prune=False).removed == 0
    with pytest.raises(InputError, match="holds no row at all"):
        table.load([], prune=True)
    assert len(ids()) == 20
