"""A process that is forked after a model was used works, or says why it cannot; it never hangs."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

START = """
import os, sys, threading, time
import numpy as np
import nimbed
from nimbed.scheduling import Scheduler
how = {"device": "cpu", "dtype": sys.argv[1], "backend": sys.argv[2]}
embedder = nimbed.load(**how)
texts = ["hello world " * n for n in range(1, 40)]
ask = {"input_type": "query", "truncate": "END"}

def ended(child):
    for _ in range(300):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, 9)
    return "hangs"
"""
A_MODEL_THAT_WAS_USED_WORKS = """
before = embedder.embed(texts, **ask).vectors
child = os.fork()
if child == 0:
    same = np.allclose(embedder.embed(texts, **ask).vectors, before, atol=1e-6)
    other = nimbed.load(**how).embed(texts, **ask).vectors
    os._exit(0 if same and np.allclose(other, before, atol=1e-6) else 3)
assert ended(child) == 0
"""
NO_LOCK_OF_ANOTHER_THREADS_WORK_STAYS_SHUT = """
embedder.embed(texts, **ask)
stop = threading.Event()
def work():
    while not stop.is_set():
        embedder.embed(texts, **ask)
worker = threading.Thread(target=work)
worker.start()
try:
    for _ in range(5):
        time.sleep(0.05)
        child = os.fork()
        if child == 0:
            embedder.embed(texts[:3], **ask)
            os._exit(0)
        assert ended(child) == 0
finally:
    stop.set()
    worker.join()
"""
A_SCHEDULER_SAYS_THAT_ITS_THREADS_ARE_ELSEWHERE = """
scheduler = Scheduler(embedder)
scheduler.submit(["a"], input_type="query").result()
child = os.fork()
if child == 0:
    try:
        scheduler.submit(["a"], input_type="query")
    except nimbed.errors.ConfigurationError as error:
        os._exit(0 if "make a scheduler here" in str(error) else 3)
    os._exit(4)
assert ended(child) == 0
"""
IT_ENDS_AS_PROGRAMS_DO = """
embedder.embed(texts, **ask)
child = os.fork()
if child == 0:
    sys.exit(0)
assert ended(child) == 0
"""


@pytest.mark.parametrize(
    ("backend", "dtype", "scenes"),
    [
        (
            "torch",
            "float32",
            (
                A_MODEL_THAT_WAS_USED_WORKS,
                NO_LOCK_OF_ANOTHER_THREADS_WORK_STAYS_SHUT,
                A_SCHEDULER_SAYS_THAT_ITS_THREADS_ARE_ELSEWHERE,
            ),
        ),
        ("torch", "bfloat16", (A_MODEL_THAT_WAS_USED_WORKS,)),
        (
            "onnxruntime",
            "float32",
            (
                A_MODEL_THAT_WAS_USED_WORKS,
                NO_LOCK_OF_ANOTHER_THREADS_WORK_STAYS_SHUT,
                IT_ENDS_AS_PROGRAMS_DO,
            ),
        ),
    ],
    ids=["torch", "torch-bfloat16", "onnxruntime"],
)
def test_a_fork_works_or_says_why_it_cannot(backend, dtype, scenes):
    # One after the other in one process: most of the time goes into importing the backend.
    done = subprocess.run(
        [sys.executable, "-c", START + "".join(scenes), dtype, backend],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def embed_in_a_worker(text):
    import nimbed

    return nimbed.load(device="cpu", dtype="float32").embed([text], input_type="query").vectors


def test_pythons_own_pools_work_by_spawning_too():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(embed_in_a_worker, ("hello",)).shape == (1, 384)
