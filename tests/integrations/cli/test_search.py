"""What ``nimbed search`` prints; tests/integrations/pgvector/test_cli.py searches a database."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from tests.engine.local.families import FAMILIES

import nimbed_pgvector
from nimbed_cli import options
from nimbed_pgvector import Hit

HITS = [
    Hit(
        id="lzma.compress_with_a_filter_chain_of_ones_own",
        distance=0.1234567,
        text="Compresses\ta file.\nThe [bold]rest[/bold] of it goes on and on. " * 5,
        metadata={"lang": "en"},
    ),
    Hit(id="gzip.open", distance=1.5, text="Opens a file.", metadata={}),
]


@pytest.fixture(autouse=True)
def table_of_hits(fake_model, monkeypatch):
    class Table:
        def __init__(self, connection, name, embedder=None):
            pass

        def find_spec(self):
            return type("Spec", (), {"model": "some/model", "revision": "abc"})

        def search(self, question, k, *, filter, candidates, group, after, hybrid, **fused):
            assert fused == {"kinds": None, "fusion": "rrf", "weights": None}
            return HITS[:k]

    @contextmanager
    def connect(dsn, embedded, *, read_only):
        yield None

    monkeypatch.setattr("nimbed_cli.options.connect_database", connect)
    monkeypatch.setattr(nimbed_pgvector, "VectorTable", Table)
    return fake_model


SEARCH = ("search", "postgresql:///", "--table", "t", "what?")


def test_80_columns_show_distance_and_id_whole_and_as_much_of_the_text_as_fits(
    nimbed_command, narrow_terminal
):
    lines = nimbed_command(*SEARCH).out.splitlines()
    assert max(map(len, lines)) <= 80
    first, second = lines[2:4]
    assert first.split()[:3] == ["0.1235", HITS[0].id, "Compresses"]
    assert first.rstrip().endswith("…")
    assert second.split() == ["1.5000", "gzip.open", "Opens", "a", "file."]
    assert len(lines) == 4


def test_an_id_that_is_longer_than_a_line_goes_on_in_the_next(
    nimbed_command, narrow_terminal, monkeypatch
):
    name = "a" * 60 + "b" * 60
    monkeypatch.setitem(globals(), "HITS", [Hit(id=name, distance=0.5, text="text", metadata={})])
    lines = nimbed_command(*SEARCH).out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = "".join(lines)
    assert (shown.count("a"), shown.count("b")) == (60 + 1, 60)  # distance has one, too
    assert "0.5000" in shown


def test_a_pipe_has_tab_separated_lines_with_nothing_cut(nimbed_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    lines = nimbed_command(*SEARCH).out.split("\n")
    assert lines == [
        "distance\tid\ttext",
        f"0.1235\t{HITS[0].id}\t" + " ".join(HITS[0].text.replace("\t", " ").splitlines()),
        "1.5000\tgzip.open\tOpens a file.",
        "",
    ]


def test_json_has_a_line_for_each_passage(nimbed_command):
    outcome = nimbed_command(*SEARCH, "--json", "-k", "1")
    lines = outcome.out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "id": HITS[0].id,
            "distance": HITS[0].distance,
            "text": HITS[0].text,
            "metadata": {"lang": "en"},
        }
    ]


def test_the_model_is_the_tables_unless_another_is_named(nimbed_command, table_of_hits):
    nimbed_command(*SEARCH)
    nimbed_command(*SEARCH, "--model", "other", "--device", "cpu")
    placed = {"device": "auto", "dtype": "auto", "backend": "auto"}
    anywhere = {"prompt_name": None, "base_url": None, **placed}
    assert table_of_hits == [
        ("some/model", {"revision": "abc", **anywhere}),
        ("other", {**anywhere, "card": None, "device": "cpu"}),
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_shown_and_not_obeyed(
    nimbed_command, narrow_terminal, monkeypatch, terminal
):
    if not terminal:
        monkeypatch.delenv("FORCE_COLOR")
    odd = "red \x1b[31m bell \a up \x9b1A del \x7f turned \u202e"
    monkeypatch.setattr(
        "tests.integrations.cli.test_search.HITS",
        [Hit(id="i\x1b]0;t\a", distance=0.5, text=odd, metadata={"m": "\x9b"})],
    )
    out = nimbed_command(*SEARCH).out
    assert not set("\x1b\a\x9b\x7f\u202e") & set(out)
    assert "red \u241b[31m bell \u2407 up \\x9b1A" in out
    line = nimbed_command(*SEARCH, "--json").out
    assert not set("\x1b\a\x9b\x7f") & set(line)
    assert json.loads(line)["text"] == odd


@pytest.mark.parametrize(
    ("family", "said", "gpu", "runs_on"),
    [
        ("bert", {}, False, "onnxruntime"),
        ("bert", {"device": "cpu"}, True, "onnxruntime"),
        ("bert", {}, True, "torch"),
        ("bert", {"dtype": "bfloat16"}, False, "torch"),
        ("bert", {"backend": "torch"}, False, "torch"),
        ("llama", {}, False, "torch"),
        ("bge-m3", {}, False, "torch"),  # which of its kinds is asked for, the table says
    ],
)
def test_one_question_is_embedded_by_what_starts_sooner(
    family, said, gpu, runs_on, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    monkeypatch.undo()  # of the model that is none
    for module in ("backends", "device"):
        monkeypatch.setattr(f"nimbed.local.{module}.may_have_gpu", lambda: gpu)
    monkeypatch.setattr("nimbed.local.backends._float32_on_cpu", lambda *_: False)
    asked = {"base_url": None, "device": "auto", "dtype": "auto", "backend": "auto", **said}
    folder = str(FAMILIES[family](tmp_path / "model"))
    with options.load_embedder(folder, **asked, one_question=True) as embedder:
        assert embedder.backend == runs_on
    with options.load_embedder(folder, **asked) as embedder:
        assert embedder.backend == "torch"
