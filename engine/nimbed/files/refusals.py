"""Texts in, the vectors of those that an embedder takes out.

Knows nothing about files or databases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from nimbed.batch import EmbeddingBatch
from nimbed.embedder import Embedder
from nimbed.errors import InputError, name_rows
from nimbed.files.load_report import Reject
from nimbed.spec import Truncate, VectorSpec

__all__ = ["embed_accepted", "embedding_passages", "refused_rows"]


def embed_accepted(
    texts: Sequence[str],
    embed: Callable[[Sequence[str]], EmbeddingBatch],
    refuse: Callable[[list[int], InputError], None],
) -> tuple[list[int], EmbeddingBatch]:
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


def embedding_passages(
    embedder: Embedder, spec: VectorSpec, *, truncate: Truncate
) -> Callable[[Sequence[str]], EmbeddingBatch]:
    """Return what embeds passages as a spec says."""
    return functools.partial(
        embedder.embed,
        input_type="passage",
        embedding_type=spec.embedding_type,
        dimensions=spec.dimensions,
        int8_scale=spec.int8_scale,
        truncate=truncate,
    )


def refused_rows(error: InputError, numbers: Sequence[int], ids: Sequence[str]) -> list[Reject]:
    """Return the rows that an embedder refused, each by its own number in the reason."""
    said = str(error)
    return [
        Reject(number, name, said.replace(name_rows(error.rows), name_rows([number])))
        for number, name in zip(numbers, ids, strict=True)
    ]
