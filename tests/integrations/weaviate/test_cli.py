"""``nimbed load`` and ``nimbed search`` as typed, into a Weaviate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result
from weaviate.util import generate_uuid5

import nimbed
from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError, InputError
from nimbed.fake import FAKE_CARD
from nimbed_cli.audit import audit
from nimbed_cli.load import load
from nimbed_cli.migrate import migrate
from nimbed_cli.search import search
from nimbed_weaviate import self_provided

from .checks import HOME
from .double import Double

Typed = Callable[..., Result]


@pytest.fixture
def typed(double: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    app = typer.Typer()
    app.command()(load)
    app.command()(search)
    app.command()(migrate)
    app.command()(audit)
    monkeypatch.setattr(nimbed, "load", lambda model=None, **options: FakeEmbedder())
    monkeypatch.chdir(tmp_path)

    def run(*words: Any) -> Result:
        command = [str(word) for word in words]
        return CliRunner().invoke(app, [*command, "--grpc-port", str(double.grpc_port)])

    return run


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"passage number {n}", "page": n % 5} for n in range(count)]


def written(name: str, some: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in some))
    return name


def test_a_file_is_loaded_searched_and_loaded_again(double: Double, typed: Typed) -> None:
    some = rows(20)
    some[3]["text"] = " "
    words = (double.url, written("rows.jsonl", some), "--collection", "Docs", "--id-field", "id")
    done = typed("load", *words)
    assert done.exit_code == 0, done.exception
    assert "Docs: 19 new, 0 changed, 0 unchanged, 1 left out" in done.stderr
    assert json.loads(Path("Docs.rejects.jsonl").read_text())["reason"] == "the text is blank"
    some[3]["text"] = "mended"
    some[4]["text"] = "changed"
    done = typed("load", double.url, written("rows.jsonl", some[:15]), *words[2:], "--prune")
    assert "Docs: 1 new, 1 changed, 13 unchanged, 0 left out, 5 removed" in done.stderr
    assert len(double.objects["Docs"]) == 15
    question = FakeEmbedder().embed(["which?"], input_type="query").vectors[0]
    texts = [row["text"] for row in some[:15]]
    far = 1 - FakeEmbedder().embed(texts, input_type="passage").vectors @ question
    done = typed("search", double.url, "which?", "--collection", "Docs", "-k", 4, "--json")
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    nearest = np.argsort(far)[:4]
    assert [hit["id"] for hit in hits] == [f"r{n}" for n in nearest]
    assert hits[0]["text"] == texts[nearest[0]]
    assert hits[0]["metadata"] == {"page": nearest[0] % 5}
    np.testing.assert_allclose([hit["distance"] for hit in hits], far[nearest], atol=1e-6)
    where = ("--filter", "page >= 2", "--filter", "text != 'changed'", "--json")
    done = typed("search", double.url, "which?", "--collection", "Docs", *where)
    found = {json.loads(line)["id"] for line in done.stdout.splitlines()}
    assert found == {f"r{n}" for n in range(15) if n % 5 >= 2 and n != 4}


def test_documents_become_chunks_and_a_shorter_one_leaves_none_behind(
    double: Double, typed: Typed
) -> None:
    long = [{"id": f"d{n}", "text": f"Sentence {n}. " * (30 * n)} for n in range(1, 4)]
    words = ("--collection", "Docs", "--id-field", "id", "--chunk", 24)
    assert typed("load", double.url, written("d.jsonl", long), *words).exit_code == 0
    held = double.objects["Docs"]
    before = len(held)
    for n in (1, 2, 3):
        chunks = sorted(
            (properties["chunk"], properties["text"])
            for properties, _ in held.values()
            if properties["chunk_of"] == f"d{n}"
        )
        assert "".join(text for _, text in chunks) == long[n - 1]["text"]
    done = typed("search", double.url, "which?", "--collection", "Docs", "--group", "--json")
    hits = [json.loads(line)["metadata"] for line in done.stdout.splitlines()]
    assert sorted(hit["chunk_of"] for hit in hits) == ["d1", "d2", "d3"]
    long[2]["text"] = "Short now."
    done = typed("load", double.url, written("d.jsonl", long), *words)
    assert done.exit_code == 0, done.exception
    left = {properties["nimbed_id"] for properties, _ in held.values()}
    assert {name for name in left if name.startswith("d3")} == {"d3#0"}
    assert f"{before - len(left)} removed" in done.stderr
    assert isinstance(
        typed("load", double.url, "d.jsonl", *words[:4]).exception, ConfigurationError
    )


def test_a_file_of_vectors_is_not_embedded_again(
    double: Double, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nimbed.files import embed_file

    written("rows.jsonl", rows(30))
    embed_file(
        FakeEmbedder(), "rows.jsonl", "v.parquet", input_type="passage", id_field="id",
        embedding_type="int8",
    )  # fmt: skip

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(nimbed, "load", refuse)
    done = typed("load", double.url, "v.parquet", "--collection", "Docs")
    assert done.exit_code == 0, done.exception
    assert "30 new" in done.stderr
    right = FakeEmbedder().embed(["passage number 7"], input_type="passage", embedding_type="int8")
    _, vectors = double.objects["Docs"][generate_uuid5("r7")]
    np.testing.assert_array_equal(vectors["default"], right.vectors[0])
    assert "30 unchanged" in typed("load", double.url, "v.parquet", "--collection", "Docs").stderr
    wrong = typed("load", double.url, "v.parquet", "--collection", "Docs", "--dimensions", 8)
    assert "dimensions 8 was asked for" in str(wrong.exception)


def test_a_module_beside_is_configured_seeded_and_asked(double: Double, typed: Typed) -> None:
    double.embed = lambda settings, text, role: (
        FakeEmbedder().embed([text], input_type=role).lists()[0]  # type: ignore[arg-type]
    )
    module = ("--vectorizer", "text2vec-nvidia", "--server", HOME, "--served-name", "small")
    file = written("rows.jsonl", rows(5))
    words = (double.url, file, "--collection", "Docs", "--id-field", "id")
    assert typed("load", *words, *module).exit_code == 0
    settings = double.classes["Docs"]["vectorConfig"]["default"]["vectorizer"]["text2vec-nvidia"]
    assert (settings["baseURL"], settings["model"]) == (HOME, "small")
    assert settings["properties"] == ["text"]
    assert "5 unchanged" in typed("load", *words).stderr
    assert "is there already" in str(typed("load", *words, *module).exception)
    # Of a collection that nimbed did not fill, the module is asked.
    known = double.classes["Docs"]["properties"]
    known[:] = [each for each in known if each["name"] != "nimbed_digest"]
    done = typed("search", double.url, "which?", "--collection", "Docs", "--json")
    assert len(done.stdout.splitlines()) == 5
    assert any("x-nvidia-api-key" in map(str.lower, sent) for sent in double.headers)


def test_a_vector_is_added_and_filled_beside_the_others(double: Double, typed: Typed) -> None:
    words = (double.url, written("rows.jsonl", rows(5)), "--collection", "Docs", "--id-field", "id")
    assert typed("load", *words, "--vector", "a").exit_code == 0
    done = typed("load", *words, "--vector", "b", "--embedding-type", "binary")
    assert done.exit_code == 0, done.exception
    assert "5 new, 0 changed" in done.stderr
    for _, vectors in double.objects["Docs"].values():
        assert set(vectors) == {"a", "b"}
        assert set(vectors["b"]) == {1.0, -1.0}
    done = typed("search", double.url, "which?", "--collection", "Docs", "--vector", "b", "--json")
    assert all(json.loads(line)["distance"].is_integer() for line in done.stdout.splitlines())
    assert "it has 'a', 'b'" in str(
        typed("search", double.url, "q", "--collection", "Docs").exception
    )


def test_multi_vectors_are_loaded_beside_the_others(double: Double, typed: Typed) -> None:
    words = (double.url, written("rows.jsonl", rows(5)), "--collection", "Docs", "--id-field", "id")
    done = typed("load", *words, "--kinds", "dense,multi")
    assert "5 new, 0 changed" in done.stderr, done.exception
    for _, vectors in double.objects["Docs"].values():
        assert (np.shape(vectors["default"]), np.shape(vectors["multi"])[1]) == ((64,), 64)
    assert "5 unchanged" in typed("load", *words, "--kinds", "dense,multi").stderr
    asked = ("search", double.url, "which?", "--collection", "Docs", "--json", "--vector")
    for name in ("default", "multi"):
        assert len(typed(*asked, name).stdout.splitlines()) == 5
    alone = (*words[:2], "--collection", "Tokens", "--id-field", "id", "--kinds", "multi")
    assert "5 new" in typed("load", *alone).stderr
    assert all(set(vectors) == {"multi"} for _, vectors in double.objects["Tokens"].values())
    told = str(typed("load", *words, "--kinds", "dense,sparse").exception)
    assert "Weaviate stores no sparse vectors; its keyword search (BM25)" in told
    assert "kinds must be one of" in str(typed("load", *words, "--kinds", "thick").exception)


def test_a_collection_is_migrated_step_by_step(
    double: Double, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(FAKE_CARD, id="nimbed/other")

    def pretend(model: str | None = None, **options: Any) -> FakeEmbedder:
        return FakeEmbedder(other if model == "nimbed/other" else FAKE_CARD)

    monkeypatch.setattr(nimbed, "load", pretend)
    file = written("rows.jsonl", rows(9))
    load_words = (double.url, file, "--collection", "Docs", "--id-field", "id")
    assert typed("load", *load_words, "--vector", "first").exit_code == 0
    words = ("migrate", double.url, "--collection", "Docs")
    done = typed(*words, "--model", "nimbed/other", "--no-switch")
    assert "9 objects were embedded" in done.stderr, done.exception
    assert "run it again without --no-switch" in done.stderr
    done = typed(*words, "--model", "nimbed/other")
    assert "Docs is searched by 'other': float vectors of nimbed/other, 64 wide now" in done.stderr
    assert "target_vector='other'" in done.stderr
    # What names no vector follows.
    assert "9 unchanged" in typed("load", *load_words).stderr
    assert typed("search", double.url, "which?", "--collection", "Docs").exit_code == 0
    assert "searched by 'first'" in typed(*words, "--rollback").stderr
    assert "searched by 'other'" in typed(*words, "--rollback").stderr
    done = typed(*words, "--finish")
    assert "/v1/schema/Docs/vectors/first/index` frees its memory" in done.stderr
    assert "say what the collection is to hold" in str(typed(*words).exception)
    assert "--also is for PostgreSQL" in str(typed(*words, "--also", "float").exception)


def test_where_no_vector_can_be_added_a_new_collection_takes_the_place(
    double: Double, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(FAKE_CARD, id="nimbed/other")

    def pretend(model: str | None = None, **options: Any) -> FakeEmbedder:
        return FakeEmbedder(other if model == "nimbed/other" else FAKE_CARD)

    monkeypatch.setattr(nimbed, "load", pretend)
    double.version = "1.30.0"
    file = written("rows.jsonl", rows(9))
    load_words = (double.url, file, "--collection", "Docs", "--id-field", "id")
    assert typed("load", *load_words).exit_code == 0
    words = ("migrate", double.url, "--collection", "Docs")
    done = typed(*words, "--model", "nimbed/other")
    assert "9 objects were embedded" in done.stderr, done.exception
    assert "Docs_2 is searched by 'other': float vectors of nimbed/other, 64 wide" in done.stderr
    assert "other programs open the collection Docs_2" in done.stderr
    # The old name leads to the new collection.
    assert "9 unchanged" in typed("load", *load_words).stderr
    assert typed("search", double.url, "which?", "--collection", "Docs").exit_code == 0
    done = typed("audit", double.url, "--collection", "Docs", "--model", "nimbed/other")
    assert done.exit_code == 0
    assert "Docs is searched by 'default'" in typed(*words, "--rollback").stderr
    assert "Docs_2 is searched by 'other'" in typed(*words, "--rollback").stderr
    done = typed(*words, "--finish")
    assert "v1/schema/Docs` deletes it" in done.stderr
    # Where there are aliases, one is switched.
    double.version = "1.38.11"
    double.aliases["Current"] = "Docs_2"
    words = ("migrate", double.url, "--collection", "Current")
    done = typed(*words, "--embedding-type", "int8", "--into", "Docs_8")
    assert "Docs_8 is searched by 'other_int8': int8 vectors" in done.stderr, done.exception
    assert "the alias Current leads there" in done.stderr
    assert double.aliases == {"Current": "Docs_8"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["load", "URL", "rows.jsonl"], "in Weaviate, with --collection NAME"),
        (["load", "postgresql://h/d", "rows.jsonl"], "in PostgreSQL, with --table NAME"),
        (["load", "URL", "rows.jsonl", "--table", "t"], "--table is for PostgreSQL"),
        (["load", "URL", "rows.jsonl", "--collection", "C", "--also", "float", "--no-index"],
         "--also, --no-index is for PostgreSQL"),
        (["load", "postgresql://h/d", "rows.jsonl", "--table", "t", "--server", "http://s"],
         "--server is for Weaviate"),
        (["load", "URL", "rows.jsonl", "--collection", "C", "--vectorizer", "text2vec-nvidia"],
         "give --server URL"),
        (["load", "URL", "rows.jsonl", "--collection", "C", "--vectorizer", "text2vec",
          "--server", "http://s"], "module must be one of"),
        (["load", "URL", "rows.jsonl", "--collection", "C", "--rejects", "rows.jsonl"], "replace"),
        (["search", "URL", "q"], "with --collection NAME"),
        (["search", "URL", "q", "--collection", "C"], "no such collection"),
        (["search", "URL", "q", "--collection", "Own"], "no module embeds questions"),
        (["search", "URL", " ", "--collection", "Own", "--model", "m"], "is blank"),
        (["search", "URL", "q", "--collection", "Own", "--filter", "page"], "got 'page'"),
        (["search", "URL", "q", "--collection", "Own", "--filter", "pag = 3"], "no property 'pag'"),
        (["search", "URL", "q", "--collection", "Own", "--filter", "page = x"], "of type number"),
        (["search", "URL", "q", "--collection", "Own", "-k", "0", "--model", "m"], "at least 1"),
        (["search", "URL", "q", "--collection", "Own", "--group", "--model", "m"], "no chunks"),
        (["search", "URL", "q", "--collection", "Own", "--candidates", "9"], "for PostgreSQL"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_sentence(
    double: Double, typed: Typed, make: Any, words: list[str], message: str
) -> None:
    own = make("Own", self_provided(FakeEmbedder().spec()))
    own.data.insert_many([{"page": 3}])
    written("rows.jsonl", rows(2))
    error = typed(*(double.url if word == "URL" else word for word in words)).exception
    assert isinstance(error, (ConfigurationError, InputError)), repr(error)
    assert message in str(error)
