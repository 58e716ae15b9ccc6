"""``nimbed load`` and ``nimbed search`` as typed, on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner, Result

import nimbed
from nimbed import FakeEmbedder
from nimbed.errors import ConfigurationError, InputError, NimbedError
from nimbed.fake import FAKE_CARD
from nimbed_cli.load import load
from nimbed_cli.main import main
from nimbed_cli.search import search

pytestmark = pytest.mark.postgres

app = typer.Typer()
app.command()(load)
app.command()(search)


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []

    def pretend(model: str | None = None, **placement: Any) -> FakeEmbedder:
        asked.append(model)
        assert model in (None, FAKE_CARD.id)
        return FakeEmbedder()

    monkeypatch.setattr(nimbed, "load", pretend)
    return asked


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def written(name: str, lines: list[str]) -> str:
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def rows(count: int) -> list[str]:
    return [
        json.dumps({"id": n, "text": f"passage number {n}", "lang": "en" if n % 2 else "de"})
        for n in range(count)
    ]


def test_two_commands_load_and_search(
    dsn: str, fake_model: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEmbedder, "arithmetic", "float32 on cpu by torch", raising=False)
    file = written("rows.jsonl", rows(200))
    done = typed(
        "load", dsn, "--table", "t", file, "--id-field", "id",
        "--embedding-type", "ubinary", "--also", "halfvec",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "t: 200 new, 0 changed, 0 unchanged, 0 left out" in done.output
    assert "computed in float32 on cpu by torch" in done.output
    assert "the index is built" in done.output
    again = typed("load", dsn, "--table", "t", file, "--id-field", "id")
    assert "t: 0 new, 0 changed, 200 unchanged" in again.output
    assert "the index was there already" in again.output
    found = typed(
        "search", dsn, "--table", "t", "what is it?", "-k", "3", "--json",
        "--filter", "metadata->>'lang' = 'en'", "--filter", "id LIKE '1%' -- of the tens",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    hits = [json.loads(line) for line in found.output.splitlines()]
    assert [sorted(hit) for hit in hits] == [["distance", "id", "metadata", "text"]] * 3
    assert all(hit["metadata"] == {"lang": "en"} and hit["id"][0] == "1" for hit in hits)
    assert fake_model == [None, FAKE_CARD.id, FAKE_CARD.id]
    shown = typed("search", dsn, "--table", "t", "what is it?")
    assert "passage number" in shown.output


def test_bad_lines_are_listed_with_their_reasons(dsn: str) -> None:
    lines = rows(10_050)
    lines[9999] = '{"id": 9999, "text": '
    lines[120] = json.dumps({"id": 120})
    lines[130] = json.dumps({"id": 7, "text": "the id of another", "lang": "en"})
    lines[140] = json.dumps({"id": 140, "text": "a nul \0 inside"})
    lines[150], lines[152] = (
        json.dumps({"id": number, "text": "word " * length})
        for number, length in ((150, 600), (152, 700))
    )
    file = written("rows.jsonl", lines)
    done = typed("load", dsn, "--table", "t", file, "--id-field", "id", "--metadata-field", "lang")
    assert done.exit_code == 0, done.output
    assert "10,044 new, 0 changed, 0 unchanged, 6 left out" in done.output
    listed = [json.loads(line) for line in Path("t.rejects.jsonl").read_text().splitlines()]
    by_number = {reject["number"]: reject["reason"] for reject in listed}
    assert sorted(by_number) == [121, 131, 141, 151, 153, 10_000]
    assert "'7' came before" in by_number[131]
    assert "NUL" in by_number[141]
    for number, length in ((151, 601), (153, 701)):
        said = f"input length {length} exceeds maximum allowed token size 512 (row {number});"
        assert by_number[number].startswith(said)
    mended = typed(
        "load", dsn, "--table", "t", written("good.jsonl", rows(10_050)), "--id-field", "id"
    )
    assert "t: 6 new, 0 changed, 10,044 unchanged" in mended.output


def test_a_file_without_ids_gets_ids_of_its_name_and_rows(dsn: str) -> None:
    file = written("texts.txt", ["one text", "another text"])
    for _ in range(2):
        assert typed("load", dsn, "--table", "t", file, "--no-index").exit_code == 0
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT id, text FROM t ORDER BY id").fetchall() == [
            ("texts.txt:1", "one text"),
            ("texts.txt:2", "another text"),
        ]
        assert connection.execute(
            "SELECT count(*) FROM pg_indexes WHERE tablename = 't'"
        ).fetchall() == [(1,)]


def test_a_file_of_vectors_is_not_embedded_again(dsn: str, fake_model: list[Any]) -> None:
    pytest.importorskip("pyarrow")
    from nimbed.files import embed_file

    source = written("rows.jsonl", rows(50))
    embed_file(
        FakeEmbedder(), source, "v.parquet", input_type="passage", id_field="id",
        embedding_type="ubinary",
    )  # fmt: skip
    done = typed("load", dsn, "--table", "t", "v.parquet")
    assert done.exit_code == 0, done.output
    assert "50 new" in done.output
    assert fake_model == []
    assert "50 unchanged" in typed("load", dsn, "--table", "t", "v.parquet").output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["load", "--table", "t", "rows.jsonl"], "either its DSN .* or --embedded"),
        (["load", "DSN", "--table", "t", "missing.jsonl"], "missing.jsonl"),
        (["load", "DSN", "--table", "t", "wrong.jsonl"], "none of the 2 rows .* row 1"),
        (["load", "DSN", "--table", "t", "rows.jsonl", "--rejects", "rows.jsonl"], "replace"),
        (["load", "DSN", "--table", "t", "rows.jsonl", "--truncate", "MAYBE"], "truncate must be"),
        (["load", "DSN", "--table", "t", "rows.jsonl", "--also", "bit"], "also must be"),
        (["search", "DSN", "--table", "t", "what?"], "no table t"),
        (["search", "nonsense", "--table", "t", "what?"], "not a connection string"),
    ],
)
def test_what_cannot_work_is_a_sentence(dsn: str, words: list[str], sentence: str) -> None:
    written("rows.jsonl", rows(3))
    written("wrong.jsonl", ['{"body": 1}', '{"body": 2}'])
    done = typed(*(dsn if word == "DSN" else word for word in words))
    assert isinstance(done.exception, (NimbedError, OSError))
    with pytest.raises(type(done.exception), match=sentence):
        raise done.exception


def test_the_embedded_database_needs_no_dsn(server_dsn: str, open_folder: Path) -> None:
    file = written("rows.jsonl", rows(50))
    data = str(open_folder / "data")
    done = typed("load", "--embedded", data, "--table", "t", file, "--id-field", "id")
    assert done.exit_code == 0, done.output
    found = typed("search", "--embedded", data, "--table", "t", "what?", "-k", "2", "--json")
    assert len(found.output.splitlines()) == 2
    assert not (open_folder / "data" / "postmaster.pid").exists()  # stopped with its last user


def test_ctrl_c_says_that_the_same_command_goes_on(dsn: str, monkeypatch: Any) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nimbed_pgvector.VectorTable.load", stop)
    done = typed("load", dsn, "--table", "t", written("rows.jsonl", rows(3)), "--id-field", "id")
    assert done.exit_code == 130
    assert "stopped; what t has is kept, and the same command goes on from there" in done.output


def test_a_search_makes_no_database(server_dsn: str, open_folder: Path) -> None:
    done = typed("search", "--embedded", str(open_folder / "typo"), "--table", "t", "what?")
    assert isinstance(done.exception, ConfigurationError)
    assert "there is no database in" in str(done.exception)
    assert not list(open_folder.iterdir())


@pytest.mark.parametrize("embedded_before", [False, True])
def test_nan_in_a_typed_file_is_null(dsn: str, embedded_before: bool) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    from nimbed.files import embed_file

    scores, many = [0.5, float("nan"), float("inf")], [[1.0], [float("nan")], None]
    rows = pa.table({"text": ["one", "two", "three"], "score": scores, "many": many})
    pq.write_table(rows, "x.parquet")
    if embedded_before:
        embed_file(FakeEmbedder(), "x.parquet", "v.parquet", input_type="passage")
        Path("v.parquet").rename("x.parquet")
    done = typed("load", dsn, "--table", "t", "x.parquet")
    assert done.exit_code == 0, done.output
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT metadata FROM t ORDER BY id").fetchall()
    assert [facts for (facts,) in found] == [
        {"score": 0.5, "many": [1.0]},
        {"score": None, "many": [None]},
        {"score": None, "many": None},
    ]


def test_a_second_file_of_the_same_name_is_told(dsn: str) -> None:
    for folder in ("x1", "x2"):
        Path(folder).mkdir()
        Path(folder, "part.txt").write_text(f"a text of {folder}\nand another of {folder}\n")
    first = typed("load", dsn, "--table", "t", "x1/part.txt", "--no-index")
    assert "took the place" not in first.output
    second = typed("load", dsn, "--table", "t", "x2/part.txt", "--no-index")
    assert "0 new, 2 changed" in second.output
    assert "another file of this name" in second.output
    file = written("rows.jsonl", rows(20))
    assert "--id-field id makes it their key" in typed("load", dsn, "--table", "u", file).output
    named = typed("load", dsn, "--table", "v", file, "--id-field", "id")
    assert "their key" not in named.output
    mended = written("rows.jsonl", [line.replace("number", "no.") for line in rows(20)])
    again = typed("load", dsn, "--table", "v", mended, "--id-field", "id")
    assert "20 changed" in again.output
    assert "another file" not in again.output


def test_a_table_is_made_with_its_first_good_row(dsn: str) -> None:
    file = written("rows.jsonl", rows(2000))
    wrong = typed("load", dsn, "--table", "t", file, "--id-field", "key")
    assert isinstance(wrong.exception, InputError)
    assert "none of the 2,000 rows" in str(wrong.exception)
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("SELECT to_regclass('t')").fetchall() == [(None,)]
        assert typed("load", dsn, "--table", "t", written("none.txt", [])).exit_code == 0
        late = written("late.jsonl", [*["nonsense"] * 1500, *rows(10)])
        done = typed("load", dsn, "--table", "t", late, "--embedding-type", "ubinary")
        assert "10 new" in done.output
        assert "1,500 left out" in done.output
        assert len(Path("t.rejects.jsonl").read_text().splitlines()) == 1500


@pytest.mark.parametrize("start", ['{"text": "one"}', '\ufeff {  "text": "one"}', "PAR1"])
def test_records_on_standard_input_need_a_format(
    dsn: str, start: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def piped(*words: str) -> tuple[object, str]:
        reading, writing = os.pipe()
        os.write(writing, f"{start}\n".encode())
        os.close(writing)
        with open(reading) as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            with pytest.raises(SystemExit) as left:
                main(["load", dsn, "--table", "t", "-", *words])
        return left.value.code, capsys.readouterr().err

    kind = "parquet" if start == "PAR1" else "jsonl"
    code, said = piped()
    assert code == 2
    assert f"looks like {kind}" in said
    assert f"--input-format {kind}" in said
    assert piped("--input-format", "txt")[0] == 0
    if kind == "jsonl":
        assert "1 changed" in piped("--input-format", "jsonl")[1]


def test_documents_are_loaded_as_chunks_and_found_by_document(dsn: str) -> None:
    long = [json.dumps({"id": n, "text": f"Document {n} begins. " * 80}) for n in range(5)]
    file = written("docs.jsonl", long)
    words = ["load", dsn, "--table", "t", file, "--id-field", "id", "--chunk", "60"]
    done = typed(*words, "--overlap", "10")
    assert done.exit_code == 0, done.output
    assert " 0 left out" in done.output
    found = typed("search", dsn, "--table", "t", "what?", "--group", "-k", "4", "--json")
    hits = [json.loads(line) for line in found.output.splitlines()]
    assert len({hit["metadata"]["chunk_of"] for hit in hits}) == len(hits) == 4
    short = written("docs.jsonl", [json.dumps({"id": 0, "text": "Short now."})])
    again = typed(
        "load", dsn, "--table", "t", short, "--id-field", "id", "--chunk", "60", "--prune"
    )
    assert again.exit_code == 0, again.output
    assert "0 new, 1 changed, 0 unchanged, 0 left out" in again.output
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT id, text FROM t").fetchall() == [("0#0", "Short now.")]


def test_a_search_by_words_in_pages_and_as_sql(dsn: str) -> None:
    file = written("rows.jsonl", rows(60))
    words = ["load", dsn, "--table", "t", file, "--id-field", "id", "--words", "simple"]
    assert typed(*words).exit_code == 0
    asked = ["search", dsn, "--table", "t", "passage 17"]
    best = typed(*asked[:-1], "17", "--hybrid", "simple", "-k", "2", "--json")
    assert any(json.loads(line)["id"] == "17" for line in best.output.splitlines())
    seen, after = [], "start"
    for _ in range(3):
        page = typed(*asked, "-k", "20", "--json", "--after", after)
        lines = page.output.splitlines()
        seen += [json.loads(line)["id"] for line in lines if line.startswith("{")]
        ((after,),) = [
            line.split("'")[1::2] for line in lines if line.startswith("the next page: --after")
        ]
    assert sorted(seen, key=int) == [str(n) for n in range(60)]
    printed = typed(*asked, "-k", "2", "--filter", "metadata->>'lang' = 'en'", "--sql").output
    with psycopg.connect(dsn, autocommit=True) as connection:
        *settings, statement, commit = printed.strip().split(";\n")
        assert [settings[0], commit] == ["BEGIN", "COMMIT;"]
        assert len(connection.execute(statement).fetchall()) == 2
    for options, sentence in (
        (["--after", "soon"], "'start' or DISTANCE:ID"),
        (["--sql", "--group"], "leave out --group"),
        (["--hybrid", "simple", "--after", "start"], "by dense ones alone"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            raise typed(*asked, *options).exception or AssertionError("nothing was refused")
    long = typed("search", dsn, "--table", "t", "word " * 600)
    assert "the question has 601 tokens, the model reads 512; shorten it" in str(long.exception)


def test_many_new_rows_for_an_index_are_told(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimbed_cli.load._MANY_NEW", 1500)
    words = ["load", dsn, "--table", "t", "--id-field", "id"]
    first = typed(*words, written("some.jsonl", rows(2000)))
    assert "DROP INDEX" not in first.output  # the index came after the rows
    again = typed(*words, written("some.jsonl", rows(2000)))
    more = typed(*words, written("more.jsonl", rows(5000)))
    assert "DROP INDEX" not in again.output
    assert more.output.count("DROP INDEX t_embedding_idx;") == 1
