import json
import re
import shlex
import sys
from xml.etree import ElementTree

import pytest
from typer.main import get_command

import nimbed
from nimbed.errors import install_line
from nimbed_cli.main import app

REST = "and so on for eight more words of text"
PASSAGES = [f"Passage {n} says this. {REST} {n}" for n in range(120)]


@pytest.fixture
def passages(tmp_path):
    path = tmp_path / "passages.txt"
    path.write_text("\n".join(PASSAGES))
    return path


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_the_terminal_shows_every_way_the_advice_and_what_to_know(
    nimbed_command, fake_model, passages
):
    outcome = nimbed_command("tradeoff", passages)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines[: lines.index("so stored:")])) <= 80
    assert (
        sum(line.split()[:1] in (["float"], ["int8"], ["uint8"], ["ubinary"]) for line in lines)
        == 12
    )
    assert sum("rescored 40" in line for line in lines) == 11
    assert sum(line.rstrip().endswith(" <") for line in lines) == 1
    words = " ".join(outcome.out.split())
    assert "Store " in words
    assert "first sentences of 120 passages" in words
    assert "add -o page.html for the plots" in words
    unsaid = {"card": None, "prompt_name": None, "base_url": None}
    placement = dict.fromkeys(("device", "dtype", "backend"), "auto")
    assert fake_model == [(None, unsaid | placement)]


@pytest.mark.parametrize("columns", [80, 70, 60, 50, 40])
def test_a_narrow_terminal_shows_recall_and_the_recommended_way(
    nimbed_command, fake_model, passages, monkeypatch, columns
):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = nimbed_command("tradeoff", passages).out.splitlines()
    assert max(map(len, lines[: lines.index("so stored:")])) <= columns
    (best,) = (line for line in lines if line.rstrip().endswith(" <"))
    assert re.search(r"\b[01]\.\d{3}\b", best)
    assert "recall@10" in " ".join(lines)
    assert ("IQR" in " ".join(lines)) == (columns == 80)


@pytest.mark.parametrize(
    ("keep", "sizes", "rescored"),
    [("0.3", "64", False), ("0.5", "64", True), ("0.5", "32,16", True)],
)
def test_the_last_lines_store_the_same_passages_in_the_recommended_way(
    nimbed_command, fake_model, tmp_path, keep, sizes, rescored
):
    source = tmp_path / "my passages.jsonl"
    rows = [{"name": n, "title": f"The title of {n}", "body": t} for n, t in enumerate(PASSAGES)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--text-field", "title", "--text-field", "body", "--id-field", "name"]
    given += ["--truncate", "END"]
    out = nimbed_command("tradeoff", source, *given, "--keep", keep, "--dimensions", sizes).out
    said = " ".join(out.split())
    assert ("and rescore the best" in said) == rescored
    kind, size = re.search(r"Store (\w+) at (\d+) dimensions", said).groups()
    _, _, typed = out.partition("so stored:\n")
    commands = [
        shlex.split(line.partition(" -m nimbed_cli.main ")[2]) for line in typed.splitlines()
    ]
    for name, *words in commands:
        get_command(app).commands[name].make_context(name, words)  # every option is the command's
    stored = ["--embedding-type", kind, "--dimensions", size]
    table = ["load", "--embedded", "./database", "--table", "passages", str(source)]
    files = [
        ["embed", str(source), "-o", f"{name}.jsonl", "--input-type", "passage"]
        for name in ("compact", "floats")
    ]
    if rescored and size != "64":
        assert commands == [[*files[0], *given, *stored], [*files[1], *given]]
    else:
        assert commands == [[*table, *given, *stored, *["--also", "halfvec"] * rescored]]


def test_plots_need_matplotlib_and_the_table_does_not(
    nimbed_command, monkeypatch, passages, tmp_path
):
    fake = nimbed.FakeEmbedder()
    monkeypatch.setattr(nimbed, "load", lambda *_, **__: fake)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = nimbed_command("tradeoff", passages, "-o", tmp_path / "page.html")
    assert (outcome.code, fake.calls) == (1, [])
    assert install_line("tradeoff") in outcome.err
    assert nimbed_command("tradeoff", passages).code == 0


def test_the_table_and_the_json_say_the_same(nimbed_command, fake_model, passages):
    facts = json.loads(nimbed_command("tradeoff", passages, "--json", "--dimensions", "32").out)
    assert facts["passages"] == 120
    assert [way["dimensions"] for way in facts["ways"]] == [64] + [32] * 12
    shown = nimbed_command("tradeoff", passages, "--dimensions", "32").out
    numbers = re.findall(r"([01]\.\d{3}) +([01]\.\d{3}) +\d+\.\d{3}\b", shown)
    assert numbers == [(f"{w['recall']:.3f}", f"{w['ndcg']:.3f}") for w in facts["ways"]]


def test_the_page_is_written_whole(nimbed_command, fake_model, passages, tmp_path):
    target = tmp_path / "out" / "page.html"
    target.parent.mkdir()
    outcome = nimbed_command("tradeoff", passages, "-o", target)
    assert f"plots written to {target}" in "".join(outcome.out.splitlines())
    root = ElementTree.fromstring(target.read_text(encoding="utf-8"))
    assert len(root.findall(".//svg[@class='plot']")) == 2
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_queries_and_judgements_are_read_from_files(nimbed_command, fake_model, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": f"p{n}", "body": t}) + "\n" for n, t in enumerate(PASSAGES))
    )
    queries = tmp_path / "queries.csv"
    queries.write_text("_id,body\nq0,what is this\nq1,what is that\n")
    qrels = tmp_path / "qrels.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\tp5\t1\nq1\tp6\t2\nq1\tp7\t1\n")
    outcome = nimbed_command(
        *("tradeoff", corpus, "--queries", queries, "--judgements", qrels, "--json"),
        *("--text-field", "body", "--id-field", "_id", "--keep", "0.5"),
    )
    facts = json.loads(outcome.out)
    assert (facts["reference"], facts["queries"]) == ("judgements", 2)
    assert (facts["queries_from"], facts["judgements_from"]) == (str(queries), str(qrels))
    assert facts["recommendation"]["keep"] == 0.5


