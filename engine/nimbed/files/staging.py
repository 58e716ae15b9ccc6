"""Files that appear under their names complete, or not at all.

Knows nothing about what is in them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Self

__all__ = ["Staging"]


class Staging:
    """Temporary names beside their targets, which take the targets' places at the end.

    A context manager: leaving it by an error, Ctrl-C included, removes every temporary file and
    leaves the targets as they were.

    Args:
        main: The target that appears last, when everything that describes it is there.
    """

    def __init__(self, main: Path) -> None:
        self._main = main
        self._places: dict[Path, Path] = {}
        self._obsolete: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for target in sorted(self._places, key=lambda target: target == self._main):
                    os.replace(self._places[target], target)
                for target in self._obsolete:
                    if target not in self._places:
                        target.unlink(missing_ok=True)
        finally:
            for place in self._places.values():
                with contextlib.suppress(OSError):
                    place.unlink(missing_ok=True)

    def place(self, target: Path) -> Path:
        """Return the path to write instead of ``target``."""
        # In the same folder, since a rename across file systems is a copy.
        place = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        self._places[target] = place
        return place

    def drop(self, target: Path) -> None:
        """Remove an earlier run's file at the end, unless this run writes one."""
        self._obsolete.append(target)
