"""Rows of a file or of a script in, passages ready to be copied out, or the reason why not.

Knows the limits of PostgreSQL's types, but no table.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import ConfigurationError
from nimbed.files.rows import BadRow, Row, id_fault, text_fault

__all__ = ["Item", "Passage", "Reject", "SeenIds", "prepare", "prepared"]

#: What a script may hand in: a row of a file, (id, text) or (id, text, metadata).
Item = Row | BadRow | tuple[str | int, str] | tuple[str | int, str, Mapping[str, Any]]

# A B-tree entry holds at most 2,704 bytes.
_LONGEST_ID = 2_000
_EMPTY = b"{}"
_length = struct.Struct(">i").pack
# Dates and decimals of typed files become text; NaN would be refused by jsonb. Making an encoder
# takes as long as encoding a row with it.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, default=str).encode


class Passage(NamedTuple):
    """A row that can be stored.

    Attributes:
        number: Place in the input, from 1.
        id: Primary key.
        text: What is embedded.
        digest: Names the content; the same digest means nothing to do.
        fields: The COPY fields id, text, metadata and digest, each with its length.
    """

    number: int
    id: str
    text: str
    digest: bytes
    fields: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be stored, and why."""

    number: int
    id: str | None
    reason: str


def prepared(
    items: Iterable[Item], *, source: str, metadata_fields: Sequence[str] | None = None
) -> Iterator[Passage | Reject]:
    """Yield every item as a passage or a reject.

    Args:
        items: Rows, or tuples as scripts have them.
        source: Names the input; a row without an id is called ``source:number``.
        metadata_fields: Columns to keep, where a row has them; None keeps all.
    """
    for place, item in enumerate(items, 1):
        if isinstance(item, BadRow):
            yield Reject(item.number, None, item.reason)
        else:
            row = item if isinstance(item, Row) else _row(place, item)
            yield prepare(row, source=source, metadata_fields=metadata_fields)


def prepare(
    row: Row,
    *,
    source: str,
    metadata_fields: Sequence[str] | None = None,
    vector: bytes = b"",
) -> Passage | Reject:
    """Return a row as a passage, or why it cannot be one.

    Args:
        row: The row.
        source: Names the input.
        metadata_fields: Columns to keep, where a row has them; None keeps all.
        vector: The row's ready vector: another one is another content.
    """
    identity: object = f"{source}:{row.number}" if row.id is None else row.id
    fault = id_fault(identity)
    if fault:
        return Reject(row.number, None, fault)
    name = str(identity)
    try:
        metadata = _json(row.columns, metadata_fields)
    except (ValueError, TypeError) as error:
        return Reject(row.number, name, f"the metadata is not JSON: {error}")
    fault = text_fault(row.text)
    if fault:
        return Reject(row.number, name, fault)
    key, text = name.encode(), row.text.encode()
    fault = _storage_fault(key, text, metadata)
    if fault:
        return Reject(row.number, name, fault)
    # The length in front keeps (text, metadata) and a shifted border apart.
    size = _length(len(text))
    digest = hashlib.blake2b(size + text + metadata + vector, digest_size=16).digest()
    fields = b"".join(
        (
            _length(len(key)), key,
            size, text,
            _length(len(metadata) + 1), b"\x01", metadata,
            _length(16), digest,
        )
    )  # fmt: skip
    return Passage(row.number, name, row.text, digest, fields)


class SeenIds:
    """Remembers which ids came before, in eight bytes each.

    Sorted stretches of hashes, merged as they grow. Two different ids share a hash once in
    10^12 loads of ten thousand rows, once in 10^5 loads of ten million; the later row is then
    rejected aloud.
    """

    def __init__(self) -> None:
        self._stretches: list[NDArray[np.int64]] = []

    def repeated(self, ids: Sequence[str]) -> set[int]:
        """Return the places of the ids that came before, here or in an earlier call."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        before = np.zeros(len(ids), bool)
        for stretch in self._stretches:
            places = np.searchsorted(stretch, hashes)
            places[places == len(stretch)] = 0
            before |= stretch[places] == hashes
        _, first = np.unique(hashes, return_index=True)
        again = np.ones(len(ids), bool)
        again[first] = False
        if len(ids):
            self._stretches.append(np.unique(hashes))
        while len(self._stretches) > 1 and (
            len(self._stretches[-2]) <= 2 * len(self._stretches[-1])
        ):
            merged = np.concatenate([self._stretches.pop(), self._stretches.pop()])
            merged.sort(kind="stable")
            self._stretches.append(merged)
        return set(np.flatnonzero(before | again).tolist())


def _row(place: int, item: Any) -> Row:
    if not isinstance(item, tuple) or len(item) not in (2, 3):
        raise ConfigurationError(
            f"a passage is (id, text), (id, text, metadata) or a row of a file; item {place} is "
            f"{type(item).__name__}"
        )
    identity, text, *rest = item
    if identity is None:
        raise ConfigurationError(f"item {place} has no id; give each passage one of its own")
    return Row(place, text, identity, rest[0] if rest else {})


def _json(columns: Mapping[str, Any], wanted: Sequence[str] | None) -> bytes:
    kept = dict(columns) if wanted is None else {k: columns[k] for k in wanted if k in columns}
    return _encode(kept).encode() if kept else _EMPTY


def _storage_fault(key: bytes, text: bytes, metadata: bytes) -> str | None:
    if len(key) > _LONGEST_ID:
        return f"the id is {len(key)} bytes long; an index holds {_LONGEST_ID}"
    # json writes the character as this escape, and a backslash as two.
    escaped = b"\\u0000" in metadata and b"\\u0000" in metadata.replace(b"\\\\", b"")
    if b"\0" in key or b"\0" in text or escaped:
        where = "id" if b"\0" in key else "text" if b"\0" in text else "metadata"
        return f"the {where} holds a NUL character, which PostgreSQL cannot store"
    return None
