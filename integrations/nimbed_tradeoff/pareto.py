"""Costs and values in, the points that nothing else beats at both out."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["frontier"]


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the Pareto-optimal points of (cost, value), cheapest first.

    A point is left out if another costs no more and is worth at least as much; of equal points
    the first stays.
    """
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    best: list[int] = []
    for place in order:
        if not best or points[place][1] > points[best[-1]][1]:
            best.append(place)
    return best
