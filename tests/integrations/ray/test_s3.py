"""An object store behind a real socket: moto speaks S3 as Arrow and Ray hear it."""

import gzip
import secrets
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.engine.local.checkpoints import tiny_bert

import nimbed
from nimbed.errors import ConfigurationError, InputError
from nimbed.files import read_rows
from nimbed_ray import EmbedTexts, parts_of
from nimbed_ray.folder import Folder, matching
from nimbed_ray.parts import PartWriter

ray = pytest.importorskip("ray")

TEXTS = [f"text number {number}" for number in range(12)]


@pytest.fixture
def bucket(s3_environment, monkeypatch, tmp_path_factory) -> str:
    """Make a bucket of its own; the environment says where it is, and who asks."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    name = tmp_path_factory.mktemp("bucket").name
    Folder(f"s3://{name}?allow_bucket_creation=true").make()
    return f"s3://{name}"


def put(folder, name, texts):
    folder.write(name, _parquet(pa.table({"body": texts})))


def _parquet(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_a_folder_of_objects_is_a_folder(bucket):
    folder = Folder.at(f"{bucket}/deep/out")
    assert folder.names() == []
    folder.make()
    folder.write("b", b"first")
    folder.write("b", b"second")
    folder.write("below/a", b"")
    assert folder.names() == ["b"]
    assert folder.read("b") == b"second"
    assert folder.read("c") is None
    assert folder.open("c") is None
    with folder.open("b") as file:
        assert file.read_at(3, 1) == b"eco"
    folder.delete("b")
    folder.delete("b")
    assert folder.names() == []
    assert Folder.at(f"{bucket}/deep/out/below").names() == ["a"]


def test_an_object_is_whole_or_absent(bucket):
    folder = Folder.at(bucket)
    with pytest.raises(TypeError):
        folder.write("part", "text is not bytes")
    script = (
        "import os, signal, sys\n"
        "from pyarrow.fs import FileSystem\n"
        "system, path = FileSystem.from_uri(sys.argv[1])\n"
        "stream = system.open_output_stream(path)\n"
        "stream.write(bytes(11 * 2**20))\n"
        "stream.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, f"{bucket}/part"], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert folder.names() == []


@pytest.mark.parametrize("name", ["plain", "a b", "ü", "100%", "a#b", "a+b", "a&b=c", "x%20y"])
def test_any_name_is_found_and_can_be_read(bucket, name):
    folder = Folder.at(f"{bucket}/in put")
    put(folder, f"{name}.parquet", TEXTS)
    for pattern in (f"{bucket}/in put/*.parquet", f"{bucket}/in%20put/", f"{bucket}/in put"):
        (found,) = matching(pattern)
        assert pq.read_table(found)["body"].to_pylist() == TEXTS
    assert matching(found) == [found]


def test_the_place_of_the_store_may_stand_in_the_address(bucket, s3_environment, monkeypatch):
    put(Folder.at(f"{bucket}/in"), "a.parquet", TEXTS)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    place = s3_environment["AWS_ENDPOINT_URL"].removeprefix("http://")
    options = f"?scheme=http&endpoint_override={place}"
    (found,) = matching(f"{bucket}/in/*.parquet{options}")
    assert found == f"{bucket}/in/a.parquet{options}"
    assert pq.read_table(found)["body"].to_pylist() == TEXTS


def test_a_part_that_is_there_is_not_made_again(bucket):
    folder = Folder.at(bucket)
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", on_error="skip")
    make, rows = PartWriter(embed, folder).write, pa.table({"text": [*TEXTS, ""]})
    first = asdict(make(rows))
    assert (first["rows"], first["left_out"], first["made"]) == (12, 1, True)
    again = asdict(make(rows))
    assert again == {**first, "tokens": 0, "made": False}
    assert len(embed.embedder.calls) == 1
    folder.write(first["name"], b"PAR1 and no more")
    assert asdict(make(rows)) == first


def nimbed_embed(*arguments, cwd):
    command = [sys.executable, "-m", "nimbed_cli.main", "embed", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


def contents(bucket):
    """Return every object's name and content."""
    system, path = pa.fs.FileSystem.from_uri(bucket)
    found = system.get_file_info(pa.fs.FileSelector(path, recursive=True))
    return {each.path: system.open_input_stream(each.path).read() for each in found if each.is_file}


