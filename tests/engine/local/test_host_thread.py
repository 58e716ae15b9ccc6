"""On the CPU threads that ask a model share one that computes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nimbed

HERE = {"device": "cpu", "dtype": "float32", "backend": "torch"}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def elsewhere(work: Callable[[], Any]) -> Any:
    """Return what work gives in a thread that ends with it."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


# Programs of their own, in which no other test's threads come and go.
COUNT = """
import os, threading, time
import nimbed, torch
torch.set_num_threads(2)
embedder = nimbed.load(device="cpu", dtype="float32", backend="torch")
def count():
    return len(os.listdir("/proc/self/task"))
"""
LOADS = """
before = count()
embedder.replicas()
deadline = time.monotonic() + 10
while (now := count()) > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(now - before)
"""
FOUR_EMBED = """
def embedded():
    return embedder.embed(["a river"], input_type="query").vectors
expected, same = [], []
first = threading.Thread(target=lambda: expected.append(embedded()))
first.start()
first.join()
time.sleep(0.5)  # what the system still counts of the thread that ended, and of the load's
before, done, counted = count(), threading.Barrier(5), threading.Event()
def work():
    same.append((embedded() == expected[0]).all())
    done.wait()
    counted.wait()
for _ in range(4):
    threading.Thread(target=work).start()
done.wait()
now = count()
counted.set()
assert all(same) and (embedded() == expected[0]).all()
print(now - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads by Linux's /proc")
@pytest.mark.parametrize(("script", "more"), [(LOADS, 0), (FOUR_EMBED, 4)], ids=["load", "embed"])
def test_a_program_has_no_team_of_threads_for_each_that_loads_or_embeds(script, more):
    done = subprocess.run(
        [sys.executable, "-c", COUNT + script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= more


def test_a_main_thread_that_asks_alone_computes_itself_and_others_in_one_of_the_models_own():
    with nimbed.load(**HERE) as embedder:
        (engine,) = embedder.replicas()

        def where() -> threading.Thread:
            return engine.compute(threading.current_thread)

        def in_main() -> list[threading.Thread]:
            return [where() for _ in range(20)]

        warming, later = set(in_main()[:16]), in_main()
        assert len(warming) == 1
        assert set(later) == {threading.main_thread()}
        first, second = elsewhere(where), elsewhere(where)
        assert first is second
        assert first is where()
        assert first.name.startswith("nimbed-cpu")
        assert set(in_main()[16:]) == {threading.main_thread()}


def test_work_is_done_once_whoever_asks_at_a_time():
    with nimbed.load(**HERE) as embedder:
        (engine,) = embedder.replicas()
        running, most, done = [], [], []

        def work() -> None:
            running.append(1)
            most.append(len(running))
            time.sleep(0.001)
            running.pop()
            done.append(1)

        asking = [
            threading.Thread(target=lambda: [engine.compute(work) for _ in range(10)])
            for _ in range(3)
        ]
        for each in asking:
            each.start()
        for _ in range(60):
            engine.compute(work)
        for each in asking:
            each.join()
    assert max(most) == 1
    assert len(done) == 90


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("wanted", [1, 2])
def test_an_operation_takes_as_many_threads_as_the_callers_torch_does(wanted):
    torch.set_num_threads(3)
    with nimbed.load(**HERE) as embedder:
        (engine,) = embedder.replicas()
        for ask in (lambda work: work(), elsewhere):
            torch.set_num_threads(3)
            assert ask(lambda: engine.compute(torch.get_num_threads)) == 3
            torch.set_num_threads(wanted)
            assert ask(lambda: engine.compute(torch.get_num_threads)) == wanted


@pytest.mark.parametrize("ask", [lambda work: work(), elsewhere], ids=["main", "another"])
def test_an_error_reaches_whoever_asked_and_the_next_call_works(ask):
    with nimbed.load(**HERE) as embedder:
        (engine,) = embedder.replicas()

        def failing() -> str:
            with pytest.raises(ZeroDivisionError):
                engine.compute(lambda: 1 // 0)
            return "raised"

        assert ask(failing) == "raised"
        made = ask(lambda: engine.compute(lambda: torch.ones(1, requires_grad=True) * 2))
        assert not made.requires_grad


def test_what_was_done_is_let_go_before_whoever_asked_goes_on():
    class Held:
        def work(self) -> None:
            """Do nothing."""

    with nimbed.load(**HERE) as embedder:
        (engine,) = embedder.replicas()

        def gone() -> list[bool]:
            found = []
            for _ in range(200):
                held = Held()
                reference = weakref.ref(held)
                engine.compute(held.work)
                del held
                found.append(reference() is None)
            return found

        assert all(elsewhere(gone))


AT_THE_END = """
import atexit
import nimbed
embedder = nimbed.load(device="cpu", dtype="float32", backend="torch")
embedder.replicas()
atexit.register(lambda: print(embedder.embed(["a river"], input_type="query").vectors.shape))
"""


def test_a_program_that_is_ending_still_embeds():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True)
    assert done.stdout == "(1, 384)\n", done.stderr


def test_its_thread_ends_with_a_model():
    def computing() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("nimbed-cpu")]

    before = computing()
    with nimbed.load(**HERE) as embedder:
        elsewhere(lambda: embedder.embed(["a river"], input_type="query"))
        assert len(computing()) == len(before) + 1
    deadline = time.monotonic() + 10
    while computing() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert computing() == before
