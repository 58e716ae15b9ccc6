"""Rows of a file or of a script in, passages ready to be copied out, or the reason why not.

Knows the limits of PostgreSQL's types, but no table.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nimbed.errors import ConfigurationError
from nimbed.files.rows import BadRow, Row, id_fault, text_fault

__all__ = ["Item", "Passage", "Reject", "prepare", "prepare_all", "prepared"]

#: What a script may hand in: a row of a file, (id, text) or (id, text, metadata).
Item = Row | BadRow | tuple[str | int, str] | tuple[str | int, str, Mapping[str, Any]]

# A B-tree entry holds at most 2,704 bytes.
_LONGEST_ID = 2_000
_EMPTY = b"{}"
_length = struct.Struct(">i").pack
# Dates and decimals of typed files become text; NaN would be refused by jsonb. Making an encoder
# takes as long as encoding a row with it.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, default=str).encode
# Stands between the rows that are encoded together; random, so no row can hold it.
_MARK = uuid.uuid4().hex


class Passage(NamedTuple):
    """A row that can be stored.

    Attributes:
        number: Place in the input, from 1.
        id: Primary key.
        text: What is embedded.
        metadata: The other fields, as JSON in UTF-8.
        digest: Names the content; the same digest means nothing to do.
    """

    number: int
    id: str
    text: str
    metadata: bytes
    digest: bytes


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
    except (ValueError, TypeError, RecursionError) as error:
        return Reject(row.number, name, f"the metadata is not JSON: {error}")
    fault = text_fault(row.text)
    if fault:
        return Reject(row.number, name, fault)
    text = row.text.encode()
    fault = _storage_fault(name.encode(), text, metadata)
    if fault:
        return Reject(row.number, name, fault)
    return Passage(row.number, name, row.text, metadata, _digest(text, metadata, vector))


def prepare_all(
    rows: Sequence[Row],
    *,
    source: str,
    metadata_fields: Sequence[str] | None = None,
    vectors: Iterable[bytes],
) -> list[Passage | Reject]:
    """Return what :func:`prepare` gives for each row, in half the time.

    Args:
        rows: The rows.
        source: Names the input.
        metadata_fields: Columns to keep; None keeps all.
        vectors: The rows' ready vectors.
    """
    found = _all_sound(rows, source, metadata_fields)
    if found is None:
        return [
            prepare(row, source=source, metadata_fields=metadata_fields, vector=vector)
            for row, vector in zip(rows, vectors, strict=True)
        ]
    names, texts, raw, metadata = found
    numbers = [row.number for row in rows]
    digests = map(_digest, raw, metadata, vectors)
    return list(map(Passage._make, zip(numbers, names, texts, metadata, digests, strict=True)))


def _all_sound(
    rows: Sequence[Row], source: str, wanted: Sequence[str] | None
) -> tuple[list[str], list[str], list[bytes], list[bytes]] | None:
    """Return names, texts, these in UTF-8, and metadata; None if one row may be a reject."""
    identities = [f"{source}:{row.number}" if row.id is None else row.id for row in rows]
    texts = [row.text for row in rows]
    kinds = set(map(type, identities))
    if not (kinds <= {str, int} and set(map(type, texts)) == {str}):
        return None
    names = list(map(str, identities))
    # Four bytes a character at most; eighteen digits fit 64 bits.
    most = 18 if int in kinds else _LONGEST_ID // 4
    if max(map(len, names)) > most or any(map(str.isspace, texts)) or not all(names + texts):
        return None
    try:
        keys, raw = list(map(str.encode, names)), list(map(str.encode, texts))
        marked: list[object] = [_MARK] * (2 * len(rows) - 1)
        marked[::2] = [_kept(row.columns, wanted) for row in rows]
        metadata = _encode(marked)[1:-1].encode().split(f', "{_MARK}", '.encode())
    except (ValueError, TypeError, RecursionError):
        return None
    everything = b"".join((*keys, *raw, *metadata))
    sound = b"\0" not in everything and b"\\u0000" not in everything
    return (names, texts, raw, metadata) if sound else None


def _digest(text: bytes, metadata: bytes, vector: bytes) -> bytes:
    # The length in front keeps (text, metadata) and a shifted border apart.
    content = b"".join((_length(len(text)), text, metadata, vector))
    return hashlib.blake2b(content, digest_size=16).digest()


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


def _kept(columns: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, Any]:
    if wanted is None:
        return columns if isinstance(columns, dict) else dict(columns)
    return {k: columns[k] for k in wanted if k in columns}


def _json(columns: Mapping[str, Any], wanted: Sequence[str] | None) -> bytes:
    kept = _kept(columns, wanted)
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
