"""What the clients of databases take: the vectors of a batch as arrays, lists, bytes or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.quantize import normalize

__all__ = ["PAYLOADS", "Payload", "Vectors"]

Vectors = NDArray[Any] | list[bytes] | list[str] | list[list[int]] | list[list[float]]

Payload = Literal[
    "bit text",
    "bson vector",
    "code array",
    "code bytes",
    "code lists",
    "codes as floats",
    "codes as float lists",
    "float array",
    "float bytes",
    "float lists",
    "packed array",
    "packed bytes",
    "packed bytes, lsb first",
    "packed hex",
    "packed signed lists",
    "signed code array",
    "signed code bytes",
    "signs",
    "unit floats",
    "vector text",
    "zeros and ones",
    "zeros and ones bytes",
    "zeros and ones lists",
]

# Subtype 9 of BSON begins with its element type and the number of unused bits.
_BSON_FLOAT32, _BSON_INT8, _BSON_PACKED_BIT = b"\x27\x00", b"\x03\x00", b"\x10\x00"


def _rows(array: NDArray[Any], dtype: str) -> list[bytes]:
    """Return the bytes of each row; ``dtype`` fixes the byte order on the wire."""
    fixed = np.ascontiguousarray(array, dtype=dtype)
    return [row.tobytes() for row in fixed]


def _codes(batch: EmbeddingBatch) -> NDArray[Any]:
    """Return int8 codes; uint8 is shifted by 128, which no Euclidean distance can see."""
    if batch.spec.embedding_type == "uint8":
        return (batch.vectors ^ 0x80).view(np.int8)
    return batch.vectors


def _ones(batch: EmbeddingBatch) -> NDArray[np.uint8]:
    return np.unpackbits(batch.bits(), axis=1)


def _bit_text(batch: EmbeddingBatch) -> list[str]:
    digits = _ones(batch) + np.uint8(ord("0"))
    return [row.tobytes().decode("ascii") for row in digits]


def _bson(batch: EmbeddingBatch) -> list[bytes]:
    if batch.spec.packed:
        return [_BSON_PACKED_BIT + row for row in _rows(batch.bits(), "u1")]
    if batch.spec.embedding_type == "float":
        return [_BSON_FLOAT32 + row for row in _rows(batch.vectors, "<f4")]
    return [_BSON_INT8 + row for row in _rows(_codes(batch), "i1")]


def _least_significant_first(batch: EmbeddingBatch) -> list[bytes]:
    return _rows(np.packbits(_ones(batch), axis=1, bitorder="little"), "u1")


def _unit_floats(batch: EmbeddingBatch) -> NDArray[np.float32]:
    """Return rows of unit length: their inner product is the cosine."""
    return normalize(batch.floats())


def _vector_text(batch: EmbeddingBatch) -> list[str]:
    return ["[" + ",".join(map(str, row)) + "]" for row in batch.vectors.tolist()]


#: Every form that a client may want, by its name; each gives one element a vector.
PAYLOADS: Mapping[Payload, Callable[[EmbeddingBatch], Vectors]] = {
    "bit text": _bit_text,
    "bson vector": _bson,
    "code array": lambda batch: batch.vectors,
    "code bytes": lambda batch: _rows(batch.vectors, batch.vectors.dtype.str),
    "code lists": lambda batch: _codes(batch).tolist(),
    "codes as floats": lambda batch: batch.vectors.astype(np.float32),
    "codes as float lists": lambda batch: batch.vectors.astype(np.float32).tolist(),
    "float array": lambda batch: batch.vectors,
    "float bytes": lambda batch: _rows(batch.vectors, "<f4"),
    "float lists": lambda batch: batch.vectors.tolist(),
    "packed array": lambda batch: np.ascontiguousarray(batch.bits()),
    "packed bytes": lambda batch: _rows(batch.bits(), "u1"),
    "packed bytes, lsb first": _least_significant_first,
    "packed hex": lambda batch: [row.hex() for row in _rows(batch.bits(), "u1")],
    "packed signed lists": lambda batch: batch.bits().view(np.int8).tolist(),
    "signed code array": _codes,
    "signed code bytes": lambda batch: _rows(_codes(batch), "i1"),
    "signs": lambda batch: batch.signs().tolist(),
    "unit floats": _unit_floats,
    "vector text": _vector_text,
    "zeros and ones": lambda batch: _ones(batch).astype(np.float32),
    "zeros and ones bytes": lambda batch: _rows(_ones(batch), "<f4"),
    "zeros and ones lists": lambda batch: _ones(batch).astype(np.float32).tolist(),
}
