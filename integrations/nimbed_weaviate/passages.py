"""Rows of a file or of a script in, passages ready to be embedded, or the reason why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weaviate.util import generate_uuid5

from nimbed.files.items import Item, as_rows, identity
from nimbed.files.load_report import Reject
from nimbed.files.rows import BadRow, Row, id_fault, text_fault
from nimbed.files.seen_ids import SeenIds, came_before
from nimbed_weaviate.contract import DIGEST, ID
from nimbed_weaviate.properties import UnfitError, properties_of

__all__ = ["Chunk", "Layout", "Passage", "chunks"]

# Older servers take 10 MB a message; vectors and the wire's own bytes come on top.
_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Passage:
    """A row that can be stored.

    Attributes:
        number: Place in the input, from 1.
        id: The row's own name.
        uuid: What Weaviate knows the object by, made of the id.
        text: What is embedded.
        digest: Names the content and the space of its vector; the same means nothing to do.
        properties: What is stored beside the vector.
        size: About how many bytes that takes.
    """

    number: int
    id: str
    uuid: str
    text: str
    digest: str
    properties: Mapping[str, Any]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How rows become objects.

    Attributes:
        source: Names the input; a row without an id is called ``source:number``.
        text_property: Where the text goes.
        metadata_fields: Fields to keep, where a row has them; None keeps all.
        fingerprint: Names the space of the vectors.
    """

    source: str
    text_property: str
    metadata_fields: Sequence[str] | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive passages of the input, no id twice, and the rows that cannot be any."""

    passages: Sequence[Passage]
    rejects: Sequence[Reject]


def chunks(items: Iterable[Item], layout: Layout, *, rows: int) -> Iterator[Chunk]:
    """Yield the input in chunks; of an id that comes twice, the first row is kept.

    Args:
        items: Rows, or tuples as scripts have them.
        layout: How they become objects.
        rows: Most rows in a chunk; long texts make it shorter.
    """
    seen = SeenIds()
    passages: list[Passage] = []
    rejects: list[Reject] = []
    size = 0
    for row in as_rows(items):
        made = _prepared(row, layout)
        if isinstance(made, Reject):
            rejects.append(made)
        else:
            if size + made.size > _CHUNK_BYTES and passages:
                yield _unique(seen, passages, rejects)
                passages, rejects, size = [], [], 0
            passages.append(made)
            size += made.size
        if len(passages) + len(rejects) >= rows:
            yield _unique(seen, passages, rejects)
            passages, rejects, size = [], [], 0
    if passages or rejects:
        yield _unique(seen, passages, rejects)


def _unique(seen: SeenIds, passages: Sequence[Passage], rejects: Sequence[Reject]) -> Chunk:
    """Return a chunk in which the passages whose id came before are rejects."""
    again = seen.repeated([passage.id for passage in passages])
    repeated = [came_before(passages[place].number, passages[place].id) for place in sorted(again)]
    kept = [passage for place, passage in enumerate(passages) if place not in again]
    return Chunk(kept, [*rejects, *repeated])


def _prepared(row: Row | BadRow, layout: Layout) -> Passage | Reject:
    if isinstance(row, BadRow):
        return Reject(row.number, None, row.reason)
    key = identity(row, layout.source)
    fault = id_fault(key)
    if fault:
        return Reject(row.number, None, fault)
    name = str(key)
    fault = text_fault(row.text)
    if fault:
        return Reject(row.number, name, fault)
    try:
        properties = properties_of(row.columns, layout.metadata_fields)
    except UnfitError as error:
        return Reject(row.number, name, str(error))
    taken = {layout.text_property, ID, DIGEST} & set(properties)
    if taken:
        return Reject(row.number, name, f"its field {min(taken)!r} would replace nimbed's own")
    properties[layout.text_property] = row.text
    content = json.dumps(properties, sort_keys=True).encode()
    if len(content) > _CHUNK_BYTES:
        return Reject(
            row.number, name, f"it is {len(content):,} bytes long; a message holds {_CHUNK_BYTES:,}"
        )
    space = hashlib.blake2b(layout.fingerprint.encode(), digest_size=16).digest()
    digest = hashlib.blake2b(content, digest_size=16, key=space).hexdigest()
    return Passage(
        number=row.number,
        id=name,
        uuid=generate_uuid5(name),
        text=row.text,
        digest=digest,
        properties=properties | {ID: name, DIGEST: digest},
        size=len(content),
    )
