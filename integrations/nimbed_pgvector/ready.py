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
from nimbed_pgvector.passages import Passage, Reject, SeenIds, prepare
from nimbed_pgvector.vectors import for_columns

__all__ = ["Ready", "ready_stretches"]

# Rows a transaction: the server works on one stretch while Python encodes the next.
_STRETCH_ROWS = 2048

#: Rows and their vectors, as many of the one as of the other.
Ready = tuple[Sequence[Row], EmbeddingBatch]


def ready_stretches(
    parts: Iterable[Ready],
    layout: Layout,
    *,
    source: str,
    metadata_fields: Sequence[str] | None = None,
) -> Iterator[Stretch]:
    """Yield each part as stretches that bring their own vectors.

    Raises:
        ConfigurationError: If a part has not as many rows as vectors, or holds queries.
    """
    seen = SeenIds()
    for rows, batch in parts:
        if len(rows) != len(batch):
            raise ConfigurationError(f"{len(rows)} rows came with {len(batch)} vectors")
        if batch.input_type != "passage":
            raise ConfigurationError(
                "these vectors were embedded as queries; a table holds passages, embed them so"
            )
        for start in range(0, len(rows), _STRETCH_ROWS):
            stretch = slice(start, start + _STRETCH_ROWS)
            few = batch if len(batch) <= _STRETCH_ROWS else batch.select(stretch)
            yield _stretch(seen, rows[stretch], few, layout, source, metadata_fields)


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
    places: dict[str, int] = {}
    passages: list[Passage] = []
    rejects: list[Reject] = []
    for place, row in enumerate(rows):
        vector = raw[place * width : (place + 1) * width]
        item = prepare(row, source=source, metadata_fields=metadata_fields, vector=vector)
        if isinstance(item, Passage):
            places.setdefault(item.id, place)
            passages.append(item)
        else:
            rejects.append(item)
    unique = without_repeats(seen, passages, rejects)
    return Stretch(unique.passages, unique.rejects, _picking(for_columns(batch, layout), places))


def _picking(columns: Sequence[EmbeddingBatch], places: dict[str, int]) -> Vectorise:
    def vectorise(
        passages: Sequence[Passage],
    ) -> tuple[Sequence[Passage], Sequence[EmbeddingBatch], Sequence[Reject]]:
        if len(passages) == len(columns[0]):
            return passages, columns, []
        rows = [places[passage.id] for passage in passages]
        return passages, [batch.select(rows) for batch in columns], []

    return vectorise
