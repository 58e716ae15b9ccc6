"""Rows whose vectors exist already in, stretches of the loader out.

Knows nothing about files or databases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nimbed import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.files.rows import Row
from nimbed.files.seen_ids import SeenIds
from nimbed_pgvector.schema import Table
from nimbed_pgvector.stretches import Stretch, stretch_of
from nimbed_pgvector.vectors import for_columns

__all__ = ["Ready", "ready_stretches"]

# Into an empty table, a stretch is what a socket takes at once, so that the server works on it
# while Python prepares the next; else it is looked up and stored in one transaction.
_SOCKET_BYTES = 2**18
_MOST_ROWS = 2048
_TEXT_BYTES = 300  # of a row without its vectors, as a guess

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
    seen, most, layout = SeenIds(), _MOST_ROWS, table.layout
    if table.empty:
        stored = sum(column.stored_bytes for column in layout.columns)
        most = max(1, min(most, _SOCKET_BYTES // (_TEXT_BYTES + stored)))
    for rows, batch in parts:
        if len(rows) != len(batch):
            raise ConfigurationError(f"{len(rows)} rows came with {len(batch)} vectors")
        if batch.input_type != "passage":
            raise ConfigurationError(
                "these vectors were embedded as queries; a table holds passages, embed them so"
            )
        batches = for_columns(batch, layout)
        for start in range(0, len(rows), most):
            few = slice(start, start + most)
            yield stretch_of(
                seen,
                rows[few],
                source=source,
                metadata_fields=metadata_fields,
                vectors=layout.fields(batches, few),
            )
