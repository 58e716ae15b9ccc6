"""Documents in a table: their chunks kept in step with them, and rows pruned that an input lost.

A document's chunks are numbered from 0 without a gap, ``7#0``, ``7#1``, …: where the first one
beyond its end is absent, so are all that would follow it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from psycopg import sql

from nimbed.bulk import JobReport, SeenIds
from nimbed.chunks import document_of
from nimbed.errors import InputError
from nimbed.rows import Reject
from nimbed_pgvector.copy import SETTINGS, Passages, TableSink
from nimbed_pgvector.schema import Table
from nimbed_pgvector.search import Hit
from nimbed_pgvector.statements import Procedure, Query, Runner

__all__ = ["DocumentSink", "Kept", "best_of_each"]

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


class Kept:
    """The ids of an input, by which rows are known that it has not.

    Rows that were rejected keep what the table has of them.
    """

    def __init__(self) -> None:
        self.seen = SeenIds()
        self._nameless: Reject | None = None
        self._left_out: set[str] = set()

    def noting(self, tell: Callable[[Reject], None]) -> Callable[[Reject], None]:
        """Return a function that remembers a row that was left out, and tells it."""

        def reject(row: Reject) -> None:
            if row.id is None:
                self._nameless = self._nameless or row
            else:
                name = str(row.id)
                self._left_out |= {name, document_of(name)}
            tell(row)

        return reject

    def vanished(self, ids: Sequence[str]) -> list[str]:
        """Return those of a table's ids that the input has not."""
        known = self.seen.known(ids)
        return [
            name
            for place, name in enumerate(ids)
            if place not in known and self._left_out.isdisjoint((name, document_of(name) or name))
        ]

    def prune(self, table: Table) -> Procedure[int]:
        """Delete the rows of a table that the input has not, all or none; return how many.

        Raises:
            InputError: If there was no row, or one whose id could not be read.
        """
        if self._nameless is not None:
            raise InputError(
                f"nothing was pruned, for it is not known which row of the table is row "
                f"{self._nameless.number}: {self._nameless.reason}; mend it, then load again"
            )
        if not len(self.seen) and not self._left_out:
            raise InputError("nothing was pruned: the input holds no row at all")
        yield SETTINGS
        names = (table.identifier,)
        page = sql.SQL("SELECT id FROM {} WHERE id > %s ORDER BY id LIMIT %s").format(*names)
        delete = sql.SQL("DELETE FROM {} WHERE id = ANY(%s) RETURNING id").format(*names)
        last, removed = "", 0
        while rows := (yield Query(page, (last, _PAGE))):
            last = rows[-1][0]
            gone = self.vanished([name for (name,) in rows])
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
