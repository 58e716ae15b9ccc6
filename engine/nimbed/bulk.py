"""Bulk jobs: rows are checked, embedded and stored in batches, and a report says how it went.

A database brings its :class:`Sink`; everything else is the same for all of them. A *batch* is the
rows that are embedded and stored together.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.chunks import document_of
from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, InputError, name_rows
from nimbed.kinds import EmbeddingKinds
from nimbed.rows import BadRow, Item, Reject, Row, as_rows
from nimbed.spec import Truncate, VectorSpec

__all__ = [
    "InputIds",
    "JobReport",
    "PassageBatch",
    "SeenIds",
    "Sink",
    "StoreResult",
    "drop_repeated",
    "embed_accepted",
    "embedding_passages",
    "ignore",
    "listing",
    "load_batches",
    "read_batches",
]

_SHOWN = 10

M = TypeVar("M")
V = TypeVar("V")
E = TypeVar("E", bound=EmbeddingBatch | EmbeddingKinds)
E_in = TypeVar("E_in", bound=EmbeddingBatch | EmbeddingKinds, contravariant=True)


@dataclass(slots=True)
class JobReport:
    """What a job over many rows has done so far.

    Attributes:
        loaded: Rows stored, new or changed.
        replaced: Those of them whose id was there with other content.
        unchanged: Rows that were there already with the same content.
        rejected: Rows that were left out.
        tokens: Tokens that the model read.
        truncated: Texts that were cut to what the model reads.
        seconds: How long it took.
        first_rejects: The first few rejected rows, for a message.
        removed: Rows deleted: chunks that a document has no more, rows that vanished.
    """

    loaded: int = 0
    unchanged: int = 0
    rejected: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0
    first_rejects: list[Reject] = field(default_factory=list[Reject])
    replaced: int = 0
    removed: int = 0

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

    def count_embedded(self, batch: EmbeddingBatch | EmbeddingKinds) -> None:
        """Count the tokens and the cut texts of a batch that was just embedded."""
        self.tokens += int(batch.token_counts.sum())
        self.truncated += len(batch.truncated)


def ignore(_: object) -> None:
    """Do nothing with what is told."""


@contextmanager
def listing(
    path: str | os.PathLike[str] | None, tell: Callable[[Reject], None] = ignore
) -> Generator[Callable[[Reject], None]]:
    """Yield a function that writes a rejected row to a file; the first one creates it.

    The file is JSON lines: number, id (null where the row has none) and reason.

    Args:
        path: The file; None for none. One of an earlier job is removed.
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
        file.write(reject.to_json() + "\n")
        file.flush()
        tell(reject)

    try:
        yield write
    finally:
        if file is not None:
            file.close()


def embedding_passages(
    embedder: Embedder, spec: VectorSpec, *, truncate: Truncate
) -> Callable[[Sequence[str]], EmbeddingBatch]:
    """Return a function that embeds passages as a spec says."""
    return functools.partial(
        embedder.embed,
        input_type="passage",
        embedding_type=spec.embedding_type,
        dimensions=spec.dimensions,
        int8_scale=spec.int8_scale,
        truncate=truncate,
    )


def embed_accepted(
    texts: Sequence[str],
    embed: Callable[[Sequence[str]], E],
    refuse: Callable[[list[int], InputError], None],
) -> tuple[list[int], E]:
    """Embed the texts that can be embedded.

    Args:
        texts: The texts.
        embed: Makes the vectors.
        refuse: Told the places of texts that the embedder refuses, and its error.

    Returns:
        The places that were embedded, ascending, and their vectors.

    Raises:
        InputError: If the embedder does not say which text it refuses.
    """
    places = list(range(len(texts)))
    while True:
        try:
            return places, embed([texts[place] for place in places])
        except InputError as error:
            if not error.rows:
                raise
            refuse([places[row] for row in error.rows], error)
            gone = set(error.rows)
            places = [place for row, place in enumerate(places) if row not in gone]


class SeenIds:
    """Remembers which ids came before, in eight bytes each.

    The ``recent`` last ones in a set, the others as sorted arrays of hashes, merged as they grow.
    Two different ids share a hash once in 10^12 loads of ten thousand rows, once in 10^5 loads of
    ten million; the later row is then rejected aloud.
    """

    def __init__(self, *, recent: int = 2**15) -> None:
        self._recent = recent
        self._last: set[int] = set()
        self._sorted: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        return len(self._last) + sum(map(len, self._sorted))

    def known(self, ids: Sequence[str]) -> set[int]:
        """Return the places of the ids that came in an earlier call of :meth:`repeated`."""
        hashes = list(map(hash, ids))
        last = {place for place, value in enumerate(hashes) if value in self._last}
        return last | self._long_known(hashes)

    def _long_known(self, hashes: Sequence[int]) -> set[int]:
        before = set[int]()
        for known in self._sorted:
            asked = np.array(hashes, np.int64)
            places = np.searchsorted(known, asked)
            places[places == len(known)] = 0
            before.update(np.flatnonzero(known[places] == asked).tolist())
        return before

    def repeated(self, ids: Sequence[str]) -> set[int]:
        """Return the places of the ids that came before, here or in an earlier call."""
        hashes = list(map(hash, ids))
        before, here = self._long_known(hashes), set(hashes)
        if len(here) < len(hashes) or not self._last.isdisjoint(here):
            seen = self._last.copy()
            for place, value in enumerate(hashes):
                if value in seen:
                    before.add(place)
                seen.add(value)
        self._last |= here
        if len(self._last) >= self._recent:
            self._sorted.append(np.sort(np.fromiter(self._last, np.int64, len(self._last))))
            self._last = set()
        while len(self._sorted) > 1 and len(self._sorted[-2]) <= 2 * len(self._sorted[-1]):
            merged = np.concatenate([self._sorted.pop(), self._sorted.pop()])
            merged.sort(kind="stable")
            self._sorted.append(merged)
        return before


