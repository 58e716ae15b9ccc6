"""Numbers in, the axis that shows them out: where it ends, where its ticks stand.

Knows nothing about pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Axis", "byte_axis", "share_axis", "time_axis"]

_MOST_TICKS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction of a plot.

    Attributes:
        low: Value at its beginning.
        high: Value at its end.
        ticks: Values that are marked, ascending, and what is written there.
        logarithmic: Whether equal ratios take equal lengths.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value stands, 0 at the beginning and 1 at the end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def byte_axis(sizes: Iterable[float]) -> Axis:
    """Return a logarithmic axis of bytes; every size is a tick if they are few."""
    values = sorted(set(sizes))
    ticks = values
    if len(values) > _MOST_TICKS:
        low, high = math.floor(math.log2(values[0])), math.ceil(math.log2(values[-1]))
        step = max(1, math.ceil((high - low) / _MOST_TICKS))
        ticks = [2.0**power for power in range(low, high + 1, step)]
    return _logarithmic(values, ticks, written=lambda value: f"{value:,.0f}")


def time_axis(milliseconds: Iterable[float]) -> Axis:
    """Return a logarithmic axis of milliseconds, with ticks at 1, 2 and 5 of each decade."""
    values = sorted(milliseconds)
    decades = range(math.floor(math.log10(values[0])), math.ceil(math.log10(values[-1])) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    if len(decades) > 3:
        ticks = [10.0**decade for decade in decades]
    return _logarithmic(values, ticks, written=lambda value: f"{value:g}")


def share_axis(shares: Iterable[float]) -> Axis:
    """Return a linear axis of shares that begins below the smallest and ends at 1 at most."""
    values = sorted(shares)
    spread = max(values[-1] - values[0], 0.02)
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if spread / step <= 6)
    # Half a step below, so that no mark stands on the border.
    first = max(0, math.floor((values[0] - step / 2) / step + 1e-9))
    last = max(first + 1, math.ceil(values[-1] / step - 1e-9))
    ticks = tuple(
        (place * step, f"{place * step:.{3 if step < 0.01 else 2}f}")
        for place in range(first, last + 1)
    )
    return Axis(low=ticks[0][0], high=ticks[-1][0], ticks=ticks)


def _logarithmic(
    values: list[float], ticks: list[float], *, written: Callable[[float], str]
) -> Axis:
    low, high = values[0] / 1.25, values[-1] * 1.25
    return Axis(
        low=low,
        high=high,
        ticks=tuple((tick, written(tick)) for tick in ticks if low <= tick <= high),
        logarithmic=True,
    )
