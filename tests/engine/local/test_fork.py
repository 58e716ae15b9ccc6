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
"""
WAIT = """
for _ in range(300):
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, 9)
sys.exit("the child hangs")
"""


def run(code, dtype="float32", backend="torch"):
    code = START + code + WAIT
    done = subprocess.run(
        [sys.executable, "-c", code, dtype, backend], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [("float32", "torch"), ("bfloat16", "torch"), ("float32", "onnxruntime")],
)
def test_a_model_that_was_used_works_in_the_child(dtype, backend):
    run(
        """
before = embedder.embed(texts, **ask).vectors
child = os.fork()
if child == 0:
    same = np.allclose(embedder.embed(texts, **ask).vectors, before, atol=1e-6)
    other = nimbed.load(**how).embed(texts, **ask).vectors
    os._exit(0 if same and np.allclose(other, before, atol=1e-6) else 3)
""",
        dtype,
        backend,
    )


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_fork_in_the_middle_of_another_threads_work_leaves_no_lock_shut(backend):
    run(
        """
embedder.embed(texts, **ask)
stop = threading.Event()
def work():
    while not stop.is_set():
        embedder.embed(texts, **ask)
worker = threading.Thread(target=work)
worker.start()
for _ in range(5):
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        embedder.embed(texts[:3], **ask)
        os._exit(0)
    for _ in range(300):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        stop.set()
        sys.exit("the child hangs")
stop.set()
worker.join()
child = os.fork()
if child == 0:
    os._exit(0)
""",
        backend=backend,
    )


def test_a_scheduler_says_that_its_threads_are_elsewhere():
    run(
        """
scheduler = Scheduler(embedder)
scheduler.submit(["a"], input_type="query").result()
child = os.fork()
if child == 0:
    try:
        scheduler.submit(["a"], input_type="query")
    except nimbed.errors.ConfigurationError as error:
        os._exit(0 if "make a scheduler here" in str(error) else 3)
    os._exit(4)
"""
    )


def embed_in_a_worker(text):
    import nimbed

    return nimbed.load(device="cpu", dtype="float32").embed([text], input_type="query").vectors


def test_pythons_own_pools_work_by_spawning_too():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(embed_in_a_worker, ("hello",)).shape == (1, 384)


def test_a_child_that_ends_as_programs_do_ends():
    run(
        """
embedder.embed(texts, **ask)
child = os.fork()
if child == 0:
    sys.exit(0)
""",
        backend="onnxruntime",
    )
