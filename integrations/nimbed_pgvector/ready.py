"""Rows whose vectors exist already in, stretches of the loader out.

Knows nothing about files or databases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nimbed import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.files.rows import Row
from nimbed_pgvector.columns import Layout
from nimbed_pgvector.loading import Stretch, Vectorise, without_repeats
from nimbed_pgvector.passages import Passage, Reject, prepare_all
from nimbed_pgvector.schema import Table
from nimbed_pgvector.seen_ids import SeenIds
from nimbed_pgvector.vectors import for_columns

__all__ = ["Ready", "ready_stretches", "streamed"]

# Streamed, a stretch is what a socket takes at once, so that the server works on it while Python
# prepares the next; else it is looked up and stored in one transaction.
_SOCKET_BYTES = 2**17
_MOST_ROWS = 2048
_TEXT_BYTES = 300  # of a row without its vectors, as a guess
_NARROW = 2**10

#: Rows and their vectors, as many of the one as of the other.
Ready = tuple[Sequence[Row], EmbeddingBatch]


def ready_stretches(
    parts: Iterable[Ready],
    table: Table,
    *,
    source: str,
    metadata_fields: Sequence[str] | None = None,
) -> Iterator[Stretch]:
    """Yield each part as stretches that bring their own vectors.

    Raises:
        ConfigurationError: If a part has not as many rows as vectors, or holds queries.
    """
    seen, most = SeenIds(), _MOST_ROWS
    if streamed(table):
        most = min(most, _SOCKET_BYTES // _row_bytes(table))
    for rows, batch in parts:
        if len(rows) != len(batch):
            raise ConfigurationError(f"{len(rows)} rows came with {len(batch)} vectors")
        if batch.input_type != "passage":
            raise ConfigurationError(
                "these vectors were embedded as queries; a table holds passages, embed them so"
            )
        for start in range(0, len(rows), most):
            stretch = slice(start, start + most)
            few = batch if len(batch) <= most else batch.select(stretch)
            yield _stretch(seen, rows[stretch], few, table.layout, source, metadata_fields)


def streamed(table: Table) -> bool:
    """Return whether rows go in faster without a thread for the database.

    That is so for narrow rows into an empty table. Beside a thread that prepares them, one that
    sends them waits for Python's lock at each buffer, up to 5 ms; measured, that halves the speed.
    With wide rows the server is the slower side, and the threads overlap.
    """
    return table.empty and _row_bytes(table) <= _NARROW


def _row_bytes(table: Table) -> int:
    return _TEXT_BYTES + sum(column.stored_bytes for column in table.layout.columns)


def _stretch(
    seen: SeenIds,
    rows: Sequence[Row],
    batch: EmbeddingBatch,
    layout: Layout,
    source: str,
    metadata_fields: Sequence[str] | None,
) -> Stretch:
    raw = batch.vectors.tobytes()
    width = len(raw) // max(1, len(batch))
    vectors = (raw[start : start + width] for start in range(0, len(raw), width))
    items = prepare_all(rows, source=source, metadata_fields=metadata_fields, vectors=vectors)
    passages = [item for item in items if isinstance(item, Passage)]
    rejects = [item for item in items if isinstance(item, Reject)]
    unique = without_repeats(seen, passages, rejects)
    return Stretch(unique.passages, unique.rejects, _picking(for_columns(batch, layout), items))


def _picking(columns: Sequence[EmbeddingBatch], items: Sequence[Passage | Reject]) -> Vectorise:
    def vectorise(
        passages: Sequence[Passage],
    ) -> tuple[Sequence[Passage], Sequence[EmbeddingBatch], Sequence[Reject]]:
        if len(passages) == len(columns[0]):
            return passages, columns, []
        # Of an id that came twice the first passage was kept: its place is written last.
        places = {item.id: place for place, item in reversed([*enumerate(items)])}
        rows = [places[passage.id] for passage in passages]
        return passages, [batch.select(rows) for batch in columns], []

    return vectorise
