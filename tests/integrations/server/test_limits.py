"""One timer for whatever lasts too long."""

from __future__ import annotations

import asyncio

from nimbed_server.http import TimeLimit


class One:
    def __init__(self, name, told):
        self.name = name
        self.told = told

    def timed_out(self):
        self.told.append(self.name)


def test_only_what_has_not_ended_is_told_and_the_eldest_first():
    told: list[str] = []

    async def main():
        limit = TimeLimit(0.05)
        first, ended, last = One("first", told), One("ended", told), One("last", told)
        for one in (first, ended, last):
            limit.start(one)
            await asyncio.sleep(0.01)
        limit.stop(ended)
        limit.stop(ended)  # nothing to end any more
        await asyncio.sleep(0.3)

    asyncio.run(main())
    assert told == ["first", "last"]


def test_what_begins_twice_keeps_its_first_moment():
    told: list[str] = []

    async def main():
        limit = TimeLimit(0.3)
        one, other = One("one", told), One("other", told)
        limit.start(one)
        limit.start(other)
        await asyncio.sleep(0.2)
        limit.start(one)
        await asyncio.sleep(0.2)

    asyncio.run(main())
    assert told == ["one", "other"]


def test_a_second_event_loop_has_a_timer_of_its_own():
    told: list[str] = []
    limit = TimeLimit(0.05)

    async def leave():
        limit.start(One("left behind", told))

    async def stay():
        limit.start(One("waited for", told))
        await asyncio.sleep(0.3)

    asyncio.run(leave())
    asyncio.run(stay())
    assert told == ["left behind", "waited for"]