def test_where_the_model_runs_is_passed_on(nimbed_command, fake_model, passages):
    nimbed_command(
        *("tradeoff", passages, "--model", "some/model", "--base-url", "http://localhost:1"),
        *("--device", "cpu", "--dtype", "float32", "--dimensions", "16"),
    )
    placement = {"base_url": "http://localhost:1", "device": "cpu", "dtype": "float32"}
    unsaid = {"card": None, "prompt_name": None, "backend": "auto"}
    assert fake_model == [("some/model", placement | unsaid)]


def test_standard_input_is_read(nimbed_process):
    process = nimbed_process("tradeoff", "-", "--json")
    out, err = process.communicate("\n".join(PASSAGES), timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["source"] == "standard input"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--dimensions", "16,x"),
            "--dimensions takes sizes separated by commas, such as 128,256; got '16,x'",
        ),
        (("--dimensions", "17"), "no 17-dimension form; it offers 16, 32, 64"),
        (("-o", "page.pdf"), "call it .html, not 'page.pdf'"),
        (
            ("--queries", "q.html", "-o", "./q.html"),
            "the page would replace the input './q.html'; give it another name",
        ),
        (("-o", "no/such/page.html"), "there is no folder 'no/such' to write into"),
        (("--keep", "2"), "above 0 up to 1; got 2.0"),
        (("--judgements", "qrels.tsv"), "give the file of queries too"),
        (("--queries", "absent.txt"), "there is no file 'absent.txt'"),
        (("--truncate", "end"), "'NONE', 'START', 'END'"),
    ],
)
def test_misuse_says_what_is_possible_before_anything_is_embedded(
    nimbed_command, monkeypatch, passages, options, message
):
    fake = nimbed.FakeEmbedder()
    monkeypatch.setattr(nimbed, "load", lambda *_, **__: fake)
    outcome = nimbed_command("tradeoff", passages, *options)
    assert (outcome.code, outcome.out, fake.calls) == (2, "", [])
    assert message in outcome.err


def test_the_page_never_replaces_the_passages(nimbed_command, fake_model, tmp_path):
    source = tmp_path / "page.html"
    source.write_text("<p>" + "</p><p>".join(PASSAGES) + "</p>")
    before = source.read_bytes()
    for name in (source, tmp_path / "." / "page.html"):
        outcome = nimbed_command("tradeoff", source, "-o", name)
        assert outcome.code == 2
        assert "the page would replace the input" in outcome.err
    assert source.read_bytes() == before


def test_kinds_are_compared_in_a_table_of_their_own(nimbed_command, fake_model, tmp_path):
    passages, queries, qrels = (tmp_path / name for name in ("p.txt", "q.txt", "qrels.tsv"))
    passages.write_text("\n".join(PASSAGES))
    queries.write_text("Passage 3\nPassage 7")
    qrels.write_text("1\t4\t1\n2\t8\t1\n")
    given = ["--queries", queries, "--judgements", qrels, "--kinds", "dense, sparse"]
    outcome = nimbed_command("tradeoff", passages, *given, "--weights", "1,0.5")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines[: lines.index("so stored:")])) <= 80
    rows = [line.split() for line in lines if line.split()[:1] in (["dense"], ["sparse"])]
    assert [row[:4] for row in rows if "+" in row] == [
        ["dense", "+", "sparse", "rrf"],
        ["dense", "+", "sparse", "sum"],
    ]
    assert "best by nDCG@10" in " ".join(outcome.out.split())
    told = json.loads(nimbed_command("tradeoff", passages, *given, "--json").out)
    assert [each["label"] for each in told["kinds"]] == ["dense", "sparse", *["dense + sparse"] * 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--kinds", "dense,sparse"], "only judgements say which are right"),
        (["--weights", "1,x"], "--weights takes numbers separated by commas, such as 1,0.3"),
    ],
)
def test_kinds_that_cannot_be_compared_are_refused(
    nimbed_command, fake_model, passages, given, message
):
    outcome = nimbed_command("tradeoff", passages, *given)
    assert outcome.code != 0
    assert message in " ".join(outcome.err.split())
