"""One model computes in one thread on the CPU, whichever threads ask."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

import nimbed

TASKS = Path("/proc/self/task")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads by Linux's /proc")
@pytest.mark.usefixtures("threads")
def test_threads_that_embed_bring_no_teams_of_their_own():
    torch.set_num_threads(2)
    with nimbed.load(device="cpu", dtype="float32", backend="torch") as embedder:
        ask = {"input_type": "query"}
        expected = embedder.embed(["a river"], **ask).vectors
        before, callers, same = len(os.listdir(TASKS)), 4, []
        done, counted = threading.Barrier(callers + 1), threading.Event()

        def work() -> None:
            same.append((embedder.embed(["a river"], **ask).vectors == expected).all())
            done.wait()
            counted.wait()

        working = [threading.Thread(target=work) for _ in range(callers)]
        for each in working:
            each.start()
        done.wait()
        now = len(os.listdir(TASKS))
        counted.set()
        for each in working:
            each.join()
    assert same == [True] * callers
    assert now - before == callers


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("wanted", [1, 2])
def test_an_operation_takes_as_many_threads_as_the_callers_torch_does(wanted):
    torch.set_num_threads(3)
    with nimbed.load(device="cpu", dtype="float32", backend="torch") as embedder:
        (engine,) = embedder.replicas()
        assert engine.compute(torch.get_num_threads) == 3
        torch.set_num_threads(wanted)
        assert engine.compute(torch.get_num_threads) == wanted


def test_an_error_reaches_whoever_asked_and_the_next_call_works():
    with nimbed.load(device="cpu", dtype="float32", backend="torch") as embedder:
        (engine,) = embedder.replicas()
        with pytest.raises(ZeroDivisionError):
            engine.compute(lambda: 1 // 0)
        assert not engine.compute(lambda: torch.ones(1, requires_grad=True) * 2).requires_grad


def test_the_thread_ends_with_its_model():
    def computing() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("nimbed-cpu")]

    before = computing()
    with nimbed.load(device="cpu", dtype="float32", backend="torch") as embedder:
        embedder.embed(["a river"], input_type="query")
        assert len(computing()) == len(before) + 1
    deadline = time.monotonic() + 10
    while computing() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert computing() == before
