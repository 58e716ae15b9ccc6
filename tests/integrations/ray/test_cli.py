import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.engine.local.checkpoints import tiny_bert

import nimbed
from nimbed.files import read_embedded
from nimbed_ray import parts_of

ray = pytest.importorskip("ray")

TEXTS = [f"text number {number}" for number in range(12)]


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(["b", "a"]):
        part = slice(number * 6, number * 6 + 6)
        pq.write_table(pa.table({"body": TEXTS[part]}), folder / f"{name}.parquet")
    return folder


def nimbed_embed(*arguments, cwd):
    command = [sys.executable, "-m", "nimbed_cli.main", "embed", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


def test_a_folder_of_parquet_is_embedded_on_a_cluster(cluster, files, tmp_path):
    tiny_bert(tmp_path / "model")
    address = ray.get_runtime_context().gcs_address
    typed = (
        *("--ray", address, "in/*.parquet", "-o", "out", "--input-type", "passage"),
        *("--text-field", "body", "--model", "model", "--embedding-type", "int8"),
    )
    first = nimbed_embed(*typed, cwd=tmp_path)
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert "vectors in out: 12 in 1 parts; made now: 12 in" in first.stderr
    assert "32 dimensions, int8, 32 bytes a vector; compare by cosine" in first.stderr
    (part,) = parts_of(str(tmp_path / "out"))
    with nimbed.load(str(tmp_path / "model")) as embedder:
        wanted = embedder.embed(
            [*TEXTS[6:], *TEXTS[:6]], input_type="passage", embedding_type="int8"
        )
    np.testing.assert_array_equal(read_embedded(part).vectors, wanted.vectors)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (("--ray", "in/a.parquet", "in/b.parquet", "x", "-o", "out"), "put the pattern in quotes"),
        (("--ray", "in/*.csv", "-o", "out"), "'in/*.csv' matches no parquet file"),
        (("--ray", "in/*", "-o", "out", "--input-format", "csv"), "--ray reads parquet files"),
        (("in/a.parquet", "in/b.parquet", "-o", "out.npy"), "give one INPUT; got 2"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(typed, sentence, files, tmp_path):
    outcome = nimbed_embed(*typed, "--input-type", "passage", cwd=tmp_path)
    assert outcome.returncode == 2
    assert sentence in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not os.path.exists(tmp_path / "out")