class InputIds:
    """The ids of an input, rejected ones too, by which stored rows are known that it has not."""

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
                self._left_out |= {str(row.id), document_of(str(row.id))}
            tell(row)

        return reject

    def require_all(self) -> None:
        """Raise an InputError if there was no row, or one whose id could not be read."""
        if self._nameless is not None:
            raise InputError(
                f"nothing was pruned, for it is not known which stored row is row "
                f"{self._nameless.number}: {self._nameless.reason}; mend it, then load again"
            )
        if not len(self.seen) and not self._left_out:
            raise InputError("nothing was pruned: the input holds no row at all")

    def vanished(self, ids: Sequence[str]) -> list[str]:
        """Return those of a store's ids that the input has not."""
        known, out = self.seen.known(ids), self._left_out
        left = [name for place, name in enumerate(ids) if place not in known]
        return [name for name in left if out.isdisjoint((name, document_of(name) or name))]


@dataclass(frozen=True, slots=True)
class PassageBatch(Generic[M, V]):
    """Rows that a store can take, column by column; no id twice.

    An object for each row would wake Python's garbage collector again and again, which cost a
    fifth of a load's time.

    Attributes:
        numbers: Places in the input, from 1.
        ids: Primary keys.
        texts: What is embedded.
        metadata: The other fields, in the form that the store takes.
        digests: Name the contents; the same digest means nothing to do.
        vectors: The vector of each, in the form that the store takes; None if they are still to
            be embedded.
    """

    numbers: list[int] = field(default_factory=list[int])
    ids: list[str] = field(default_factory=list[str])
    texts: list[str] = field(default_factory=list[str])
    metadata: list[M] = field(default_factory=list[M])
    digests: list[bytes] = field(default_factory=list[bytes])
    vectors: list[V] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, places: Sequence[int]) -> PassageBatch[M, V]:
        """Return the passages at the given places, in the given order."""

        def of(column: list[Any]) -> list[Any]:
            return [column[place] for place in places]

        rows = (of(self.numbers), of(self.ids), of(self.texts), of(self.metadata), of(self.digests))
        return PassageBatch(*rows, None if self.vectors is None else of(self.vectors))

    def with_vectors(self, vectors: list[V]) -> PassageBatch[M, V]:
        """Return the same passages with their vectors."""
        return replace(self, vectors=vectors)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """What became of a batch that was sent to a store.

    Attributes:
        stored: Passages stored, new or changed.
        unchanged: Passages that another job had stored meanwhile.
        replaced: Stored ones that had other content there, which the look-up had not told.
        refused: Passages that the store did not take.
    """

    stored: int
    unchanged: int = 0
    replaced: int = 0
    refused: Sequence[Reject] = ()


class Sink(Protocol[M, V, E_in]):
    """A database that takes passages, from as many threads as the job was told."""

    def encode(self, batch: E_in) -> list[V]:
        """Return the vectors in the form that the store takes."""
        ...

    def look_up(self, passages: PassageBatch[M, V]) -> Mapping[str, bytes]:
        """Return the digests of those passages whose ids are stored, by their ids."""
        ...

    def storing(self, passages: PassageBatch[M, V], *, replace: bool) -> Callable[[], StoreResult]:
        """Return a function that stores passages with their vectors.

        What needs no database is done before it is returned: beside a thread that embeds, the one
        that stores waits for Python's lock, up to 5 ms each time.

        Args:
            passages: The passages.
            replace: Whether some of their ids are stored with other content.
        """
        ...

    def finish(self) -> None:
        """Make sure that what was stored stays; called once, if anything was."""
        ...


def read_batches(
    items: Iterable[Item],
    prepare: Callable[[Sequence[Row]], tuple[PassageBatch[M, V], list[Reject]]],
    *,
    rows: int,
    seen: SeenIds | None = None,
) -> Iterator[tuple[PassageBatch[M, V], list[Reject]]]:
    """Yield the input in batches, each with the rows of it that cannot be stored.

    Args:
        items: Rows, or tuples as scripts have them.
        prepare: Turns rows into passages, and says which rows cannot be any.
        rows: Rows a batch.
        seen: Remembers the ids; None for a new one.
    """
    seen, left = SeenIds() if seen is None else seen, as_rows(items)
    while some := list(itertools.islice(left, rows)):
        bad = [Reject(row.number, None, row.reason) for row in some if isinstance(row, BadRow)]
        passages, rejects = prepare([row for row in some if isinstance(row, Row)])
        yield drop_repeated(seen, passages, [*bad, *rejects])


