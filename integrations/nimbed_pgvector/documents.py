"""Documents in a table: their chunks kept in step with them, and rows pruned that an input lost.

A document's chunks are numbered from 0 without a gap, ``7#0``, ``7#1``, …: where the first one
beyond its end is absent, so are all that would follow it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from psycopg import sql

from nimbed.bulk import InputIds, JobReport
from nimbed.chunks import document_of
from nimbed_pgvector.copy import SETTINGS, Passages, TableSink
from nimbed_pgvector.schema import Table
from nimbed_pgvector.search import Hit
from nimbed_pgvector.statements import Procedure, Query, Runner

__all__ = ["DocumentSink", "best_of_each", "prune_rows"]

# Chunks of a document that are looked for beyond its end at a time, once there is one.
_STEP = 64
# Ids of a table that are compared at a time, and rows deleted at a time.
_PAGE = 10_000


class DocumentSink(TableSink):
    """A table as the store of chunks: a document that became shorter leaves none behind.

    Args:
        run: Runs a procedure in one transaction.
        table: The table.
        source: Names the input in the ledger.
        ended: Documents whose last chunk was read, with their number of chunks; taken from here.
        report: Counts the chunks that are removed.
    """

    def __init__(
        self,
        run: Runner,
        table: Table,
        source: str,
        *,
        ended: deque[tuple[str, int]],
        report: JobReport,
    ) -> None:
        super().__init__(run, table, source)
        self._ended, self._report = ended, report
        self._waiting: deque[list[tuple[str, int]]] = deque()

    def look_up(self, passages: Passages) -> Mapping[str, bytes]:
        """Do what :meth:`TableSink.look_up` does, and trim what was stored meanwhile."""
        some: list[tuple[str, int]] = []
        while self._ended:
            some.append(self._ended.popleft())
        self._waiting.append(some)
        # One batch is looked up ahead of the one that is stored: the one before that is there.
        self.trim(leave=2)
        return super().look_up(passages)

    def trim(self, *, leave: int = 0) -> None:
        """Delete chunks beyond the ends of documents, but for those of the last look-ups."""
        while len(self._waiting) > leave:
            documents = self._waiting.popleft()
            if documents and not self.table.empty:
                self._report.removed += self.run(_trim(self.table, documents))


def _trim(table: Table, documents: Sequence[tuple[str, int]]) -> Procedure[int]:
    """Delete the chunks that documents have beyond their number of chunks."""
    delete = sql.SQL("DELETE FROM {} WHERE id = ANY(%s) RETURNING id").format(table.identifier)
    yield SETTINGS
    beyond, step, removed = dict(documents), 1, 0
    while beyond:
        ids = [f"{name}#{n + more}" for name, n in beyond.items() for more in range(step)]
        gone = yield Query(delete, (ids,))
        removed += len(gone)
        left = {document_of(chunk) for (chunk,) in gone}
        beyond = {name: n + step for name, n in beyond.items() if name in left}
        step = _STEP
    return removed


def prune_rows(table: Table, kept: InputIds) -> Procedure[int]:
    """Delete the rows of a table that the input has not, all or none; return how many.

    Raises:
        InputError: If there was no row, or one whose id could not be read.
    """
    kept.require_all()
    yield SETTINGS
    names = (table.identifier,)
    page = sql.SQL("SELECT id FROM {} WHERE id > %s ORDER BY id LIMIT %s").format(*names)
    delete = sql.SQL("DELETE FROM {} WHERE id = ANY(%s) RETURNING id").format(*names)
    last, removed = "", 0
    while rows := (yield Query(page, (last, _PAGE))):
        last = rows[-1][0]
        gone = kept.vanished([name for (name,) in rows])
        if gone:
            removed += len((yield Query(delete, (gone,))))
    return removed


def best_of_each(hits: Sequence[Hit]) -> Iterator[Hit]:
    """Yield the first hit of each document, in their order."""
    seen = set[str]()
    for hit in hits:
        if hit.document not in seen:
            seen.add(hit.document)
            yield hit
