"""Where torch is not installed, the quickstart, the server and the adapters run on ONNX Runtime."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request

import pytest

#: Found first by every Python that is started: what is named here cannot be imported.
BLOCKED = """
import sys

class Absent:
    names = ("torch", "scipy", "sklearn", "transformers", "sentence_transformers")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
ADAPTERS = """
import asyncio, sys
import numpy as np
import nimbed, nimbed_pgvector, nimbed_ray, nimbed_weaviate
from nimbed_langchain import NimbedEmbeddings
from nimbed_llama_index import NimbedEmbedding

texts = ["Bees make honey.", "Timers run a function later."]
expected = nimbed.load().embed(texts, input_type="passage").vectors
chain, index = NimbedEmbeddings(), NimbedEmbedding()
np.testing.assert_array_equal(np.float32(chain.embed_documents(texts)), expected)
np.testing.assert_array_equal(np.float32(index.get_text_embedding_batch(texts)), expected)
assert len(asyncio.run(chain.aembed_query("who makes honey?"))) == 384
for asked, said in (
    ({"dtype": "bfloat16"}, "dtype 'bfloat16' needs torch"),
    ({"backend": "torch"}, "this needs torch"),
    ({"device": "cuda"}, "device 'cuda' needs torch"),
):
    try:
        nimbed.load(**asked).embed(texts, input_type="query")
    except nimbed.errors.MissingExtraError as error:
        assert said in str(error) and nimbed.errors.install_line("local") in str(error), error
    else:
        raise AssertionError(asked)
assert not {"torch", "scipy", "transformers"}.intersection(sys.modules)
"""


@pytest.fixture
def without_torch(open_folder, tmp_path):
    """Return the environment of a Python that lacks torch, and where to run it."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "sitecustomize.py").write_text(BLOCKED)
    paths = [str(tmp_path / "absent"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "80"}, open_folder


def run(arguments, without_torch):
    environment, folder = without_torch
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_adapters_do(without_torch):
    run(["-c", ADAPTERS], without_torch)


def test_the_quickstart_and_the_commands_do(without_torch):
    command = ["-m", "nimbed_cli.main"]
    told = run([*command, "quickstart", "--passages", "60"], without_torch).stdout
    assert "60 docstrings" in told
    assert "computed in float32 on cpu by onnxruntime" in told
    assert "The same in a PostgreSQL of its own" in told
    (without_torch[1] / "texts.jsonl").write_text('{"text": "Bees make honey."}\n')
    embed = ["embed", "texts.jsonl", "-o", "vectors.jsonl", "--input-type", "passage"]
    told = run([*command, *embed], without_torch).stderr
    assert "computed in float32 on cpu by onnxruntime" in told


def test_the_server_does_and_says_what_runs_the_model(without_torch):
    environment, folder = without_torch
    server = subprocess.Popen(
        [sys.executable, "-m", "nimbed_cli.main", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert server.stderr is not None
    try:
        first = server.stderr.readline()
        assert "serving sentence-transformers/all-MiniLM-L6-v2 by onnxruntime on http" in first
        url = re.search(r"http://\S+", first)[0]
        assert "is ready" in server.stderr.readline()
        body = {"input": ["hello"], "model": "minilm", "input_type": "query"}
        request = urllib.request.Request(
            f"{url}/v1/embeddings",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert len(json.load(answer)["data"][0]["embedding"]) == 384
        with urllib.request.urlopen(f"{url}/v1/metadata", timeout=60) as answer:
            (computed_in,) = json.load(answer)["computedIn"].values()
        assert computed_in == "float32 on cpu by onnxruntime"
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0
