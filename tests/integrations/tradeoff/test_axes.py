from __future__ import annotations

import itertools

import pytest

from nimbed_tradeoff.axes import byte_axis, share_axis, time_axis

AXES = [
    byte_axis([48, 384, 1536]),
    byte_axis([8, 16, 24, 32, 48, 64, 128, 192, 256, 384, 512, 768, 1024, 1536]),
    byte_axis([16384]),
    time_axis([0.02, 0.15]),
    time_axis([0.004, 900.0]),
    time_axis([1.0]),
    share_axis([0.31, 1.0]),
    share_axis([0.991, 1.0]),
    share_axis([1.0]),
    share_axis([0.0, 0.2]),
    share_axis([0.0]),
]
VALUES = [
    [48, 384, 1536],
    [8, 16, 1536],
    [16384],
    [0.02, 0.15],
    [0.004, 900.0],
    [1.0],
    [0.31, 1.0],
    [0.991, 1.0],
    [1.0],
    [0.0, 0.2],
    [0.0],
]


@pytest.mark.parametrize(("axis", "values"), list(zip(AXES, VALUES, strict=True)))
def test_values_and_ticks_lie_on_the_axis(axis, values):
    for value in [*values, *(tick for tick, _ in axis.ticks)]:
        assert -1e-9 <= axis.place(value) <= 1 + 1e-9
    assert 1 <= len(axis.ticks) <= 9
    places = [axis.place(tick) for tick, _ in axis.ticks]
    # Words of about an eleventh of the axis do not run into each other.
    assert all(b - a >= 0.09 for a, b in itertools.pairwise(places))
    words = [word for _, word in axis.ticks]
    assert len(set(words)) == len(words)


def test_equal_ratios_of_bytes_are_equally_far_apart():
    axis = byte_axis([48, 384, 3072])
    low, middle, high = (axis.place(value) for value in (48, 384, 3072))
    assert middle - low == pytest.approx(high - middle)
    assert axis.ticks == ((48, "48"), (384, "384"), (3072, "3,072"))


def test_shares_are_linear_and_end_at_one():
    axis = share_axis([0.66, 0.95, 1.0])
    assert axis.high == pytest.approx(1.0)
    assert axis.low < 0.66
    assert axis.place((axis.low + axis.high) / 2) == pytest.approx(0.5)
    assert axis.ticks[-1][1] == "1.00"