def drop_repeated(
    seen: SeenIds, passages: PassageBatch[M, V], rejects: list[Reject]
) -> tuple[PassageBatch[M, V], list[Reject]]:
    """Move passages whose id came before in the input to the rejects: the first one is kept."""
    again = seen.repeated(passages.ids)
    if not again:
        return passages, rejects
    repeated = [
        Reject(
            passages.numbers[place],
            passages.ids[place],
            f"the id {passages.ids[place]!r} came before in this input",
        )
        for place in sorted(again)
    ]
    kept = passages.select([place for place in range(len(passages)) if place not in again])
    return kept, [*rejects, *repeated]


def load_batches(
    batches: Iterable[tuple[PassageBatch[M, V], Sequence[Reject]]],
    sink: Sink[M, V, E],
    embed: Callable[[Sequence[str]], E] | None,
    *,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
    report: JobReport | None = None,
    at_once: int = 1,
) -> JobReport:
    """Store every passage that is new or changed, embedding while the last batch is stored.

    Worker threads own the store, this one reads and embeds. Killed at any moment and run again,
    it embeds and stores only what is missing.

    Args:
        batches: The input, with the rows that cannot be stored.
        sink: Where the passages go.
        embed: Embeds passages; None if all bring their vectors.
        on_reject: Told each row that cannot be stored.
        on_progress: Told the report after each batch.
        report: What was done so far; it is carried on.
        at_once: Batches that the store takes beside each other, once it has taken a first one.

    Raises:
        ConfigurationError: If a passage brings no vector and there is nothing to embed it with.
    """
    report = JobReport() if report is None else report
    start = time.perf_counter() - report.seconds
    under_way = deque[Future[StoreResult]]()

    def settle(most: int) -> None:
        while len(under_way) > most:
            result = under_way.popleft().result()
            report.loaded += result.stored
            report.unchanged += result.unchanged
            report.replaced += result.replaced
            report.reject(result.refused, on_reject)
        report.seconds = time.perf_counter() - start
        on_progress(report)

    with ThreadPoolExecutor(at_once, "nimbed-store") as store:
        for passages, rejects, found in _looked_up(store, batches, sink):
            known = found.result()
            report.reject(rejects, on_reject)
            if known:
                pairs = zip(passages.ids, passages.digests, strict=True)
                todo = [n for n, (name, digest) in enumerate(pairs) if known.get(name) != digest]
                report.unchanged += len(passages) - len(todo)
                passages = passages.select(todo)
            if passages and passages.vectors is None:
                passages = _embedded(passages, sink, embed, report, on_reject)
            there = sum(name in known for name in passages.ids) if known else 0
            report.replaced += there
            job = sink.storing(passages, replace=there > 0) if passages else None
            settle(most=at_once - 1 if report.loaded else 0)
            if job is not None:
                under_way.append(store.submit(job))
        settle(most=0)
        if report.loaded:
            store.submit(sink.finish).result()
    return report


def _looked_up(
    store: ThreadPoolExecutor,
    batches: Iterable[tuple[PassageBatch[M, V], Sequence[Reject]]],
    sink: Sink[M, V, Any],
) -> Iterator[tuple[PassageBatch[M, V], Sequence[Reject], Future[Mapping[str, bytes]]]]:
    """Yield each batch with what is stored of it, while the next one is looked up."""
    waiting = deque[tuple[PassageBatch[M, V], Sequence[Reject], Future[Mapping[str, bytes]]]]()
    for passages, rejects in batches:
        waiting.append((passages, rejects, store.submit(sink.look_up, passages)))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _embedded(
    passages: PassageBatch[M, V],
    sink: Sink[M, V, E],
    embed: Callable[[Sequence[str]], E] | None,
    report: JobReport,
    on_reject: Callable[[Reject], None],
) -> PassageBatch[M, V]:
    """Return the passages that could be embedded, with their vectors."""
    if embed is None:
        raise ConfigurationError(f"{len(passages)} passages came without their vectors")

    def refuse(places: list[int], error: InputError) -> None:
        # The embedder counts from the start of the batch; a person counts rows of the input.
        numbers, ids = passages.numbers, passages.ids
        rejects = [
            Reject(numbers[at], ids[at], error.about(place, name_rows([numbers[at]])))
            for place, at in enumerate(places)
        ]
        report.reject(rejects, on_reject)

    places, batch = embed_accepted(passages.texts, embed, refuse)
    report.count_embedded(batch)
    kept = passages if len(places) == len(passages) else passages.select(places)
    return kept.with_vectors(sink.encode(batch) if kept else [])
