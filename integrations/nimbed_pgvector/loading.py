"""A stream of passages in, a filled table out, embedding while the last chunk is copied.

One worker thread owns the database, this one reads and embeds. Runs on sync and async
connections alike: a :class:`~nimbed_pgvector.steps.Runner` hides which.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from psycopg import errors

from nimbed import EmbeddingBatch
from nimbed_pgvector.chunks import Chunk, copy_new, encode, known_digests, make_durable, merge
from nimbed_pgvector.passages import Passage, Reject
from nimbed_pgvector.schema import Table
from nimbed_pgvector.seen_ids import SeenIds
from nimbed_pgvector.steps import Runner

__all__ = [
    "CHUNK_ROWS",
    "LoadReport",
    "Stretch",
    "Vectorise",
    "ignore",
    "load_stretches",
    "store",
    "stretches",
    "without_repeats",
]

#: Rows a transaction: one commit costs as much as a few hundred rows.
CHUNK_ROWS = 1024
_ATTEMPTS = 5
_SHOWN = 10

#: Passages in; those that could be embedded, their vectors a column, and the refused ones out.
Vectorise = Callable[
    [Sequence[Passage]], tuple[Sequence[Passage], Sequence[EmbeddingBatch], Sequence[Reject]]
]


@dataclass(slots=True)
class LoadReport:
    """What a load has done.

    Attributes:
        loaded: Passages stored, new or changed.
        unchanged: Passages that were there already with the same content.
        rejected: Rows that could not be stored.
        seconds: How long it took.
        first_rejects: The first few rejected rows, for a message.
    """

    loaded: int = 0
    unchanged: int = 0
    rejected: int = 0
    seconds: float = 0.0
    first_rejects: list[Reject] = field(default_factory=list[Reject])

    @property
    def read(self) -> int:
        """Rows read so far."""
        return self.loaded + self.unchanged + self.rejected

    def reject(self, rejects: Sequence[Reject], tell: Callable[[Reject], None]) -> None:
        """Count rejected rows and tell each of them."""
        for rejected in rejects:
            tell(rejected)
        self.rejected += len(rejects)
        self.first_rejects = [*self.first_rejects, *rejects][:_SHOWN]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive passages of the input, no id twice, and how to get their vectors."""

    passages: Sequence[Passage]
    rejects: Sequence[Reject] = field(default_factory=list[Reject])
    vectorise: Vectorise | None = None


def ignore(_: object) -> None:
    """Do nothing with what is told."""


def stretches(items: Iterable[Passage | Reject], *, rows: int) -> Iterator[Stretch]:
    """Yield the input in stretches; of an id that comes twice, the first passage is kept."""
    seen = SeenIds()
    passages: list[Passage] = []
    rejects: list[Reject] = []
    for item in items:
        if isinstance(item, Passage):
            passages.append(item)
        else:
            rejects.append(item)
        if len(passages) + len(rejects) >= rows:
            yield without_repeats(seen, passages, rejects)
            passages, rejects = [], []
    if passages or rejects:
        yield without_repeats(seen, passages, rejects)


def without_repeats(
    seen: SeenIds, passages: Sequence[Passage], rejects: Sequence[Reject]
) -> Stretch:
    """Return a stretch in which the passages whose id came before are rejects."""
    repeated = seen.repeated([passage.id for passage in passages])
    if not repeated:
        return Stretch(passages, rejects)
    again = [
        Reject(passage.number, passage.id, f"the id {passage.id!r} came before in this input")
        for place, passage in enumerate(passages)
        if place in repeated
    ]
    kept = [passage for place, passage in enumerate(passages) if place not in repeated]
    return Stretch(kept, [*rejects, *again])


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
        return run(known_digests(table, [passage.id for passage in stretch.passages]))

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
            todo: Sequence[Passage] = stretch.passages
            if found:
                todo = [p for p in todo if found.get(p.id) != p.digest]
            report.unchanged += len(stretch.passages) - len(todo)
            report.reject(stretch.rejects, on_reject)
            chunk: Chunk | None = None
            if todo:
                kept, batches, refused = (stretch.vectorise or vectorise)(todo)
                report.reject(refused, on_reject)
                if kept:
                    chunk = Chunk(passages=kept, rows=encode(table, kept, batches))
            finish(writing, attempted)
            writing, attempted = None, 0
            if chunk is not None:
                changes = bool(found) and any(p.id in found for p in chunk.passages)
                writing = database.submit(store, run, table, source, chunk, changes)
                attempted = len(chunk.passages)
        finish(writing, attempted)
        if report.loaded:
            database.submit(run, make_durable()).result()
    return report


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
