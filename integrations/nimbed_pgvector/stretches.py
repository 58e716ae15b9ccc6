"""The input of a load in, stretches of it that are stored together out.

Knows nothing about databases or models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nimbed.files.items import Item, as_rows
from nimbed.files.load_report import Reject
from nimbed.files.rows import BadRow, Row
from nimbed.files.seen_ids import SeenIds, came_before
from nimbed_pgvector.passages import Passages, prepare

__all__ = ["Stretch", "stretch_of", "stretches"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive passages of the input, no id twice, and their vectors where they have any.

    Attributes:
        passages: The passages.
        rejects: The rows that cannot be stored.
        vectors: The fields of each passage's vectors; None if it is still to be embedded.
    """

    passages: Passages
    rejects: Sequence[Reject] = field(default_factory=list[Reject])
    vectors: Sequence[bytes] | None = None

    def select(self, places: Sequence[int]) -> Stretch:
        """Return the passages at the given places with their vectors, and no rejects."""
        vectors = None if self.vectors is None else [self.vectors[place] for place in places]
        return Stretch(self.passages.select(places), vectors=vectors)


def stretches(
    items: Iterable[Item],
    *,
    rows: int,
    source: str,
    metadata_fields: Sequence[str] | None = None,
) -> Iterator[Stretch]:
    """Yield the input in stretches of so many rows, without vectors.

    Args:
        items: Rows, or tuples as scripts have them.
        rows: How many.
        source: Names the input; a row without an id is called ``source:number``.
        metadata_fields: Columns to keep, where a row has them; None keeps all.
    """
    seen, left = SeenIds(), as_rows(items)
    while some := list(itertools.islice(left, rows)):
        good = [row for row in some if isinstance(row, Row)]
        bad = [Reject(row.number, None, row.reason) for row in some if isinstance(row, BadRow)]
        made = stretch_of(seen, good, source=source, metadata_fields=metadata_fields)
        yield Stretch(made.passages, [*bad, *made.rejects])


def stretch_of(
    seen: SeenIds,
    rows: Sequence[Row],
    *,
    source: str,
    metadata_fields: Sequence[str] | None,
    vectors: Sequence[bytes] | None = None,
) -> Stretch:
    """Return some rows as a stretch; of an id that comes twice, the first passage is kept."""
    passages, places, rejects = prepare(
        rows, source=source, metadata_fields=metadata_fields, vectors=vectors
    )
    if vectors is not None and rejects:
        vectors = [vectors[place] for place in places]
    made = Stretch(passages, rejects, vectors)
    again = seen.repeated(passages.ids)
    if not again:
        return made
    unique = made.select([place for place in range(len(passages)) if place not in again])
    repeated = [
        came_before(passages.numbers[place], passages.ids[place]) for place in sorted(again)
    ]
    return Stretch(unique.passages, [*rejects, *repeated], unique.vectors)
