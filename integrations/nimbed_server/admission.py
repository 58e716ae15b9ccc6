"""How much may be under way at once, counted before anything is spent on it."""

from __future__ import annotations

from collections.abc import Callable

from nimbed_server.wire.refusal import Refusal

__all__ = ["Admission"]


class Admission:
    """A bounded count; used from the event loop alone.

    Args:
        most: How much may be under way.
        noun: What is counted, for messages.
        drain_rate: How many leave a second, for ``Retry-After``; 0 where nobody knows.
    """

    def __init__(
        self, most: int, *, noun: str = "inputs", drain_rate: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.most = most
        self.items = 0
        self._noun = noun
        self._drain_rate = drain_rate

    def take(self, count: int) -> None:
        """Let ``count`` more in; one caller alone is let in whatever its size.

        Raises:
            Refusal: With status 503 and the seconds after which there will be room.
        """
        if self.items and self.items + count > self.most:
            rate = self._drain_rate()
            surplus = self.items + count - self.most
            raise Refusal(
                503,
                f"the queue is full: {self.items} {self._noun} are under way, {self.most} may be; "
                f"try again later",
                code="queue_full",
                retry_after=min(60.0, max(0.05, surplus / rate)) if rate else 1.0,
            )
        self.items += count

    def give(self, count: int) -> None:
        """Say that ``count`` have left."""
        self.items -= count
