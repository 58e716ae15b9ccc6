"""A newcomer has an answer after a few commands; ``arrivals.py`` types them, in minutes."""

from __future__ import annotations

import pytest
from tests.house.arrivals import ARRIVALS, MOST_COMMANDS, installing, typing
from tests.house.test_readme import ROOT


@pytest.mark.parametrize("name", ARRIVALS)
def test_an_arrival_takes_few_commands_and_its_page_names_what_it_needs(name: str) -> None:
    arrival = ARRIVALS[name]
    typed = typing(arrival)
    assert arrival.last in typed[-1][1]
    assert len(installing(arrival)) + len(typed) <= MOST_COMMANDS
    if arrival.page != "README":
        page = (ROOT / "examples" / f"{arrival.page}.md").read_text("utf-8").partition("\n## ")[0]
        assert all(f"`{extra}`" in page for extra in arrival.extras.split(","))
