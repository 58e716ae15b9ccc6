"""Ready vectors in, an empty table filled out: nothing to look up, nothing to embed.

Passages are prepared while the server takes those before them, in one thread: beside another that
prepares them, a thread that sends them waits for Python's lock at each buffer, up to 5 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from psycopg import errors

from nimbed.files.load_report import LoadReport, Reject
from nimbed_pgvector.chunks import Chunk, copy_new, encode, make_durable
from nimbed_pgvector.loading import load_stretches, store
from nimbed_pgvector.schema import Table
from nimbed_pgvector.steps import Runner
from nimbed_pgvector.stretches import Stretch
from nimbed_pgvector.vectors import no_vectors

__all__ = ["load_ready"]

# Bytes a transaction: a commit costs as much as some hundred kilobytes, a kill loses this much.
_TRANSACTION = 16 * 2**20


def load_ready(
    run: Runner,
    table: Table,
    given: Iterable[Stretch],
    *,
    source: str,
    on_reject: Callable[[Reject], None],
    on_progress: Callable[[LoadReport], None],
) -> LoadReport:
    """Store passages that bring their vectors; see :func:`nimbed_pgvector.loading.load_stretches`.

    Args:
        run: Runs a procedure in one transaction.
        table: Where to.
        given: The input.
        source: Names the input in the ledger.
        on_reject: Told each row that cannot be stored.
        on_progress: Told the report after each transaction.
    """
    report = LoadReport()
    start = time.perf_counter()
    left = iter(given)
    alone = table.empty
    while alone:
        taken: list[Stretch] = []
        some = _transaction(left, table, taken, lambda found: report.reject(found, on_reject))
        try:
            stored = run(copy_new(table, source, some))
        except (errors.UniqueViolation, errors.DeadlockDetected):
            alone = False  # another loader is at work here
            again = (_encoded(table, stretch) for stretch in taken)
            stored = sum(store(run, table, source, chunk, changes=True) for chunk in again)
        report.loaded += stored
        report.unchanged += sum(len(stretch.passages) for stretch in taken) - stored
        report.seconds = time.perf_counter() - start
        on_progress(report)
        if alone and not taken:
            if report.loaded:
                run(make_durable())
            return report
    return load_stretches(
        run,
        table,
        left,
        source=source,
        vectorise=no_vectors,
        on_reject=on_reject,
        on_progress=on_progress,
        report=report,
    )


def _transaction(
    left: Iterator[Stretch],
    table: Table,
    taken: list[Stretch],
    reject: Callable[[Sequence[Reject]], None],
) -> Iterator[Chunk]:
    """Yield a transaction's chunks, and note in ``taken`` what they were made of."""
    size = 0
    for stretch in left:
        reject(stretch.rejects)
        if stretch.passages:
            taken.append(stretch)
            chunk = _encoded(table, stretch)
            size += len(chunk.rows)
            yield chunk
        if size >= _TRANSACTION:
            return


def _encoded(table: Table, stretch: Stretch) -> Chunk:
    passages, vectors = stretch.passages, stretch.vectors
    if vectors is None:
        passages, vectors, _ = no_vectors(passages)
    return Chunk(passages=passages, rows=encode(table, passages, vectors))
