"""Rows that cannot be embedded: the first stops the job, or all are listed in a file.

The list is JSON lines: number, reason, and the id where the row has one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, Self

from nimbed.errors import InputError
from nimbed.files.intake import Intake
from nimbed.files.rows import BadRow, Row
from nimbed.files.staging import Staging

__all__ = ["OnError", "Rejects"]

OnError = Literal["raise", "skip"]


class Rejects:
    """Rows that cannot be embedded: the first stops the job, or all are listed in a file.

    Args:
        intake: Names the rows.
        on_error: What happens to a bad row.
        target: Where the list will be.
        staging: Where it is written meanwhile.

    Attributes:
        count: How many were listed.
    """

    def __init__(self, intake: Intake, on_error: OnError, target: Path, staging: Staging) -> None:
        self.count = 0
        self._target = target
        self._intake = intake
        self._on_error = on_error
        self._staging = staging
        self._file: IO[str] | None = None
        # A list from an earlier run would be taken for this one's.
        staging.drop(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def places(self, rows: Sequence[Row]) -> str:
        """Return what messages call some rows."""
        return self._intake.places([row.number for row in rows])

    def reject(self, rows: Sequence[Row | BadRow], reason: str) -> None:
        """Stop the job, or list the rows.

        Raises:
            InputError: If bad rows stop the job.
        """
        if self._on_error == "raise":
            numbers = [row.number for row in rows]
            # A reason for several rows names them; here they stand before it.
            shorter = reason.replace(f" ({self._intake.places(numbers)})", "")
            raise InputError(f"{self._intake.where(numbers)}: {shorter}", rows=numbers)
        if self._file is None:
            place = self._staging.place(self._target)
            self._file = place.open("w", encoding="utf-8", newline="\n")
        for row in rows:
            fact: dict[str, object] = {"number": row.number, "reason": reason}
            if isinstance(row, Row) and row.id is not None:
                fact["id"] = row.id
            self._file.write(json.dumps(fact, ensure_ascii=False) + "\n")
        self.count += len(rows)
