"""The recommendation of a study: the smallest index that keeps enough of float's recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nimbed_tradeoff.measurement import Measured

__all__ = ["Advice", "advise", "frontier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The smallest index that keeps enough.

    Attributes:
        keep: The share of float's recall that was asked for.
        best: The smallest way that keeps it, rescored or not.
        alone: The smallest that keeps it without floats at hand to rescore by.
        sentence: The recommendation in words.
    """

    keep: float
    best: Measured
    alone: Measured
    sentence: str


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal points of (cost, value), cheapest first.

    A point is left out if another costs no more and is worth at least as much; of equal points
    the first stays.
    """
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    best: list[int] = []
    for place in order:
        if not best or points[place][1] > points[best[-1]][1]:
            best.append(place)
    return best


def advise(measured: Sequence[Measured], *, keep: float, judged: bool) -> Advice:
    """Choose the smallest index whose recall is at least ``keep`` of the full float's.

    Of equal sizes it takes the one with the fewest candidates to rescore, then the better one.

    Args:
        measured: The full float first.
        keep: Share of its recall, above 0 and up to 1.
        judged: Whether recall is by relevance judgements, and not by float's own order.
    """
    full = measured[0]
    # Float keeps all of itself, whatever rounding makes of the product.
    able = [full, *(each for each in measured[1:] if each.recall >= keep * full.recall)]
    best = min(able, key=_cost)
    alone = min((each for each in able if not each.way.oversampling), key=_cost)
    if best is full:
        sentence = (
            f"Keep float at {full.way.spec.dimensions} dimensions: nothing smaller keeps "
            f"{_percent(keep)} of its recall@10"
        )
    else:
        rescored = f" and rescore the best {best.way.candidates} by float"
        sentence = (
            f"Store {_stored(best, full)}{rescored if best.way.oversampling else ''}: "
            f"{_kept(best, full, judged)}"
        )
        if best is alone:
            sentence += f", and nothing smaller keeps {_percent(keep)}"
        elif alone is full:
            sentence += f"; without rescoring nothing smaller than float keeps {_percent(keep)}"
        else:
            sentence += (
                f"; where no floats are at hand to rescore by, store {_stored(alone, full)}: "
                f"{_kept(alone, full, judged)}"
            )
    return Advice(keep=keep, best=best, alone=alone, sentence=f"{sentence}.")


def _cost(each: Measured) -> tuple[int, int, float]:
    return each.bytes_per_vector, each.way.oversampling, -each.recall


def _stored(each: Measured, full: Measured) -> str:
    spec = each.way.spec
    times = full.bytes_per_vector / each.bytes_per_vector
    return (
        f"{spec.embedding_type} at {spec.dimensions} dimensions ({spec.bytes_per_vector:,} bytes "
        f"a vector, {times:.3g} times smaller than the full float)"
    )


def _kept(each: Measured, full: Measured, judged: bool) -> str:
    share = _percent(each.recall / full.recall if full.recall else 1.0)
    if judged:
        return f"it keeps {share} of float's recall@10"
    return f"it finds {share} of the ten nearest by float"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
