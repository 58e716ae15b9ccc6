"""A stream of passages in, a filled table out, embedding while the last chunk is copied.

One worker thread owns the database, this one reads and embeds. Runs on sync and async
connections alike: a :class:`~nimbed_pgvector.steps.Runner` hides which.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from psycopg import errors

from nimbed.files.load_report import LoadReport, Reject
from nimbed_pgvector.chunks import Chunk, copy_new, encode, known_digests, make_durable, merge
from nimbed_pgvector.passages import Passages
from nimbed_pgvector.schema import Table
from nimbed_pgvector.steps import Runner
from nimbed_pgvector.stretches import Stretch

__all__ = ["CHUNK_ROWS", "Vectorise", "load_stretches", "store"]

#: Rows a transaction: one commit costs as much as a few hundred rows.
CHUNK_ROWS = 1024
_ATTEMPTS = 5

#: Passages in; those that could be embedded, the fields of their vectors, and the refused out.
Vectorise = Callable[[Passages], tuple[Passages, Sequence[bytes], Sequence[Reject]]]


def load_stretches(
    run: Runner,
    table: Table,
    given: Iterable[Stretch],
    *,
    source: str,
    vectorise: Vectorise,
    on_reject: Callable[[Reject], None],
    on_progress: Callable[[LoadReport], None],
    report: LoadReport | None = None,
) -> LoadReport:
    """Store every passage that is new or changed; commit chunk by chunk.

    Args:
        run: Runs a procedure in one transaction.
        table: Where to.
        given: The input.
        source: Names the input in the ledger.
        vectorise: Gives vectors to passages of stretches that do not know better.
        on_reject: Told each row that cannot be stored.
        on_progress: Told the report after each chunk.
        report: What was done so far; it is carried on.
    """
    report = LoadReport() if report is None else report
    start = time.perf_counter() - report.seconds

    def look_up(stretch: Stretch) -> dict[str, bytes]:
        # Into a table that was empty, copying first and looking up on a conflict is faster.
        if table.empty or not stretch.passages:
            return {}
        return run(known_digests(table, stretch.passages.ids))

    def finish(writing: Future[int] | None, attempted: int) -> None:
        if writing is not None:
            stored = writing.result()
            report.loaded += stored
            report.unchanged += attempted - stored
        report.seconds = time.perf_counter() - start
        on_progress(report)

    with ThreadPoolExecutor(1, "nimbed-database") as database:
        writing: Future[int] | None = None
        attempted = 0
        for stretch, known in _ahead(database, given, look_up):
            found = known.result()
            todo = _changed(stretch, found)
            report.unchanged += len(stretch.passages) - len(todo.passages)
            report.reject(stretch.rejects, on_reject)
            chunk: Chunk | None = None
            if todo.passages:
                kept, vectors = todo.passages, todo.vectors
                if vectors is None:
                    kept, vectors, refused = vectorise(kept)
                    report.reject(refused, on_reject)
                if kept:
                    chunk = Chunk(passages=kept, rows=encode(table, kept, vectors))
            finish(writing, attempted)
            writing, attempted = None, 0
            if chunk is not None:
                changes = not found.keys().isdisjoint(chunk.passages.ids)
                writing = database.submit(store, run, table, source, chunk, changes)
                attempted = len(chunk.passages)
        finish(writing, attempted)
        if report.loaded:
            database.submit(run, make_durable()).result()
    return report


def _changed(stretch: Stretch, found: Mapping[str, bytes]) -> Stretch:
    """Return what of a stretch is not in the table, or there with other content."""
    if not found:
        return stretch
    pairs = zip(stretch.passages.ids, stretch.passages.digests, strict=True)
    return stretch.select(
        [n for n, (name, digest) in enumerate(pairs) if found.get(name) != digest]
    )


def _ahead(
    database: ThreadPoolExecutor,
    given: Iterable[Stretch],
    look_up: Callable[[Stretch], dict[str, bytes]],
) -> Iterator[tuple[Stretch, Future[dict[str, bytes]]]]:
    """Yield each stretch with its lookup, while the next one's is on its way."""
    waiting: deque[tuple[Stretch, Future[dict[str, bytes]]]] = deque()
    for stretch in given:
        waiting.append((stretch, database.submit(look_up, stretch)))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def store(run: Runner, table: Table, source: str, chunk: Chunk, changes: bool) -> int:
    """Store a chunk, by the slower way if the table may hold its ids; return how many rows."""
    if not changes:
        try:
            return run(copy_new(table, source, [chunk]))
        except (errors.UniqueViolation, errors.DeadlockDetected):
            pass  # another loader, or an earlier run, was faster with one of these ids
    for attempt in range(_ATTEMPTS - 1):
        try:
            return run(merge(table, source, chunk))
        except (errors.DeadlockDetected, errors.SerializationFailure):
            time.sleep(0.05 * 2**attempt)
    return run(merge(table, source, chunk))
