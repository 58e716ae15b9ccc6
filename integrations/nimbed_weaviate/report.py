"""What an import has done, row by row where it matters.

Knows nothing about Weaviate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ImportReport", "Reject", "ignore", "listing"]

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be stored, and why."""

    number: int
    id: str | None
    reason: str


@dataclass(slots=True)
class ImportReport:
    """What an import has done.

    Attributes:
        loaded: Objects stored, new or changed.
        unchanged: Objects that were there already with the same content.
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


@contextmanager
def listing(
    path: str | os.PathLike[str] | None, tell: Callable[[Reject], None]
) -> Generator[Callable[[Reject], None]]:
    """Yield what tells a rejected row and writes it to a file, made with the first of them."""
    if path is None:
        yield tell
        return
    target, file = Path(path), None
    # A list of an earlier run would be taken for this one's.
    target.unlink(missing_ok=True)

    def write(reject: Reject) -> None:
        nonlocal file
        if file is None:
            file = target.open("w", encoding="utf-8", newline="\n")
        facts = {"number": reject.number, "id": reject.id, "reason": reject.reason}
        file.write(json.dumps(facts, ensure_ascii=True) + "\n")
        file.flush()
        tell(reject)

    try:
        yield write
    finally:
        if file is not None:
            file.close()
