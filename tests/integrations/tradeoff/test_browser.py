"""The page as a reader sees it, in the browser that kaleido's wheel carries."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest
from tests.integrations.tradeoff.browser import look, starts

from nimbed_tradeoff import page

pytestmark = pytest.mark.skipif(
    not starts(), reason="needs kaleido==0.2.1, whose wheel carries a browser, and it must start"
)

PHONE, DESK = 360, 1280


@pytest.fixture(scope="module", params=itertools.product(("few", "many"), (PHONE, DESK)), ids=str)
def seen(request, pages):
    name, width = request.param
    return look(pages / f"{name}.html", width=width) | {
        "asked": width,
        "ways": {"few": 10, "many": 34}[name],
    }


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2 defines it, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_shows_its_plots(seen):
    assert seen["mode"] == "CSS1Compat"
    assert [plot["id"] for plot in seen["plots"]] == ["recall-by-bytes", "recall-by-time"]
    for plot in seen["plots"]:
        box = plot["box"]
        assert box["right"] - box["left"] > 0.4 * seen["asked"]
        assert box["bottom"] - box["top"] > 200
        assert len(plot["marks"]) == seen["ways"]
        for mark in plot["marks"]:
            at = mark["box"]
            assert box["left"] < at["left"] < at["right"] < box["right"]
            assert box["top"] < at["top"] < at["bottom"] < box["bottom"]
            assert at["right"] - at["left"] > 6
            # What lies on the mark's middle is a mark, itself or one that stands there too.
            assert mark["on_top"] in {each["words"] for each in plot["marks"]}
        assert any(mark["on_top"] == mark["words"] for mark in plot["marks"])


def test_the_pareto_line_is_drawn_from_its_first_mark_to_its_last(seen):
    plot = seen["plots"][0]
    (line,) = (each for each in plot["lines"] if each["style"] == "line pareto")
    assert line["length"] > 50
    middles = [
        ((m["box"]["left"] + m["box"]["right"]) / 2, (m["box"]["top"] + m["box"]["bottom"]) / 2)
        for m in plot["marks"]
    ]
    for x, y in line["start"]:
        # A triangle's box is not centred on the point it stands for.
        assert min(abs(a - x) + abs(b - y) for a, b in middles) < 4


def test_a_mark_on_the_ring_of_the_recommended_one_can_be_pointed_at(real_study, tmp_path):
    best = real_study.advice.best
    alike = [each for each in real_study.measured if each.way.oversampling == best.way.oversampling]
    other = alike[0]  # drawn before the recommended one, so below its ring
    assert other is not best
    # At 14.5 of the 388 units between 0.8 and 12.5 ms: on the ring, at its height.
    beside = math.exp(14.5 / 388 * math.log(12.5 / 0.8))
    moved = {
        id(each): dataclasses.replace(each, milliseconds=10.0, quartiles=(10.0, 10.0))
        for each in real_study.measured
    } | {
        id(best): dataclasses.replace(best, milliseconds=1.0, quartiles=(1.0, 1.0)),
        id(other): dataclasses.replace(
            other, milliseconds=beside, quartiles=(beside, beside), recall=best.recall
        ),
    }
    study = dataclasses.replace(
        real_study,
        measured=[moved[id(each)] for each in real_study.measured],
        advice=dataclasses.replace(real_study.advice, best=moved[id(best)]),
    )
    (tmp_path / "page.html").write_text(page(study), encoding="utf-8")
    marks = look(tmp_path / "page.html", width=DESK)["plots"][1]["marks"]
    (found,) = (each for each in marks if each["words"].startswith(other.way.label))
    assert found["on_top"] == found["words"]


def test_nothing_is_fetched_and_nothing_runs(seen):
    assert seen["fetched"] == []
    assert seen["scripts"] == 0


def test_nothing_sticks_out_of_the_window_and_letters_stay_legible(seen):
    assert seen["width"] == seen["asked"]
    assert min(plot["smallest_letters"] for plot in seen["plots"]) >= 10.5


def test_the_numbers_and_the_advice_can_be_read(seen):
    assert len(seen["rows"]) == seen["ways"]
    assert seen["rows"][0][0] == "float"
    assert "ubinary" in {row[0] for row in seen["rows"]}
    assert seen["recommendation"].startswith(("Store ", "Keep "))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_and_marks_stand_out_from_the_paper(pages, dark):
    seen = look(pages / "few.html", width=DESK, dark=dark)
    paper = seen["colours"]["paper"]
    assert (luminance(paper) < 0.1) == dark
    assert contrast(paper, seen["colours"]["ink"]) >= 7
    assert contrast(paper, seen["colours"]["soft"]) >= 4.5
    for plot in seen["plots"]:
        for part in (*plot["marks"], *plot["lines"]):
            assert contrast(paper, part["stroke"]) >= 4.5
