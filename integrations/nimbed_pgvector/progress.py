"""An index under construction in, how far it is out.

Asks on a connection of its own, since the builder's is busy until the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import psycopg

from nimbed_pgvector.indexing import watch
from nimbed_pgvector.steps import run

__all__ = ["IndexProgress", "watching"]

#: Told (rows in the index, rows in all).
IndexProgress = Callable[[int, int], None]

_PAUSE = 0.2


@contextmanager
def watching(
    builder: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], tell: IndexProgress | None
) -> Generator[None]:
    """Tell how far the index is that the connection builds inside the block."""
    if tell is None:
        yield
        return
    info = builder.info
    dsn, password, pid = info.dsn, info.password, info.backend_pid
    over = threading.Event()

    def ask() -> None:
        try:
            with psycopg.connect(dsn, password=password or None, autocommit=True) as connection:
                while not over.wait(_PAUSE):
                    progress = run(connection, watch(pid))
                    if progress is not None and progress[1]:
                        tell(*progress)
        except psycopg.Error:
            return  # no free connection: the index is built all the same, only unseen

    thread = threading.Thread(target=ask, name="nimbed-index-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
