"""An audit passes sound tables, and names what was planted in others, on a real PostgreSQL."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner

import nimbed
from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD
from nimbed.rows import Row
from nimbed_cli.audit import audit
from nimbed_pgvector import AsyncVectorTable, VectorTable

pytestmark = pytest.mark.postgres
ITEMS = [(f"p{n}", f"passage number {n}", {"title": f"Title {n}"}) for n in range(60)]
TYPES: list[dict[str, Any]] = [
    {},
    {"dimensions": 16},
    {"embedding_type": "int8"},
    {"embedding_type": "int8", "int8_scale": "nim"},
    {"embedding_type": "uint8"},
    {"embedding_type": "binary"},
    {"embedding_type": "ubinary", "also": "halfvec"},
    {"embedding_type": "ubinary", "also": "float"},
]


def loaded(connection: psycopg.Connection, **kind: Any) -> VectorTable:
    table = VectorTable(connection, "t", FakeEmbedder(), **kind)
    table.load(ITEMS)
    return table


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: " ".join(map(str, kind.values())))
def test_what_a_load_stored_is_sound_in_every_type(
    connection: psycopg.Connection, kind: dict[str, Any]
) -> None:
    found = loaded(connection, **kind).audit()
    assert found.ok, found.findings
    assert (found.rows, found.sound) == (60, 60)
    assert found.difference < 2e-3  # halfvec


def test_vectors_that_others_made_are_named(connection: psycopg.Connection) -> None:
    """As queries, and of the title and the text: what a script may put into a table of nimbed's."""
    fake = FakeEmbedder()
    table = loaded(connection)
    for role, texts, first in (
        ("query", [text for _, text, _ in ITEMS[:20]], 0),
        ("passage", [f"{facts['title']} {text}" for _, text, facts in ITEMS[20:30]], 20),
    ):
        vectors = fake.embed(texts, input_type=role).vectors  # type: ignore[arg-type]
        for n, vector in enumerate(vectors, first):
            connection.execute(
                "UPDATE t SET embedding = %s::text::vector WHERE id = %s",
                (str(vector.tolist()), f"p{n}"),
            )
    found = table.audit()
    said = {finding.name: finding.detail for finding in found.findings}
    assert said["role"].startswith("20 of 60: embedded as queries, the role is swapped; such as")
    assert "the field title and a space in front" in said["text"]
    assert said["text"].startswith("10 of 60")
    assert (found.sound, found.ok) == (30, False)


def test_a_model_that_is_suspected_is_named(connection: psycopg.Connection) -> None:
    """Stored under one model's contract, made by another: what a swapped server leaves behind."""
    other = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="other/model", passage_prompt="doc: "))
    batch = other.embed([text for _, text, _ in ITEMS], input_type="passage")
    lied = dataclasses.replace(batch, spec=FakeEmbedder().spec())
    rows = [Row(n, text, name, facts) for n, (name, text, facts) in enumerate(ITEMS, 1)]
    table = VectorTable(connection, "t", FakeEmbedder())
    table.load_embedded([(rows, lied)], lied.spec)
    assert [finding.name for finding in table.audit().findings] == ["origin"]
    found = table.audit(rows=30, others={"other/model": lambda: other})
    assert [(each.name, each.detail) for each in found.findings] == [
        ("model", "all: of another model or revision: other/model as passages")
    ]


def test_another_model_is_tried_in_the_place_of_one_that_is_gone(
    connection: psycopg.Connection,
) -> None:
    table = loaded(connection, embedding_type="ubinary", also="halfvec")
    copy = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="local/copy"))
    found = table.audit(copy)
    assert (found.sound, found.ok) == (60, False)
    assert (
        "its vectors are that model's: nimbed migrate --same-vectors" in found.findings[-1].detail
    )
    other = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="other/model", passage_prompt="doc: "))
    found = table.audit(other)
    assert (found.sound, found.findings[-1].name) == (0, "contract")
    assert "same-vectors" not in found.findings[-1].detail


async def test_the_async_face_says_the_same(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        table = AsyncVectorTable(connection, "t", FakeEmbedder(), embedding_type="int8")
        await table.load(ITEMS)
        assert (await table.audit(rows=7)).sound == 7
        with pytest.raises(ConfigurationError, match="1 row or more"):
            await table.audit(rows=0)


def test_the_command_leaves_with_1_where_a_table_is_not_what_it_says(
    dsn: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nimbed, "load", lambda *_, **__: FakeEmbedder())
    app = typer.Typer()
    app.command()(audit)
    loaded(connection)
    done = CliRunner().invoke(app, [dsn, "--table", "t"])
    assert (done.exit_code, "vectors" in done.stdout) == (0, True), done.output
    assert "all: nimbed/fake as passages" in done.stdout
    assert "60 rows were looked at; a fault in fewer than 5.0% of the rows" in done.stderr
    connection.execute("UPDATE t SET text = text || ' and more' WHERE id < 'p3'")
    done = CliRunner().invoke(app, [dsn, "--table", "t", "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 1
    assert facts["findings"][1]["detail"].startswith("23 of 60: nothing that was tried")
    refused = CliRunner().invoke(app, [dsn])
    assert isinstance(refused.exception, ConfigurationError)
