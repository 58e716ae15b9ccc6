"""A stream of rows, embedded in stretches that fit in memory.

Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from nimbed.batch import EmbeddingBatch
from nimbed.errors import InputError, name_rows
from nimbed.files.refusals import embed_accepted
from nimbed.files.rejects import Rejects
from nimbed.files.rows import Row
from nimbed.progress import Progress

__all__ = ["Embed", "chunked", "embed_chunk"]

# A chunk is closed at either bound. Rows: enough to sort by length, and few enough that all are
# tokenized before the first is embedded. Characters: what is held when the texts are long.
_CHUNK_ROWS = 4096
_CHUNK_CHARACTERS = 2**23


class Embed(Protocol):
    """An embedder's ``embed`` whose options are chosen."""

    def __call__(self, inputs: Sequence[str], /, *, progress: Progress) -> EmbeddingBatch:
        """Embed texts."""
        ...


def chunked(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows in lists that are large enough to embed well and small enough to hold."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text)
        if len(chunk) >= _CHUNK_ROWS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def embed_chunk(
    rows: list[Row], embed: Embed, rejects: Rejects, finished: Callable[[int], None]
) -> tuple[list[Row], EmbeddingBatch]:
    """Embed the rows that can be embedded.

    Args:
        rows: A chunk.
        embed: Makes the vectors.
        rejects: Takes the rows that the embedder refuses.
        finished: Told how many rows have just been dealt with.

    Returns:
        The rows that were embedded, and their vectors.

    Raises:
        InputError: If bad rows stop the job, or the embedder does not say which row it refuses.
    """
    told, size = 0, len(rows)

    def tell(done: int, _total: int) -> None:
        nonlocal told
        if done > told:
            finished(done - told)
            told = done

    def refuse(places: list[int], error: InputError) -> None:
        refused = [rows[place] for place in places]
        # The embedder counts from the start of the chunk; a person counts lines.
        reason = str(error).replace(name_rows(error.rows), rejects.places(refused))
        rejects.reject(refused, reason)

    texts = [row.text for row in rows]
    places, batch = embed_accepted(texts, lambda some: embed(some, progress=tell), refuse)
    tell(size, size)
    return [rows[place] for place in places], batch
