"""The axes of the plots, and what they say of marks that lie on each other."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from tests.integrations.tradeoff.test_page import marks, ticks

import nimbed
from nimbed.errors import install_line
from nimbed_tradeoff import Measured, Way
from nimbed_tradeoff.plots import draw_plots

FAKE = nimbed.FakeEmbedder()
SIZES = [
    [48, 384, 1536],
    [8, 16, 24, 32, 48, 64, 128, 192, 256, 384, 512, 768, 1024, 1536],
    [8, 16, 1536],
    [48, 384, 3072],
    [16384],
]
TIMES = [[0.02, 0.15], [0.004, 900.0], [1.0], [3.0], [0.2, 0.25]]
SHARES = [[0.31, 1.0], [0.66, 0.95, 1.0], [0.991, 1.0], [1.0], [0.0, 0.2], [0.0]]


@dataclass(frozen=True)
class Bare:
    """As much of a study as plots are made of."""

    measured: list
    advice: object

    def pareto(self, *, rescored):
        return self.measured


def study(*, sizes=(64,), times=(1.0,), shares=(1.0,)):
    measured = [
        Measured(
            way=Way(spec=replace(FAKE.spec(), dimensions=size // 4, width=size // 4)),
            recall=share,
            recall_error=0.0,
            ndcg=share,
            milliseconds=time,
            quartiles=(time, time),
        )
        for size, time, share in itertools.product(sizes, times, shares)
    ]
    return Bare(measured, SimpleNamespace(best=measured[0]))


CASES = [
    *(({"sizes": values}, 0) for values in SIZES),
    *(({"times": values}, 1) for values in TIMES),
    *(({"shares": values}, 2) for values in SHARES),
]


@pytest.mark.parametrize(("values", "axis"), CASES)
def test_values_and_ticks_lie_on_the_axis(values, axis):
    by_bytes, by_time = draw_plots(study(**values))
    along = (ticks(by_bytes.svg)[0], *ticks(by_time.svg))[axis]
    low, high = (18, 282) if axis == 2 else (52, 440)
    places = sorted(along.values())
    for plot in (by_bytes, by_time):
        for x, y in marks(plot.svg).values():
            assert 52 <= x <= 440
            assert 18 <= y <= 282
    assert all(low - 1e-6 <= place <= high + 1e-6 for place in places)
    assert 1 <= len(along) <= 9
    # Words of about an eleventh of the axis do not run into each other.
    assert all(b - a >= 0.09 * (high - low) for a, b in itertools.pairwise(places))


def test_equal_ratios_of_bytes_are_equally_far_apart():
    along, _ = ticks(draw_plots(study(sizes=[48, 384, 3072]))[0].svg)
    assert list(along) == ["48", "384", "3,072"]
    low, middle, high = along.values()
    assert middle - low == pytest.approx(high - middle)


def test_shares_are_linear_and_end_at_one():
    (plot, _) = draw_plots(study(shares=[0.66, 0.95, 1.0]))
    _, up = ticks(plot.svg)
    heights = {float(word): place for word, place in up.items()}
    assert max(heights) == 1
    assert list(up)[-1] == "1.00"
    steps = [b - a for a, b in itertools.pairwise(heights.values())]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert max(y for _, y in marks(plot.svg).values()) < 282  # above the axis


def test_three_marks_on_one_spot_are_listed_and_two_are_not(real_study, fake_study):
    spec = FAKE.spec
    ways = [Way(spec=spec(embedding_type="int8"), oversampling=times) for times in (0, 4, 8)]
    base = study().measured[0]
    far = replace(base, recall=0.1, way=Way(spec=spec()))
    three = [replace(base, way=way, recall=share) for way, share in zip(ways, (0.99, 1, 1))]  # noqa: B905
    listed = draw_plots(replace(study(), measured=[far, *three]))[0].overlaps
    assert listed == [
        "64 bytes, recall 0.990–1.000: "  # noqa: RUF001
        "int8 at 64 dimensions, rescored: no, best 40, best 80"
    ]
    assert draw_plots(replace(study(), measured=[far, *three[:2]]))[0].overlaps == []


def test_of_the_marks_on_one_spot_each_has_another_look(real_study):
    (plot, _) = draw_plots(real_study)
    looks = {}
    for group in plot.svg.iterfind(".//g"):
        if group.get("class", "").startswith("mark "):
            use = group.find(".//use")
            shape = plot.svg.find(f".//path[@id='{use.get('href')[1:]}']").get("d")
            filled = "fill-opacity: 0" not in use.get("style")
            looks.setdefault(group.find("title").text.split(": ")[0], (shape, filled))
    assert len(set(looks.values())) == len(real_study.measured)  # all of one size of vectors


def test_equal_studies_give_equal_plots(real_study):
    from xml.etree.ElementTree import tostring

    once, again = ([tostring(plot.svg) for plot in draw_plots(real_study)] for _ in range(2))
    assert once == again


def test_a_missing_library_is_named_when_a_page_is_asked_for_and_not_before():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import nimbed, nimbed_tradeoff\n"
        "from nimbed_tradeoff.plots import check_installed\n"
        "try: check_installed()\n"
        "except nimbed.errors.MissingExtraError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert install_line("tradeoff") in said.stdout
