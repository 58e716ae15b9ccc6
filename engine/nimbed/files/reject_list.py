"""Rejected rows of a load in, a file that names each with its reason out.

The list is JSON lines: number, id (null where the row has none) and reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from nimbed.files.load_report import Reject, ignore

__all__ = ["listing"]


@contextmanager
def listing(
    path: str | os.PathLike[str] | None, tell: Callable[[Reject], None] = ignore
) -> Generator[Callable[[Reject], None]]:
    """Yield what tells a rejected row and writes it to a file, made with the first of them.

    Args:
        path: The file; None for none. One of an earlier load is removed.
        tell: Told each row after it is written.
    """
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
