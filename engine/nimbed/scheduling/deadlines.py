"""Which requests can be finished before their deadlines, and in which order.

Shared evenly, a device that has work for more time than its callers have finishes all of them too
late. In the order of their deadlines as many as possible are in time (Liu and Layland, 1973), and
those that cannot be are told so while they can still go elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

__all__ = ["Timed", "in_order"]

# By how much an estimate may be off before anybody is refused for it.
_TOLERANCE = 1.1


class Timed(Protocol):
    """A request that has a time.

    Attributes:
        deadline: Moment after which it is worthless, or None.
        since: Moment at which it began to wait.
    """

    deadline: float | None
    since: float


R = TypeVar("R", bound=Timed)


def in_order(
    pending: Mapping[R, int], *, rate: float, now: float
) -> tuple[list[R], dict[R, float]]:
    """Return requests in the order of their deadlines, as far as these can be kept.

    Args:
        pending: Tokens that wait of each request.
        rate: Tokens a second.
        now: The moment, on the clock of the deadlines.

    Returns:
        Those that can be finished, and those that cannot, with the seconds that each lacks.
    """
    kept: list[R] = []
    late: dict[R, float] = {}
    ahead = 0
    for request in sorted(pending, key=lambda each: (_deadline(each), each.since)):
        needed, left = (ahead + pending[request]) / rate, _deadline(request) - now
        if needed > _TOLERANCE * left:
            late[request] = needed - left
        else:
            kept.append(request)
            ahead += pending[request]
    return kept, late


def _deadline(request: Timed) -> float:
    return float("inf") if request.deadline is None else request.deadline
