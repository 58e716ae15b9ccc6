from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

import nimbed
from nimbed.embedder import Prepared
from nimbed.errors import (
    BackendError,
    ConfigurationError,
    DeadlineError,
    InputError,
    OverloadedError,
)
from nimbed.options import EmbedOptions
from nimbed.scheduling import Scheduler

FAKE = nimbed.FakeEmbedder()
QUERY = EmbedOptions(input_type="query")


class Device:
    """A replica that records its batches and can be held, as a busy device is."""

    look_ahead = 1
    on_host = False

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.batches: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def embed_rows(self, rows: Sequence[str]) -> np.ndarray:
        self.batches.append(list(rows))
        self.entered.set()
        assert self.free.wait(10)
        if any("poison" in text for text in rows):
            raise BackendError("the device choked")
        vectors = [FAKE.embed([text], input_type="query").vectors[0] for text in rows]
        return np.array(vectors) * 3  # as a model's output: not normalised


class Stub:
    """A schedulable embedder over pretended devices; words stand for tokens."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices

    spec = FAKE.spec

    def prepare(self, inputs, options):
        if any(not text for text in inputs):
            raise InputError("blank", rows=[0])
        return Prepared(list(inputs), [len(text.split()) for text in inputs], [])

    def replicas(self):
        return self.devices


@pytest.fixture
def device():
    return Device(budget=10)


@pytest.fixture
def scheduler(device):
    with Scheduler(Stub(device)) as made:
        yield made
        device.free.set()


def hold(device, scheduler):
    """Keep the device busy with one row, so that what follows waits."""
    device.free.clear()
    device.entered.clear()
    held = scheduler.submit(["held"], QUERY)
    assert device.entered.wait(5)
    return held


def test_an_idle_device_starts_at_once(device, scheduler):
    batch = scheduler.submit(["one"], QUERY).result(5)
    np.testing.assert_allclose(
        batch.vectors, FAKE.embed(["one"], input_type="query").vectors, atol=1e-6
    )
    assert batch.token_counts.tolist() == [1]
    assert device.batches == [["one"]]


def test_requests_of_all_sizes_and_types_share_a_batch(device, scheduler):
    hold(device, scheduler)
    options = [
        {},
        {"dimensions": 16},
        {"embedding_type": "ubinary"},
        {"embedding_type": "int8", "dimensions": 32},
    ]
    futures = [
        scheduler.submit([f"text {n}"], EmbedOptions(input_type="query", **o))
        for n, o in enumerate(options)
    ]
    device.free.set()
    for n, (future, option) in enumerate(zip(futures, options, strict=True)):
        expected = FAKE.embed([f"text {n}"], input_type="query", **option)
        got = future.result(5)
        assert got.spec == expected.spec
        np.testing.assert_allclose(got.vectors, expected.vectors, atol=1e-6)
    assert sorted(device.batches[1]) == [f"text {n}" for n in range(4)]


def test_one_request_is_spread_over_batches_within_the_budget(device, scheduler):
    texts = [f"two words{n}" for n in range(23)]
    batch = scheduler.submit(texts, QUERY).result(5)
    np.testing.assert_allclose(
        batch.vectors, FAKE.embed(texts, input_type="query").vectors, atol=1e-6
    )
    sizes = [sum(len(text.split()) for text in rows) for rows in device.batches]
    assert max(sizes) <= 10
    assert len(sizes) == 5


def test_a_row_beyond_the_budget_is_embedded_alone(device, scheduler):
    long = "word " * 30
    scheduler.submit(["a", long, "b"], QUERY).result(5)
    assert [long] in device.batches


def test_a_query_is_not_stuck_behind_a_book(device, scheduler):
    hold(device, scheduler)
    book = scheduler.submit([f"page {n}" for n in range(500)], QUERY)
    query = scheduler.submit(["question"], QUERY)
    device.free.set()
    query.result(5)
    place = next(n for n, rows in enumerate(device.batches) if "question" in rows)
    assert place <= 2
    book.result(10)


def test_two_long_requests_share_the_device(device, scheduler):
    hold(device, scheduler)
    for name in ("left", "right"):
        scheduler.submit([f"{name} {n}" for n in range(100)], QUERY)
    device.free.set()
    scheduler.close()
    first_half = [text for rows in device.batches[1:21] for text in rows]
    left = sum(text.startswith("left") for text in first_half)
    assert 0.3 < left / len(first_half) < 0.7


def test_cancelled_rows_cost_nothing(device, scheduler):
    hold(device, scheduler)
    gone = scheduler.submit(["never"], QUERY)
    kept = scheduler.submit(["kept"], QUERY)
    assert gone.cancel()
    device.free.set()
    kept.result(5)
    assert all("never" not in rows for rows in device.batches)


def test_a_cancelled_task_drops_its_rows(device, scheduler):
    async def main():
        hold(device, scheduler)
        task = asyncio.create_task(scheduler.asubmit(["never"], QUERY))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        device.free.set()
        return await scheduler.asubmit(["kept"], QUERY)

    assert len(asyncio.run(main())) == 1
    assert all("never" not in rows for rows in device.batches)


def test_expired_rows_cost_nothing_and_say_so(device, scheduler):
    hold(device, scheduler)
    late = scheduler.submit(["late"], QUERY, timeout=0.01)
    time.sleep(0.05)
    device.free.set()
    with pytest.raises(DeadlineError, match="ran out"):
        late.result(5)
    assert all("late" not in rows for rows in device.batches)


def test_a_poisoned_row_fails_alone(device, scheduler):
    hold(device, scheduler)
    good = [scheduler.submit([f"good {n}"], QUERY) for n in range(3)]
    bad = scheduler.submit(["poison"], QUERY)
    device.free.set()
    with pytest.raises(BackendError, match="choked"):
        bad.result(5)
    for n, future in enumerate(good):
        expected = FAKE.embed([f"good {n}"], input_type="query").vectors
        np.testing.assert_allclose(future.result(5).vectors, expected, atol=1e-6)


def test_a_full_queue_refuses_and_estimates_the_wait(device):
    with Scheduler(Stub(device), max_queue_items=3, max_queue_tokens=5) as scheduler:
        scheduler.submit(["measure the rate"], QUERY).result(5)
        hold(device, scheduler)
        scheduler.submit(["a", "b", "c"], QUERY)
        with pytest.raises(OverloadedError, match="3 inputs of 3 tokens wait") as raised:
            scheduler.submit(["d"], QUERY)
        assert raised.value.retry_after > 0
        assert raised.value.status == 503
        assert scheduler.state[:2] == (3, 3)
        device.free.set()
    assert scheduler.state[:2] == (0, 0)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_more_devices_work_the_queue_off_the_shorter_is_the_wait(count):
    devices = [Device(budget=1) for _ in range(count)]
    with Scheduler(Stub(*devices), max_queue_items=12) as scheduler:
        scheduler._queue._delay.tokens_per_second = 2.0
        for each in devices:
            each.free.clear()
        scheduler.submit(["held"] * count, QUERY)
        for each in devices:
            assert each.entered.wait(5)
        scheduler.submit(["a"] * 12, QUERY)
        with pytest.raises(OverloadedError) as raised:
            scheduler.submit(["b"], QUERY)
        assert raised.value.retry_after == 12 / (2.0 * count)
        assert scheduler.state.tokens_per_second == 2.0 * count
        for each in devices:
            each.free.set()


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(device):
    with Scheduler(Stub(device), max_queue_items=2) as scheduler:
        future = scheduler.submit(list("abcdef"), QUERY)
        assert len(future.result(5)) == 6


def test_closing_finishes_what_waits(device):
    scheduler = Scheduler(Stub(device))
    futures = [scheduler.submit([f"text {n}"], QUERY) for n in range(30)]
    scheduler.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(ConfigurationError, match="closed"):
        scheduler.submit(["more"], QUERY)


def test_closing_at_once_cancels_what_waits(device):
    scheduler = Scheduler(Stub(device))
    hold(device, scheduler)
    waiting = scheduler.submit(["waiting"], QUERY)
    threading.Timer(0.05, device.free.set).start()
    scheduler.close(drain=False)
    assert waiting.cancelled()


def test_bad_calls_are_refused_in_the_callers_thread(scheduler):
    with pytest.raises(InputError):
        scheduler.submit([""], QUERY)
    with pytest.raises(ConfigurationError, match="input_type"):
        scheduler.submit(["a"], EmbedOptions(input_type="document"))
    with pytest.raises(ConfigurationError, match="17-dimension"):
        scheduler.submit(["a"], EmbedOptions(input_type="query", dimensions=17))
    with pytest.raises(ConfigurationError, match="at least one"):
        Scheduler(Stub(), max_queue_items=0)


def test_no_inputs_give_an_empty_batch(scheduler):
    assert scheduler.submit([], QUERY).result(5).vectors.shape == (0, 64)


def test_several_devices_share_one_queue():
    both = threading.Barrier(2)

    class Meeting(Device):
        """A device that waits at its first batch until the other has one too."""

        def embed_rows(self, rows):
            if not self.batches:
                both.wait(10)
            return super().embed_rows(rows)

    devices = [Meeting(4), Meeting(4)]
    texts = [f"text {n}" for n in range(200)]
    with Scheduler(Stub(*devices)) as scheduler:
        futures = [scheduler.submit(texts[n : n + 10], QUERY) for n in range(0, 200, 10)]
        got = np.concatenate([future.result(10).vectors for future in futures])
    np.testing.assert_allclose(got, FAKE.embed(texts, input_type="query").vectors, atol=1e-6)
    assert all(device.batches for device in devices)


def test_a_thousand_callers_get_what_one_call_gives():
    from tests.benchmarks.english import queries

    texts = queries(1000, seed=31)
    with nimbed.load(dtype="float32", device="cpu") as embedder:
        expected = embedder.embed(texts, input_type="query")

        async def main(scheduler):
            calls = (scheduler.asubmit([text], QUERY) for text in texts)
            return await asyncio.gather(*calls)

        with Scheduler(embedder) as scheduler:
            batches = asyncio.run(main(scheduler))
    joined = nimbed.concatenate(batches)
    np.testing.assert_allclose(joined.vectors, expected.vectors, atol=1e-6)
    np.testing.assert_array_equal(joined.token_counts, expected.token_counts)


def test_options_may_be_one_value_or_keywords_but_not_both(scheduler):
    one = scheduler.submit(["a"], QUERY).result(5)
    other = scheduler.submit(["a"], input_type="query").result(5)
    assert (one.spec, one.input_type) == (other.spec, other.input_type)
    with pytest.raises(ConfigurationError, match="given twice: .* truncate by name"):
        scheduler.submit(["a"], QUERY, truncate="END")


class Noting(Stub):
    """Counts the calls of ``prepare``, and cuts texts after four words where it may."""

    def __init__(self, *devices: Device) -> None:
        super().__init__(*devices)
        self.prepared: list[int] = []

    def prepare(self, inputs, options):
        self.prepared.append(len(inputs))
        whole = super().prepare(inputs, options)
        cut = [row for row, count in enumerate(whole.counts) if count > 4]
        if cut and options.truncate == "NONE":
            raise InputError("too long", rows=cut)
        return Prepared(whole.rows, [min(count, 4) for count in whole.counts], cut)


def gathered(embedder, *calls, **bounds):
    """Ask all at once in one event loop; return what each got, errors included."""

    async def main(scheduler):
        tasks = [scheduler.asubmit(texts, **keywords) for texts, keywords in calls]
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Scheduler(embedder, **bounds) as scheduler:
        return asyncio.run(main(scheduler))


CUT = {"input_type": "query", "truncate": "END"}


def test_calls_of_one_turn_of_the_loop_are_tokenized_together(device):
    embedder = Noting(device)
    calls = [([f"text {n}", "a b c d e f"][: n % 3], CUT) for n in range(9)]
    batches = gathered(embedder, *calls)
    assert embedder.prepared == [9]
    for batch, (texts, _) in zip(batches, calls, strict=True):
        assert len(batch) == len(texts)
        assert batch.truncated == ((1,) if len(texts) == 2 else ())
        np.testing.assert_array_equal(batch.token_counts, [2, 4][: len(texts)])
        if texts:
            expected = FAKE.embed(texts, input_type="query").vectors
            np.testing.assert_allclose(batch.vectors, expected, atol=1e-6)


def test_calls_of_different_options_are_not_mixed(device):
    as_bits = {**CUT, "embedding_type": "ubinary"}
    plain, bits, passage = gathered(
        Noting(device), (["a"], CUT), (["a"], as_bits), (["a"], {"input_type": "passage"})
    )
    assert [plain.spec.embedding_type, bits.spec.embedding_type] == ["float", "ubinary"]
    assert passage.input_type == "passage"


def test_a_call_that_cannot_be_tokenized_fails_alone_with_its_own_rows(device):
    whole = {"input_type": "query"}
    good, bad = gathered(Noting(device), (["a", "b"], whole), (["c", "d e f g h"], whole))
    assert len(good) == 2
    assert isinstance(bad, InputError)
    assert bad.rows == (1,)


def test_a_queue_that_has_no_room_for_all_takes_as_many_as_fit(device):
    answers = gathered(Noting(device), *[([f"t{n}"], CUT) for n in range(9)], max_queue_items=4)
    refused = [each for each in answers if isinstance(each, OverloadedError)]
    assert len(refused) >= 4
    assert all(len(each) == 1 for each in answers if each not in refused)


def test_a_flood_is_tokenized_in_several_turns_of_the_loop(device):
    embedder = Noting(device)
    texts = ["x" * 4000 + f" {n}" for n in range(100)]
    batches = gathered(embedder, *[([text], CUT) for text in texts])
    assert len(embedder.prepared) > 2
    assert sum(embedder.prepared) == 100
    assert [len(batch) for batch in batches] == [1] * 100
