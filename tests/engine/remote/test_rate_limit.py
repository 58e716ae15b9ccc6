from __future__ import annotations

import asyncio

import pytest

from nimbed.remote.rate_limit import Limiter


async def test_no_more_than_the_limit_are_in_flight():
    limiter = Limiter(first=3, most=3)
    now = most = 0

    async def work():
        nonlocal now, most
        await limiter.acquire()
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        limiter.release()

    await asyncio.gather(*[work() for _ in range(20)])
    assert most == 3


async def test_it_doubles_each_round_until_the_first_overload_and_then_grows_by_one():
    limiter = Limiter(first=4, most=100)

    async def round_trip():
        epochs = [await limiter.acquire() for _ in range(limiter.limit)]
        for _ in epochs:
            limiter.grow(0.1)
        for _ in epochs:
            limiter.release()
        return epochs

    await round_trip()
    assert limiter.limit == 8
    epochs = await round_trip()
    assert limiter.limit == 16
    for epoch in epochs:  # they were in flight together: one overload
        limiter.shed(epoch)
    assert limiter.limit == 8
    await round_trip()
    assert limiter.limit in (8, 9)


async def test_it_never_falls_below_one_nor_rises_above_its_most():
    limiter = Limiter(first=1, most=2)
    for _ in range(5):
        epoch = await limiter.acquire()
        limiter.shed(epoch)
        limiter.release()
    assert limiter.limit == 1
    for _ in range(20):
        await limiter.acquire()
        limiter.grow(0.1)
        limiter.release()
    assert limiter.limit == 2


async def test_an_idle_caller_does_not_raise_the_limit():
    limiter = Limiter(first=16, most=64)
    for _ in range(50):
        await limiter.acquire()
        limiter.grow(0.1)
        limiter.release()
    assert limiter.limit == 16


async def test_a_held_limiter_starts_nothing():
    limiter = Limiter(first=2, most=2)
    epoch = await limiter.acquire()
    limiter.shed(epoch, hold=0.05)
    limiter.release()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await limiter.acquire()
    assert loop.time() - began >= 0.045


async def test_a_cancelled_waiter_leaves_its_place_to_the_next():
    limiter = Limiter(first=1, most=1)
    await limiter.acquire()
    first = asyncio.create_task(limiter.acquire())
    second = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(0)
    limiter.release()  # wakes the first
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 1)


async def test_it_does_not_grow_while_requests_wait_for_each_other():
    limiter = Limiter(first=4, most=64)

    async def round_trip(seconds):
        for _ in range(limiter.limit):
            await limiter.acquire()
        for _ in range(limiter.limit):
            limiter.grow(seconds)
        for _ in range(4):
            limiter.release()

    limiter.grow(0.01)
    limit = limiter.limit
    await round_trip(0.05)
    assert limiter.limit == limit


async def test_one_short_request_does_not_hold_long_ones_back_for_ever():
    limiter = Limiter(first=4, most=64)
    for _ in range(4):
        await limiter.acquire()
    limiter.grow(0.001)
    before = limiter.limit
    for _ in range(500):
        limiter.grow(1.0)
    assert limiter.limit > before
