import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.integrations.ray.watched import ROWS, TEXTS, deaths, embedded, watched

import nimbed
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed.files import read_embedded
from nimbed_ray import EmbedTexts, embed_into_parts, label_of, parts_of, read_parts

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "out")


def corpus(texts, *, cut=1000):
    table = pa.table({"id": list(range(len(texts))), "text": texts})
    cut = min(cut, len(texts))
    return ray.data.from_arrow([table.slice(0, cut), table.slice(cut)])


def vectors_of(output):
    return np.concatenate([read_embedded(part).vectors for part in parts_of(output)])


def test_killed_actors_leave_whole_parts_and_the_vectors_of_one_process(notes, output):
    deadly = [TEXTS[ROWS // 2]]
    embed = EmbedTexts(
        watched(notes, deadly=deadly),
        input_type="passage",
        embedding_type="ubinary",
        id_field="id",
    )
    report = embed_into_parts(corpus(TEXTS), embed, output, rows_per_part=1000)
    assert (report.rows, report.parts) == (ROWS, ROWS // 1000)
    # A part that the actor had finished, and died before it could say so, is found, not made again.
    assert report.embedded in (ROWS, ROWS - 1000)
    assert deaths(notes) == 1
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="ubinary")
    np.testing.assert_array_equal(vectors_of(output), wanted.vectors)
    if report.embedded == ROWS:
        assert report.tokens == wanted.token_counts.sum()
    back = read_parts(output).materialize()
    assert [row["id"] for row in back.iter_rows()] == list(range(ROWS))
    assert label_of(back) == embed.label


def test_after_kill_9_only_what_is_missing_is_embedded(notes, output):
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.integrations.ray.driver", address, output, str(notes)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 180
        while len(list(Path(output).glob("part-*.parquet"))) < 5:
            assert time.monotonic() < end
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    with pytest.raises(ConfigurationError, match="is not complete"):
        parts_of(output)
    _wait_for_silence(notes)
    there = sorted(Path(output).glob("part-*.parquet"))
    kept = sum(pq.read_metadata(part).num_rows for part in there)
    assert 0 < kept < ROWS
    embedded(notes)
    # Other blocks than the driver had, and another number of actors.
    again = embed_into_parts(
        corpus(TEXTS, cut=777),
        EmbedTexts(watched(notes), input_type="passage"),
        output,
        actors=1,
    )
    assert (again.rows, again.embedded) == (ROWS, ROWS - kept)
    assert embedded(notes) == ROWS - kept
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="passage").vectors
    np.testing.assert_array_equal(vectors_of(output), wanted)
    assert not list(Path(output).glob(".*"))


def _wait_for_silence(notes):
    """Wait until the processes of a killed driver are gone."""
    pids = {int(file.name.split("-")[1]) for file in notes.glob("embedded-*")}
    end = time.monotonic() + 120
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_folder_is_for_one_role_and_one_space(notes, output):
    dataset = corpus([*TEXTS[:15], "", *TEXTS[15:24]])
    embedder = watched(notes)
    lenient = EmbedTexts(embedder, input_type="passage", on_error="skip")
    told = []
    report = embed_into_parts(
        dataset, lenient, output, rows_per_part=10, progress=lambda *move: told.append(move)
    )
    assert (report.rows, report.left_out, embedded(notes)) == (24, 1, 24)
    assert told[-1] == (25, 0)
    assert pq.read_table(f"{output}/_left_out")["id"].to_pylist() == [15]
    with pytest.raises(ConfigurationError, match="input_type 'passage'; got 'query'"):
        embed_into_parts(dataset, EmbedTexts(embedder, input_type="query"), output)
    smaller = EmbedTexts(embedder, input_type="passage", dimensions=32)
    with pytest.raises(SpaceMismatchError, match="dimensions 64 and 32"):
        embed_into_parts(dataset, smaller, output)
    assert embedded(notes) == 0
    assert len(parts_of(output)) == 3


def test_a_job_that_was_refused_can_be_begun_again_otherwise(output):
    dataset = corpus([*TEXTS[:15], ""])
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", id_field="id")
    with pytest.raises(InputError) as caught:
        embed_into_parts(dataset, embed, output, rows_per_part=10)
    assert str(caught.value) == "the row with id 15: the text is blank"
    assert caught.value.rows == (5,)
    with pytest.raises(ConfigurationError, match="is not complete"):
        parts_of(output)
    nameless = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", text_field="body")
    with pytest.raises(ConfigurationError, match="no column 'body'; it has id, text"):
        embed_into_parts(dataset, nameless, f"{output}-other")
    assert not Path(f"{output}-other").exists()
    patient = EmbedTexts(
        nimbed.FakeEmbedder(), input_type="passage", id_field="id", on_error="skip"
    )
    assert embed_into_parts(dataset, patient, output).left_out == 1
    assert not dataset.context.execution_options.preserve_order


def _broken_late(table):
    if 150 in table["id"].to_pylist():
        raise ArithmeticError("a function of the caller's")
    return table


def test_a_run_that_failed_gives_its_actors_back_while_its_error_lives(output):
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", id_field="id")
    broken = corpus(TEXTS[:200], cut=100).map_batches(
        _broken_late, batch_format="pyarrow", batch_size=10
    )
    with pytest.raises(ArithmeticError, match="a function of the caller's") as caught:
        embed_into_parts(broken, embed, output, rows_per_part=10)
    assert embed_into_parts(corpus(TEXTS[:200]), embed, f"{output}-other").rows == 200
    assert caught.tb is not None
