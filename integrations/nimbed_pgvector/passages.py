"""Rows of a file or of a script in, passages ready to be copied out, or the reason why not.

Knows the limits of PostgreSQL's types, but no table.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from xxhash import xxh3_128_digest

from nimbed.files.items import identity
from nimbed.files.load_report import Reject
from nimbed.files.rows import Row, id_fault, text_fault

__all__ = ["Passages", "prepare"]

# A B-tree entry holds at most 2,704 bytes.
_LONGEST_ID = 2_000
_length = struct.Struct(">i").pack
# Dates and decimals of typed files become text; NaN would be refused by jsonb. Making an encoder
# takes as long as encoding a row with it.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, default=str).encode
# Stands between the rows that are encoded together; random, so no row can hold it.
_MARK = uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Passages:
    """Rows that can be stored, column by column.

    An object for each row would wake Python's garbage collector again and again, which cost a
    fifth of a load's time.

    Attributes:
        numbers: Places in the input, from 1.
        ids: Primary keys.
        texts: What is embedded.
        metadata: The other fields, as JSON in UTF-8.
        digests: Name the contents; the same digest means nothing to do.
    """

    numbers: list[int] = field(default_factory=list[int])
    ids: list[str] = field(default_factory=list[str])
    texts: list[str] = field(default_factory=list[str])
    metadata: list[bytes] = field(default_factory=list[bytes])
    digests: list[bytes] = field(default_factory=list[bytes])

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, places: Sequence[int]) -> Passages:
        """Return the passages at the given places, in the given order."""
        return Passages(
            [self.numbers[place] for place in places],
            [self.ids[place] for place in places],
            [self.texts[place] for place in places],
            [self.metadata[place] for place in places],
            [self.digests[place] for place in places],
        )


def prepare(
    rows: Sequence[Row],
    *,
    source: str,
    metadata_fields: Sequence[str] | None = None,
    vectors: Sequence[bytes] | None = None,
) -> tuple[Passages, list[int], list[Reject]]:
    """Return the rows that can be stored, their places among the rows, and the others.

    Args:
        rows: The rows.
        source: Names the input; a row without an id is called ``source:number``.
        metadata_fields: Columns to keep, where a row has them; None keeps all.
        vectors: The rows' ready vectors as they are stored: another one is another content.
    """
    if rows:
        sound = _all_sound(rows, source, metadata_fields, vectors)
        if sound is not None:
            return sound, list(range(len(rows))), []
    made, places, rejects = Passages(), list[int](), list[Reject]()
    for place, row in enumerate(rows):
        vector = b"" if vectors is None else vectors[place]
        reject = _add(made, row, source, metadata_fields, vector)
        if reject is None:
            places.append(place)
        else:
            rejects.append(reject)
    return made, places, rejects


def _add(
    made: Passages, row: Row, source: str, wanted: Sequence[str] | None, vector: bytes
) -> Reject | None:
    """Add a row to the passages, or return why it cannot be one."""
    key = identity(row, source)
    fault = id_fault(key)
    if fault:
        return Reject(row.number, None, fault)
    name = str(key)
    try:
        metadata = _encode(_kept(row.columns, wanted)).encode()
    except (ValueError, TypeError, RecursionError) as error:
        return Reject(row.number, name, f"the metadata is not JSON: {error}")
    fault = text_fault(row.text)
    if fault:
        return Reject(row.number, name, fault)
    text = row.text.encode()
    fault = _storage_fault(name.encode(), text, metadata)
    if fault:
        return Reject(row.number, name, fault)
    made.numbers.append(row.number)
    made.ids.append(name)
    made.texts.append(row.text)
    made.metadata.append(metadata)
    made.digests.append(_digest(text, metadata, vector))
    return None


def _all_sound(
    rows: Sequence[Row],
    source: str,
    wanted: Sequence[str] | None,
    vectors: Sequence[bytes] | None,
) -> Passages | None:
    """Return the rows together, in half the time; None if one of them may be a reject."""
    keys = [f"{source}:{row.number}" if row.id is None else row.id for row in rows]
    texts = [row.text for row in rows]
    kinds = set(map(type, keys))
    if not (kinds <= {str, int} and set(map(type, texts)) == {str}):
        return None
    ids = list(map(str, keys))
    # Four bytes a character at most; eighteen digits fit 64 bits.
    most = 18 if int in kinds else _LONGEST_ID // 4
    if max(map(len, ids)) > most or any(map(str.isspace, texts)) or not all(ids + texts):
        return None
    try:
        raw = list(map(str.encode, texts))
        marked: list[object] = [_MARK] * (2 * len(rows) - 1)
        columns = [row.columns for row in rows]
        plain = wanted is None and set(map(type, columns)) == {dict}
        marked[::2] = columns if plain else [_kept(each, wanted) for each in columns]
        metadata = _encode(marked)[1:-1].encode().split(f', "{_MARK}", '.encode())
        everything = b"".join((*map(str.encode, ids), *raw, *metadata))
    except (ValueError, TypeError, RecursionError):
        return None
    if b"\0" in everything or b"\\u0000" in everything:
        return None
    numbers = [row.number for row in rows]
    digests = map(_digest, raw, metadata, repeat(b"") if vectors is None else vectors)
    return Passages(numbers, ids, texts, metadata, list(digests))


def _digest(text: bytes, metadata: bytes, vector: bytes) -> bytes:
    # The length in front keeps (text, metadata) and a shifted border apart. Processors have
    # instructions for SHA-256: it takes two thirds of BLAKE2b's time. A vector's 4 kB are named by
    # XXH3 first, in 0.1 us instead of 2.3: who could forge them could as well store others.
    content = b"".join((_length(len(text)), text, metadata, xxh3_128_digest(vector)))
    return hashlib.sha256(content).digest()[:16]


def _kept(columns: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, Any]:
    if wanted is None:
        return columns if isinstance(columns, dict) else dict(columns)
    return {k: columns[k] for k in wanted if k in columns}


def _storage_fault(key: bytes, text: bytes, metadata: bytes) -> str | None:
    if len(key) > _LONGEST_ID:
        return f"the id is {len(key)} bytes long; an index holds {_LONGEST_ID}"
    # json writes the character as this escape, and a backslash as two.
    escaped = b"\\u0000" in metadata and b"\\u0000" in metadata.replace(b"\\\\", b"")
    if b"\0" in key or b"\0" in text or escaped:
        where = "id" if b"\0" in key else "text" if b"\0" in text else "metadata"
        return f"the {where} holds a NUL character, which PostgreSQL cannot store"
    return None
