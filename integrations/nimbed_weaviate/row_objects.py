"""Rows as objects of a collection: what can be stored of them, and the batches they come in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from nimbed import EmbeddingBatch
from nimbed.bulk import PassageBatch, SeenIds, drop_repeated
from nimbed.errors import ConfigurationError
from nimbed.rows import Reject, Row, id_fault, row_id, text_fault
from nimbed_weaviate.collection_sink import MESSAGE_BYTES, Content, Passages
from nimbed_weaviate.properties import (
    DIGEST,
    ID,
    UnfitError,
    digest,
    encoded_row,
    properties_of,
)

__all__ = ["Ready", "prepare", "ready_batches"]

#: Rows with their vectors.
Ready = tuple[Sequence[Row], EmbeddingBatch]


def prepare(
    rows: Sequence[Row],
    *,
    source: str,
    text_property: str,
    metadata_fields: Sequence[str] | None,
    space: bytes,
    vectors: Sequence[list[float]] | None = None,
) -> tuple[Passages, list[Reject]]:
    """Return the rows that can be stored, and the others.

    Args:
        rows: The rows.
        source: Names the input; a row without an id is called ``source:number``.
        text_property: Where the text goes.
        metadata_fields: Fields to keep, where a row has them; None keeps all.
        space: Names the space of the vectors: in another one, another digest is made.
        vectors: The vector of each row, where they exist.
    """
    made: Passages = PassageBatch(vectors=None if vectors is None else [])
    rejects: list[Reject] = []
    for place, row in enumerate(rows):
        key = row_id(row, source)
        fault = id_fault(key)
        if fault:
            rejects.append(Reject(row.number, None, fault))
            continue
        content = _content(row, text_property, metadata_fields)
        if isinstance(content, str):
            rejects.append(Reject(row.number, str(key), content))
            continue
        properties, encoded = content
        made.numbers.append(row.number)
        made.ids.append(str(key))
        made.texts.append(row.text)
        made.metadata.append(Content(properties, len(encoded)))
        if made.vectors is not None and vectors is not None:
            made.vectors.append(vectors[place])
        # A Digest's value, without the object.
        made.digests.append(digest(row.text.encode(), space) + digest(encoded))
    return made, rejects


def _content(
    row: Row, text_property: str, fields: Sequence[str] | None
) -> tuple[dict[str, Any], bytes] | str:
    """Return what is stored of a row and the bytes that name it, or why it cannot be stored."""
    fault = text_fault(row.text)
    if fault:
        return fault
    try:
        properties = properties_of(row.columns, fields)
    except UnfitError as error:
        return str(error)
    taken = _taken(tuple(properties), text_property)
    if taken is not None:
        return f"its field {taken!r} would replace nimbed's own"
    properties[text_property] = row.text
    encoded = encoded_row(properties)
    if len(encoded) > MESSAGE_BYTES:
        return f"it is {len(encoded):,} bytes long; a message holds {MESSAGE_BYTES:,}"
    return properties, encoded


@functools.lru_cache(256)
def _taken(names: tuple[str, ...], text_property: str) -> str | None:
    """Return the first of a row's names that nimbed needs itself, or None: rows share theirs."""
    own = (name for name in names if name in (text_property, ID) or name.startswith(DIGEST))
    return min(own, default=None)


def ready_batches(
    parts: Iterable[Ready],
    check: Callable[..., tuple[Passages, list[Reject]]],
    encode: Callable[[EmbeddingBatch], list[list[float]]],
    *,
    rows: int,
) -> Iterator[tuple[Passages, list[Reject]]]:
    """Yield parts of an input that has its vectors as batches that bring them.

    Args:
        parts: Rows and their vectors.
        check: Makes objects of rows and vectors, as :func:`prepare` does.
        encode: Gives the vectors the form that Weaviate compares.
        rows: Rows a batch.

    Raises:
        ConfigurationError: If a part has not as many rows as vectors, or holds queries.
    """
    seen = SeenIds()
    for some, batch in parts:
        if len(some) != len(batch):
            raise ConfigurationError(f"{len(some)} rows came with {len(batch)} vectors")
        if batch.input_type != "passage":
            raise ConfigurationError(
                "these vectors were embedded as queries; a collection holds passages, so embed "
                "the texts again with input_type='passage'"
            )
        vectors = encode(batch)
        for start in range(0, len(some), rows):
            few = slice(start, start + rows)
            made, rejects = check(some[few], vectors=vectors[few])
            yield drop_repeated(seen, made, rejects)
