from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed.local.vision.tiles import Grid, Tiling

SIZES = st.integers(1, 16384)


def published_grid(width, height, side, least, most):
    """The rule of models.md 1.3, spelt out: the oracle."""
    ratios = set()
    for n in range(least, most + 1):
        for i in range(1, n + 1):
            for j in range(1, n + 1):
                if least <= i * j <= most:
                    ratios.add((i, j))
    scores = {}
    for i, j in sorted(ratios, key=lambda ij: ij[0] * ij[1]):
        area = min((i * j * side * side) / (width * height), 0.6)
        ratio, wanted = width / height, i / j
        scores[i, j] = area * min(wanted / ratio, ratio / wanted)
    return max(scores, key=scores.__getitem__)  # the first of equals


@pytest.mark.parametrize(
    ("size", "most", "grid", "tiles"),
    [
        ((224, 224), 6, (1, 1), 1),
        ((640, 480), 6, (3, 2), 7),
        ((1024, 1024), 6, (2, 2), 5),
        ((1275, 1650), 6, (2, 3), 7),
        ((1275, 1650), 2, (1, 2), 3),
        ((1, 1), 6, (1, 1), 1),
        ((16384, 10), 6, (6, 1), 7),
        ((10, 16384), 6, (1, 6), 7),
        ((640, 480), 1, (1, 1), 1),
    ],
)
def test_grids_are_the_published_ones(size, most, grid, tiles):
    found = Tiling(512, 1, most, True).grid(*size)
    assert (found.columns, found.rows) == grid
    assert found.tiles == tiles
    assert found.thumbnail is (tiles > 1)


@given(SIZES, SIZES, st.sampled_from([(1, 6), (1, 2), (1, 12), (2, 2), (4, 6)]))
def test_grids_follow_the_published_rule(width, height, bounds):
    found = Tiling(512, *bounds, True).grid(width, height)
    assert (found.columns, found.rows) == published_grid(width, height, 512, *bounds)
    assert bounds[0] <= found.columns * found.rows <= bounds[1]


@given(SIZES)
def test_of_two_equally_good_grids_the_first_of_the_set_wins(side):
    # Both keep a square equally well; the reference takes whichever its set holds first.
    found = Tiling(512, 2, 2, False).grid(side, side)
    first = next(iter({(1, 2), (2, 1)}))
    assert found == Grid(*first, False)


def test_without_thumbnails_there_are_only_tiles():
    assert Tiling(512, 1, 6, False).grid(1024, 1024).tiles == 4
