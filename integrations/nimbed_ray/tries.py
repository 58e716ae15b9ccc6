"""How often a part was begun and not ended, so that a deadly text ends the job.

Ray begins the work of a process that died again, however often it dies. A text that fills the
memory would keep a cluster busy for ever.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager

from nimbed.errors import BackendError
from nimbed_ray.folder import Folder

__all__ = ["Tries"]

# A machine that is taken away costs a try as well, so one or two say nothing about the text.
_MOST = 4


class Tries:
    """Notes in a folder beside the parts, one for every try that is under way or died.

    Args:
        folder: Of the parts.
    """

    def __init__(self, folder: Folder) -> None:
        self._notes = Folder(folder.address_of("_tries"))

    @contextmanager
    def one(self, name: str, *, rows: str) -> Generator[None]:
        """Note that a part is begun, until the block ends.

        Args:
            name: Of the part.
            rows: What messages call its rows.

        Raises:
            BackendError: If too many processes died of it.
        """
        died = sum(note.startswith(name) for note in self._notes.names())
        if died >= _MOST:
            raise BackendError(
                f"{died} processes died while they embedded {rows}; look there for a text that "
                f"fills the memory, or give each actor more"
            )
        note = f"{name}.{secrets.token_hex(4)}"
        self._notes.write(note, b"")
        try:
            yield
        finally:
            self._notes.delete(note)

    def forget(self) -> None:
        """Drop the notes of an earlier run, whose processes were killed with it."""
        for note in self._notes.names():
            self._notes.delete(note)
