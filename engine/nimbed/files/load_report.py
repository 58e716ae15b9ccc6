"""What a load into a database has done, row by row where it matters.

Knows nothing about databases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["LoadReport", "Reject", "ignore"]

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be stored, and why."""

    number: int
    id: str | None
    reason: str


@dataclass(slots=True)
class LoadReport:
    """What a load has done.

    Attributes:
        loaded: Rows stored, new or changed.
        unchanged: Rows that were there already with the same content.
        rejected: Rows that could not be stored.
        seconds: How long it took.
        first_rejects: The first few rejected rows, for a message.
    """

    loaded: int = 0
    unchanged: int = 0
    rejected: int = 0
    seconds: float = 0.0
    first_rejects: list[Reject] = field(default_factory=list[Reject])

    @property
    def read(self) -> int:
        """Rows read so far."""
        return self.loaded + self.unchanged + self.rejected

    def reject(self, rejects: Sequence[Reject], tell: Callable[[Reject], None]) -> None:
        """Count rejected rows and tell each of them."""
        for rejected in rejects:
            tell(rejected)
        self.rejected += len(rejects)
        self.first_rejects = [*self.first_rejects, *rejects][:_SHOWN]


def ignore(_: object) -> None:
    """Do nothing with what is told."""
