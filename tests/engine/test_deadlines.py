"""Overload: as many as possible are in time, and who cannot be is told when; questions go first."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from nimbed.errors import DeadlineError, OverloadedError
from nimbed.options import EmbedOptions
from nimbed.scheduling import Scheduler, Timings
from nimbed.scheduling.policy import in_order

from .test_scheduler import Device, Stub

PASSAGE = EmbedOptions(input_type="passage")
QUERY = EmbedOptions(input_type="query")
ROWS, BUDGET = 20, 10


class Clock:
    """Time that passes only while a device works: a second a token."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def perf_counter(self):
        self.now += 1e-6  # so that no two arrive at once
        return self.now


class Timed(Device):
    def __init__(self, clock, budget=BUDGET):
        super().__init__(budget)
        self.clock = clock

    def embed_rows(self, rows):
        made = super().embed_rows(rows)
        self.clock.now += sum(len(row.split()) for row in rows)
        return made


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in ("queue", "scheduler", "policy"):
        monkeypatch.setattr(f"nimbed.scheduling.{module}.time", made)
    return made


@pytest.fixture
def device(clock):
    return Timed(clock)


@pytest.fixture
def scheduler(device):
    with Scheduler(Stub(device), max_wait=0) as made:
        yield made
        device.free.set()


def held(device, scheduler):
    """Let the device learn its pace, then keep it busy with one full batch."""
    scheduler.submit(["one two three four five"] * 2, PASSAGE).result(10)
    device.entered.clear()
    device.free.clear()
    first = scheduler.submit(["one two three four five"] * 2, PASSAGE)
    assert device.entered.wait(10)
    return first


def request(name):
    return [f"{name} {row}" for row in range(ROWS)]  # 2 tokens a row, so 40 seconds


def outcome(future):
    try:
        return len(future.result(10))
    except (OverloadedError, DeadlineError) as error:
        return type(error)


def test_eight_requests_of_which_five_fit_give_five_answers_whether_the_pace_is_known(
    device, scheduler
):
    for known in (False, True):
        if known:
            first = held(device, scheduler)
        else:
            device.free.clear()
            first = scheduler.submit(["short"], PASSAGE)
            assert device.entered.wait(10)
        outcomes = []
        for n in range(8):
            with contextlib.suppress(OverloadedError) if known else contextlib.nullcontext():
                outcomes.append(scheduler.submit(request(f"r{n}"), PASSAGE, timeout=5.2 * 40))
        device.free.set()
        first.result(10)
        served = [outcome(each) for each in outcomes]
        assert served.count(ROWS) == 5
        assert served[:5] == [ROWS] * 5  # those that came first
        assert set(served[5:]) <= {OverloadedError}


def test_who_comes_when_the_time_is_taken_hears_when_to_come_back(device, scheduler):
    held(device, scheduler)
    waiting = [scheduler.submit(request(f"r{n}"), PASSAGE, timeout=210) for n in range(4)]
    # Of two deadlines the earlier goes first, so that what has more time is not in its way.
    waiting.append(scheduler.submit(request("soon"), PASSAGE, timeout=60))
    for timeout in (100, 200):  # it would be in time, but not all of those before it
        with pytest.raises(OverloadedError, match="30.0 s late") as refused:
            scheduler.submit(request("more"), PASSAGE, timeout=timeout)
        assert refused.value.retry_after == pytest.approx(6 * 40 - 210, abs=0.1)
    waiting.append(scheduler.submit(request("patient"), PASSAGE, timeout=300))
    device.free.set()
    assert [outcome(each) for each in waiting] == [ROWS] * 6


def test_what_has_time_enough_is_shared_evenly(device, scheduler):
    held(device, scheduler)
    scheduler.submit(request("a"), PASSAGE, timeout=1e6)
    last = scheduler.submit(request("b"), PASSAGE)
    device.free.set()
    last.result(10)
    first_words = {row.split()[0] for row in device.batches[2]}
    assert first_words == {"a", "b"}


def test_nothing_is_refused_where_nothing_waits(device, scheduler):
    scheduler.submit(["one two three four five"] * 2, PASSAGE).result(10)
    with pytest.raises(DeadlineError):
        scheduler.submit(request("alone"), PASSAGE, timeout=15).result(10)


@pytest.mark.parametrize("queries_first", [True, False])
def test_a_question_waits_for_one_batch_of_an_import_at_most(device, queries_first):
    with Scheduler(Stub(device), max_wait=0, queries_first=queries_first) as scheduler:
        held(device, scheduler)
        books = [scheduler.submit(request(f"b{n}"), PASSAGE) for n in range(20)]
        asked = scheduler.submit(["question"], QUERY)
        device.free.set()
        asked.result(10)
        for book in books:
            book.result(10)
    turn = next(n for n, batch in enumerate(device.batches) if "question" in batch)
    assert (turn == 2) == queries_first  # the two before it are those of ``held``


def test_questions_without_end_do_not_starve_an_import(device, scheduler):
    held(device, scheduler)
    book = scheduler.submit(request("b"), PASSAGE)
    asked = [scheduler.submit(["a question"], QUERY) for _ in range(50)]
    device.free.set()
    for each in (book, *asked):
        each.result(10)
    kinds = [batch[0].startswith("b") for batch in device.batches[2:]]
    assert kinds[:8] == [False, True] * 4


def test_many_questions_are_a_file_of_them_and_some_callers_have_patience(device, scheduler):
    held(device, scheduler)
    book = scheduler.submit(request("b"), PASSAGE)
    many = scheduler.submit(["word " * 300, "word " * 300], QUERY)
    device.free.set()
    book.result(10)
    many.result(10)
    assert not device.batches[2][0].startswith("word word")


async def test_a_caller_may_hear_where_its_time_went(device, scheduler):
    spent = Timings()
    await scheduler.asubmit(["one two", "three"], QUERY, timings=spent)
    assert spent.queueing < 0.1
    assert spent.inference == pytest.approx(3, abs=0.1)
    patient = Timings()
    await scheduler.asubmit(["one " * 9, "two " * 9], QUERY, timings=patient, patient=True)
    assert patient.inference == pytest.approx(18, abs=0.1)  # in two batches


def test_deadlines_are_kept_in_their_order():
    now = 100.0
    made = [SimpleNamespace(deadline=each, since=n) for n, each in enumerate((160, None, 120, 130))]
    requests = [type("R", (), vars(each))() for each in made]
    pending = dict(zip(requests, (20, 5, 15, 30), strict=True))
    kept, late = in_order(pending, rate=1.0, now=now)
    assert [requests.index(each) for each in kept] == [2, 0, 1]
    assert late == {requests[3]: 45 - 30}
