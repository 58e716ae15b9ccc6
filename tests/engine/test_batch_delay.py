"""How long a small batch is delayed for the callers who were just answered."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import pytest

from nimbed.scheduling import Scheduler
from nimbed.scheduling.policy import BatchDelay

from .test_scheduler import FAKE, QUERY, Device, Stub, hold


def learnt(max_wait):
    """A device that takes 4 ms a batch and 1 ms more for every 10 tokens."""
    delay = BatchDelay(max_wait)
    for tokens in (1000, 10, 10, 10) * 10:
        delay.record_batch(tokens, 0.004 + tokens * 1e-4)
    return delay


def test_a_batch_is_held_back_no_longer_than_a_batch_costs_whatever_its_size():
    allowed = learnt(10.0).allowed()
    assert 0.003 < allowed < 0.0045
    assert learnt(0.001).allowed() == 0.001
    assert learnt(0.0).allowed() == 0.0


def test_a_device_on_the_hosts_own_cores_also_waits_for_the_answers_to_go_out():
    alone = learnt(10.0).allowed()
    assert learnt(10.0).allowed(answers=50) - alone == pytest.approx(0.01)
    assert learnt(0.005).allowed(answers=50) == 0.005
    assert learnt(0.0).allowed(answers=50) == 0.0


@pytest.mark.parametrize("on_host", [True, False])
def test_only_such_a_device_waits_where_a_batch_costs_nothing_beside_its_tokens(on_host):
    device = Device(budget=1000)
    device.on_host = on_host
    asked = []

    class Noted(BatchDelay):
        def allowed(self, *, answers=0):
            asked.append(answers)
            return super().allowed(answers=answers)

    with Scheduler(Stub(device), max_wait=0.001) as scheduler:
        scheduler._queue._delay = Noted(0.001)
        futures = [scheduler.submit([f"text {n}"], QUERY) for n in range(30)]
        for future in futures:
            future.result(timeout=10)
    assert len(device.batches) >= 1
    assert asked  # nobody came again
    assert (max(asked) > 0) is on_host


def test_nothing_is_held_back_before_anything_is_known_or_where_size_does_not_matter():
    assert BatchDelay(10.0).allowed() == 0.0
    delay = BatchDelay(10.0)
    for tokens in (1000, 10, 500) * 10:
        delay.record_batch(tokens, tokens * 1e-4)
    assert delay.allowed() < 1e-6


def test_one_disturbed_batch_teaches_little():
    delay = learnt(10.0)
    before = delay.allowed()
    delay.record_batch(10, 0.1)
    assert delay.allowed() < before + 0.02


def test_a_flood_of_full_batches_on_a_busy_machine_teaches_no_waits():
    delay = learnt(10.0)
    before = delay.allowed()
    for n in range(1000):
        delay.record_batch(1000, 0.104 * (1 + n % 3))
    assert delay.allowed() <= before


def test_waiting_in_vain_is_not_repeated_before_it_has_been_made_up_for(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    delay = learnt(10.0)
    delay.record_delay(0.004, in_vain=False)
    assert delay.allowed() > 0
    delay.record_delay(0.004, in_vain=True)
    for clock[0], may in ((0.0, False), (0.079, False), (0.081, True)):
        assert (delay.allowed() > 0) is may


@pytest.mark.parametrize(("back", "vain"), [(0, True), (1, True), (2, False), (8, False)])
def test_a_wait_was_in_vain_if_fewer_than_a_quarter_came_back(back, vain):
    judged: list[bool] = []

    class Noted(BatchDelay):
        def allowed(self, *, answers=0):
            return 0.5 if answers == 8 else 0.0

        def record_delay(self, seconds, *, in_vain):
            judged.append(in_vain)

    device = Device(budget=1000)
    device.on_host = True
    with Scheduler(Stub(device)) as scheduler:
        hold(device, scheduler)
        scheduler._queue._delay = Noted(1.0)
        futures = [scheduler.submit([f"text {n}"], QUERY) for n in range(8)]
        device.free.set()
        for future in futures:
            future.result(timeout=10)
        for _ in range(back):
            scheduler.submit(["again"], QUERY)
        deadline = time.monotonic() + 10
        while not judged:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert judged[0] is vain


@pytest.mark.parametrize(("max_wait", "shared"), [(10.0, True), (0.0, False)])
def test_callers_in_a_loop_come_to_share_batches(max_wait, shared):
    """Greedily, two callers would take turns for ever, each with a batch of its own."""

    class Slow(Device):
        def embed_rows(self, rows):
            time.sleep(0.02)
            return super().embed_rows(rows)

    device = Slow(budget=1000)
    turns = threading.Semaphore(60)

    def ask(scheduler, name):
        while turns.acquire(blocking=False):
            batch = scheduler.submit([name], QUERY).result(timeout=20)
            assert len(batch) == 1

    with Scheduler(Stub(device), max_wait=max_wait) as scheduler:
        scheduler.submit(["a " * 500], QUERY).result(timeout=20)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            callers = [pool.submit(ask, scheduler, "one")]
            assert device.entered.wait(5)
            time.sleep(0.01)  # in the midst of the other's batch
            callers.append(pool.submit(ask, scheduler, "two"))
            for caller in callers:
                caller.result(timeout=60)
    sizes = [len(texts) for texts in device.batches[1:]]
    assert sum(sizes) == 60
    assert (sizes.count(2) > 15) is shared


def test_a_caller_who_is_alone_is_never_held_back():
    device = Device(budget=1000)
    with Scheduler(Stub(device), max_wait=3600.0) as scheduler:
        scheduler._queue._delay._overhead = 3600.0
        for n in range(20):  # each is alone, and everybody who was answered has come again
            got = scheduler.submit([f"text {n}"], QUERY).result(timeout=10)
            assert got.vectors[0] == pytest.approx(
                FAKE.embed([f"text {n}"], input_type="query").vectors[0], abs=1e-6
            )
    assert [len(texts) for texts in device.batches] == [1] * 20


def test_a_caller_who_is_back_before_the_device_looks_is_not_waited_for():
    device = Device(budget=1000)
    ended = threading.Event()
    with Scheduler(Stub(device), max_wait=3600.0) as scheduler:
        scheduler._queue._delay._overhead = 3600.0

        def again(_, left=20):
            if not left:
                ended.set()
                return
            future = scheduler.submit(["a text"], QUERY)
            future.add_done_callback(lambda told: again(told, left - 1))

        again(None)  # every request but the first comes from the thread that answers the last
        assert ended.wait(20)
    assert [len(texts) for texts in device.batches] == [1] * 20