def test_the_command_embeds_from_s3_to_s3_and_makes_what_is_missing(
    bucket, s3_environment, cluster, tmp_path, open_folder, monkeypatch
):
    # The first time Ray is one of the command's own, the second time it runs already.
    address = ray.get_runtime_context().gcs_address
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tiny_bert(tmp_path / "model")
    for name, texts in (("b c", TEXTS[6:]), ("a", TEXTS[:6])):
        put(Folder.at(f"{bucket}/in"), f"{name}.parquet", texts)
    typed = (
        *(f"{bucket}/in/*.parquet", "-o", f"{bucket}/out", "--input-type", "passage"),
        *("--text-field", "body", "--model", "model"),
    )
    with monkeypatch.context() as alone:
        alone.setenv("RAY_TMPDIR", str(open_folder))
        alone.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        first = nimbed_embed("--ray", *typed, cwd=tmp_path)
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert f"vectors in {bucket}/out: 12 in 1 parts; made now: 12 in" in first.stderr
    (part,) = parts_of(f"{bucket}/out")
    made = pq.read_table(part)
    with nimbed.load(str(tmp_path / "model")) as embedder:
        wanted = embedder.embed(TEXTS, input_type="passage").vectors
    assert made["body"].to_pylist() == TEXTS
    np.testing.assert_array_equal(np.stack(made["embedding"].to_numpy()), wanted)

    again = nimbed_embed("--ray", address, *typed, cwd=tmp_path)
    assert f"vectors in {bucket}/out: 12 in 1 parts; made now: 0 in" in again.stderr
    (same,) = parts_of(f"{bucket}/out")
    assert pq.read_table(same).equals(made)

    stored = contents(bucket)
    assert {name.rpartition("/")[2] for name in stored if "/out/" in name} == {
        part.rpartition("/")[2],
        "_nimbed.json",
        "_complete.json",
    }
    assert "WARNING" not in first.stderr  # Ray's advice to programmers
    written = [*stored.values(), first.stderr.encode(), again.stderr.encode()]
    logs = [path for path in Path(open_folder).rglob("*") if path.is_file()]
    assert len(logs) > 10
    secret = s3_environment["AWS_SECRET_ACCESS_KEY"].encode()
    for content in [*written, *(log.read_bytes() for log in logs)]:
        assert secret not in content


def test_a_store_that_does_not_answer_or_has_no_such_bucket_is_said_in_a_sentence(
    bucket, s3_environment, tmp_path, monkeypatch
):
    typed = ("-o", f"{bucket}/out", "--input-type", "passage", "--model", "nimbed/fake")
    nothing = nimbed_embed("--ray", "s3://nobody-made-this/*.parquet", *typed, cwd=tmp_path)
    assert nothing.returncode == 2
    assert "'s3://nobody-made-this/*.parquet' matches no parquet file" in nothing.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    silent = nimbed_embed("--ray", f"{bucket}/in/*.parquet", *typed, cwd=tmp_path)
    assert silent.returncode not in (0, 2)
    assert "Could not connect to server" in silent.stderr
    for outcome in (nothing, silent):
        assert "Traceback" not in outcome.stderr
        assert s3_environment["AWS_SECRET_ACCESS_KEY"] not in outcome.stderr


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKID:hunter2@bucket/path",
        "s3://AKID:hun/ter2@bucket/path",
        "s3://AKID:hun/ter2@bucket/*.parquet",
        "s3://AKID:hunter2@bucket/*/a.parquet",
        "s3://bucket/path?session_token=hunter2",
        "abfs://bucket/path?client_secret=hunter2",
    ],
)
def test_a_secret_in_an_address_is_refused_without_repeating_it(address):
    for meet in (Folder.at, matching):
        with pytest.raises(ConfigurationError, match="must not hold a secret") as caught:
            meet(address)
        assert "hun" not in str(caught.value)


def test_rows_are_read_out_of_a_store(bucket):
    folder = Folder.at(bucket)
    put(folder, "a.parquet", TEXTS)
    lines = "".join(f'{{"body": "{text}"}}\n' for text in TEXTS).encode()
    folder.write("a.jsonl.gz", gzip.compress(lines))
    for name in ("a.parquet", "a.jsonl.gz"):
        for _ in range(2):  # as embed_file does, to learn the types first
            rows = read_rows(f"{bucket}/{name}", text_field="body")
            assert [row.text for row in rows] == TEXTS
    with pytest.raises(InputError, match="there is no object|cannot read"):
        list(read_rows(f"{bucket}/none.jsonl"))
