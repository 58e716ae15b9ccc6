"""One timer for whatever lasts too long."""

from __future__ import annotations

import asyncio

from nimbed_server.patience import Patience


class One:
    def __init__(self, name, told):
        self.name = name
        self.told = told

    def late(self):
        self.told.append(self.name)


def test_only_what_has_not_ended_is_told_and_the_eldest_first():
    told: list[str] = []

    async def main():
        patience = Patience(0.05)
        first, ended, last = One("first", told), One("ended", told), One("last", told)
        for one in (first, ended, last):
            patience.begin(one)
            await asyncio.sleep(0.01)
        patience.end(ended)
        patience.end(ended)  # nothing to end any more
        await asyncio.sleep(0.3)

    asyncio.run(main())
    assert told == ["first", "last"]


def test_what_begins_twice_keeps_its_first_moment():
    told: list[str] = []

    async def main():
        patience = Patience(0.3)
        one, other = One("one", told), One("other", told)
        patience.begin(one)
        patience.begin(other)
        await asyncio.sleep(0.2)
        patience.begin(one)
        await asyncio.sleep(0.2)

    asyncio.run(main())
    assert told == ["one", "other"]


def test_a_second_event_loop_has_a_timer_of_its_own():
    told: list[str] = []
    patience = Patience(0.05)

    async def leave():
        patience.begin(One("left behind", told))

    async def stay():
        patience.begin(One("waited for", told))
        await asyncio.sleep(0.3)

    asyncio.run(leave())
    asyncio.run(stay())
    assert told == ["left behind", "waited for"]
