import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import nimbed
from nimbed.files import read_embedded


def test_a_file_of_texts_becomes_a_file_of_vectors(nimbed_command, fake_model, tmp_path):
    (tmp_path / "in.csv").write_text('id,body,year\na,"one, two",1999\nb,three,2000\n')
    outcome = nimbed_command(
        *("embed", tmp_path / "in.csv", "-o", tmp_path / "out.parquet"),
        *("--input-type", "passage", "--text-field", "body", "--id-field", "id"),
        *("--embedding-type", "int8", "--int8-scale", "nim", "--dimensions", "32"),
    )
    assert (outcome.code, outcome.out) == (0, "")
    assert f"vectors written to {tmp_path / 'out.parquet'}: 2 in" in outcome.err
    assert "32 dimensions, int8, 32 bytes a vector; compare by cosine" in outcome.err
    batch = read_embedded(tmp_path / "out.parquet")
    wanted = nimbed.FakeEmbedder().embed(
        ["one, two", "three"],
        input_type="passage",
        embedding_type="int8",
        int8_scale="nim",
        dimensions=32,
    )
    assert batch.spec == wanted.spec
    np.testing.assert_array_equal(batch.vectors, wanted.vectors)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["year"].to_pylist() == ["1999", "2000"]


def test_where_the_model_runs_is_passed_on(nimbed_command, fake_model, tmp_path):
    (tmp_path / "in.txt").write_text("one\n")
    arguments = ("embed", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "--input-type", "query")
    nimbed_command(*arguments)
    nimbed_command(
        *arguments,
        *("--model", "some/model", "--base-url", "http://localhost:1", "--device", "cpu"),
        *("--dtype", "float32", "--backend", "torch", "--card", "a/card", "--prompt-name", "task"),
    )
    chosen = {"base_url": "http://localhost:1", "device": "cpu", "dtype": "float32"}
    assert fake_model == [
        (
            None,
            {
                **{"card": None, "prompt_name": None, "base_url": None},
                **dict.fromkeys(("device", "dtype", "backend"), "auto"),
            },
        ),
        (
            "some/model",
            {**chosen, "card": "a/card", "prompt_name": "task", "backend": "torch"},
        ),
    ]


@pytest.mark.parametrize(
    ("stdin", "options"),
    [("one\ntwo\n", ()), ('{"text": "one"}\n{"text": "two"}\n', ("--input-format", "jsonl"))],
)
def test_standard_input_is_read_as_lines_or_records(nimbed_process, tmp_path, stdin, options):
    output = tmp_path / "out.npy"
    process = nimbed_process("embed", "-", "-o", output, "--input-type", "query", *options)
    _, err = process.communicate(stdin, timeout=30)
    assert process.returncode == 0, err
    wanted = nimbed.FakeEmbedder().embed(["one", "two"], input_type="query")
    np.testing.assert_array_equal(np.load(output), wanted.vectors)


def test_a_bad_row_stops_with_its_line_and_code_2(nimbed_command, fake_model, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "one"}\n\n{"text": 2}\n')
    outcome = nimbed_command("embed", source, "-o", tmp_path / "out.npy", "--input-type", "query")
    assert outcome.code == 2
    assert outcome.err == f"Error: line 3 of {source}: the text is int, expected a string\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_skipped_rows_are_counted_and_listed(nimbed_command, fake_model, tmp_path):
    (tmp_path / "in.txt").write_text("one\n\ntwo\n" + "word " * 600)
    outcome = nimbed_command(
        *("embed", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "--input-type", "query"),
        *("--on-error", "skip"),
    )
    listed = tmp_path / "out.npy.skipped.jsonl"
    assert outcome.code == 0
    assert f"rows that were skipped: 2, listed in {listed}" in outcome.err
    assert [json.loads(line)["number"] for line in listed.read_text().splitlines()] == [2, 4]


def test_a_text_that_is_too_long_is_mended_in_the_commands_own_words(
    nimbed_command, fake_model, tmp_path
):
    (tmp_path / "in.txt").write_text("one\n" + "word " * 600)
    command = ("embed", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "--input-type", "query")
    outcome = nimbed_command(*command)
    assert outcome.code == 2
    assert "--chunk TOKENS, or pass --truncate END" in outcome.err
    assert "vectors written" in nimbed_command(*command, "--chunk", "100", "--overlap", "9").err
    plain = np.load(tmp_path / "out.npy")
    late = (*command, "--chunk", "100", "--overlap", "9", "--chunk-mode", "late")
    assert "vectors written" in nimbed_command(*late).err
    found = np.load(tmp_path / "out.npy")
    assert found.shape == plain.shape
    assert (found[0] == plain[0]).all()  # the short text is one chunk
    assert (found[1:] != plain[1:]).any(1).all()
    assert "give --chunk TOKENS too" in nimbed_command(*command, "--chunk-mode", "late").err
    wrong = nimbed_command(*command, "--chunk", "100", "--chunk-mode", "early")
    assert "one of 'plain', 'late'; got 'early'" in wrong.err


def test_cut_texts_are_counted(nimbed_command, fake_model, tmp_path):
    (tmp_path / "in.txt").write_text("one\n" + "word " * 600)
    outcome = nimbed_command(
        *("embed", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "--input-type", "query"),
        *("--truncate", "END"),
    )
    assert "texts that were cut to what the model reads: 1" in outcome.err


def test_a_bar_is_shown_on_request(nimbed_command, fake_model, tmp_path):
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    arguments = ("embed", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "--input-type", "query")
    assert "2/2" in nimbed_command(*arguments, "--progress").err
    assert "2/2" not in nimbed_command(*arguments, "--no-progress").err
    assert "2/2" not in nimbed_command(*arguments).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.txt", "--input-type", "query"), "there is no file"),
        (("in.txt", "--input-type", "document"), "input_type must be one of 'query', 'passage'"),
        (("in.txt", "--input-type", "query", "--embedding-type", "int4"), "embedding_type must"),
        (("in.txt", "--input-type", "query", "--dimensions", "7"), "it offers 16, 32, 64"),
        (("in.txt", "--input-type", "query", "--truncate", "end"), "'NONE', 'START', 'END'"),
        (("in.txt", "--input-type", "query", "--on-error", "stop"), "'raise', 'skip'"),
    ],
)
def test_misuse_of_an_option_says_what_is_possible(
    nimbed_command, fake_model, tmp_path, arguments, message
):
    (tmp_path / "in.txt").write_text("one\n")
    source, *options = arguments
    outcome = nimbed_command("embed", tmp_path / source, "-o", tmp_path / "out.npy", *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_an_unknown_model_is_misuse(nimbed_command, tmp_path):
    (tmp_path / "in.txt").write_text("one\n")
    outcome = nimbed_command(
        *("embed", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "--input-type", "query"),
        *("--model", "./no/such/folder"),
    )
    assert outcome.code == 2
    assert "there is no folder './no/such/folder'" in outcome.err
