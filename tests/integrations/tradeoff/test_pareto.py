from __future__ import annotations

import numpy as np
import pytest

from nimbed_tradeoff.advice import frontier


@pytest.mark.parametrize("seed", range(20))
def test_the_frontier_is_what_no_other_point_dominates(seed):
    pick = np.random.default_rng(seed)
    # Few different values, so that many points are equal in one or both.
    points = [(float(a), float(b)) for a, b in pick.integers(0, 6, (30, 2))]
    kept = frontier(points)
    for place, (cost, worth) in enumerate(points):
        beaten = any(
            other_cost <= cost
            and other_worth >= worth
            and ((other_cost, other_worth) != (cost, worth) or other < place)
            for other, (other_cost, other_worth) in enumerate(points)
        )
        assert (place in kept) != beaten
    assert [points[place] for place in kept] == sorted(points[place] for place in kept)


def test_no_points_have_no_frontier():
    assert frontier([]) == []
