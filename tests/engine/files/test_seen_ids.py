from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nimbed.files.load_report import Reject
from nimbed.files.seen_ids import SeenIds, came_before


@given(st.lists(st.lists(st.integers(0, 60).map(str), max_size=20), max_size=12))
def test_seen_ids_are_those_of_a_set(calls: list[list[str]]) -> None:
    seen, ids = set[str](), SeenIds(recent=8)
    for call in calls:
        expected = set()
        for place, name in enumerate(call):
            if name in seen:
                expected.add(place)
            seen.add(name)
        assert ids.repeated(call) == expected


def test_the_later_row_is_the_one_that_is_told():
    assert came_before(3, "a") == Reject(3, "a", "the id 'a' came before in this input")
