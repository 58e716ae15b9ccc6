"""An import that is killed, again and again, and in the end has every row once and right."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import weaviate
from weaviate.util import generate_uuid5

import nimbed_weaviate
from nimbed import FakeEmbedder

from .double import Double

ROWS = 400
IMPORT = f"""
import sys, time, nimbed, nimbed_weaviate

class Slow(nimbed.FakeEmbedder):
    def embed(self, inputs, **options):
        time.sleep(0.03)
        return super().embed(inputs, **options)

with nimbed_weaviate.connect(sys.argv[1], grpc_port=int(sys.argv[2])) as client:
    rows = ((n, f"passage number {{n}}", {{"page": n}}) for n in range({ROWS}))
    done = nimbed_weaviate.batch_import(
        client.collections.get("Passages"), rows, Slow(), chunk_rows=10
    )
    print(done.loaded, done.unchanged, done.rejected)
"""


def test_killed_at_any_moment_and_run_again_nothing_is_lost_or_embedded_twice(
    double: Double, client: weaviate.WeaviateClient
) -> None:
    spec = FakeEmbedder().spec()
    client.collections.create("Passages", vector_config=nimbed_weaviate.self_provided(spec))
    command = [sys.executable, "-c", IMPORT, double.url, str(double.grpc_port)]
    held = double.objects["Passages"]
    for goal in (35, 140):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while len(held) < goal and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = len(held)
    assert 140 <= before < ROWS
    last = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert last.stdout.split() == [str(ROWS - before), str(before), "0"], last.stderr
    texts = [f"passage number {n}" for n in range(ROWS)]
    expected = FakeEmbedder().embed(texts, input_type="passage").vectors
    assert len(held) == ROWS
    for n, text in enumerate(texts):
        properties, vectors = held[generate_uuid5(str(n))]
        assert properties["text"] == text
        np.testing.assert_array_equal(np.float32(vectors["default"]), expected[n])
    sent = [uuid for batch in double.batches for uuid in batch]
    assert len(sent) == len(set(sent)), "an object that is there was sent again"
