"""Running totals of one embed call, to its report.

Knows nothing about what is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nimbed.batch import Report

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """What one call has cost so far; see :class:`nimbed.batch.Report`."""

    requests: int = 0
    retries: int = 0
    tokens: int | None = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def read(self, tokens: int | None) -> None:
        """Add an answer's token count; one answer without it makes the sum unknown."""
        self.tokens = None if tokens is None or self.tokens is None else self.tokens + tokens

    def report(self, *, skipped: Iterable[int]) -> Report:
        """Return the totals."""
        return Report(
            requests=self.requests,
            retries=self.retries,
            tokens=self.tokens,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            skipped=tuple(sorted(skipped)),
        )
