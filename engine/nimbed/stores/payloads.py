"""What the clients of databases take: the vectors of a batch as arrays, lists, bytes or text."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch, normalize
from nimbed.errors import ConfigurationError
from nimbed.kinds import MultiVectorBatch, SparseBatch

__all__ = ["PAYLOADS", "AnyBatch", "Payload", "Vectors"]

AnyBatch: TypeAlias = EmbeddingBatch | SparseBatch | MultiVectorBatch
Vectors: TypeAlias = NDArray[Any] | list[Any]

Payload = Literal[
    "bit text",
    "bson vector",
    "code array",
    "code bytes",
    "code lists",
    "codes as floats",
    "codes as float lists",
    "dimensions, indices and values",
    "float array",
    "float bytes",
    "float lists",
    "indices and values",
    "named cells",
    "named weights",
    "packed array",
    "packed bytes",
    "packed bytes, lsb first",
    "packed hex",
    "packed signed lists",
    "signed code array",
    "signed code bytes",
    "signs",
    "sparsevec text",
    "token code blocks",
    "token code lists",
    "token float blocks",
    "token float lists",
    "token hex lists",
    "token weights",
    "unit floats",
    "vector text",
    "zeros and ones",
    "zeros and ones bytes",
    "zeros and ones lists",
]

# Subtype 9 of BSON begins with its element type and the number of unused bits.
_BSON_FLOAT32, _BSON_INT8, _BSON_PACKED_BIT = b"\x27\x00", b"\x03\x00", b"\x10\x00"


# Weights of a vector that pgvector's sparsevec holds.
_SPARSEVEC_MOST = 16_000


def _rows(vectors: NDArray[Any], dtype: str) -> list[bytes]:
    """Return the bytes of each row; ``dtype`` fixes the byte order on the wire."""
    fixed = np.ascontiguousarray(vectors, dtype=dtype)
    return [row.tobytes() for row in fixed]


def _rows_hex(bits: NDArray[np.uint8]) -> list[str]:
    return [row.hex() for row in _rows(bits, "u1")]


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


def _named(batch: SparseBatch) -> list[dict[str, float]]:
    return [{str(token): weight for token, weight in row.items()} for row in batch.dicts()]


def _sparsevec_text(batch: SparseBatch) -> list[str]:
    """Return ``{id:weight,...}/dimensions``, in which ids count from 1.

    Raises:
        ConfigurationError: If a vector has more weights than pgvector stores.
    """
    lengths = np.diff(batch.offsets)
    if (lengths > _SPARSEVEC_MOST).any():
        row = int(np.argmax(lengths > _SPARSEVEC_MOST))
        raise ConfigurationError(
            f"pgvector stores at most {_SPARSEVEC_MOST} weights a vector; row {row} has "
            f"{lengths[row]}: embed with max_active={_SPARSEVEC_MOST} or less"
        )
    inner = (",".join(f"{token + 1}:{w:.9g}" for token, w in row.items()) for row in batch.dicts())
    return [f"{{{each}}}/{batch.spec.dimensions}" for each in inner]


def _triples(batch: SparseBatch) -> list[tuple[int, list[int], array[float]]]:
    size = batch.spec.dimensions
    return [(size, ids.tolist(), array("f", weights)) for ids, weights in batch.rows()]


def _blocks(lists: list[list[list[Any]]]) -> list[dict[str, Any]]:
    """Return token vectors as Vespa's mixed tensors, the tokens called by their places."""
    return [
        {"blocks": {str(place): vector for place, vector in enumerate(vectors)}}
        for vectors in lists
    ]


def _token_codes(batch: MultiVectorBatch) -> list[list[list[int]]]:
    """Return levels of int8, and packed bits as the signed bytes that hold them."""
    return [vectors.view(np.int8).tolist() for vectors in batch.rows()]


#: Every form that a client may want, by its name; each gives one element a vector, and takes the
#: batches of the kind of vector that it is for.
PAYLOADS: Mapping[Payload, Callable[[Any], Vectors]] = {
    "bit text": _bit_text,
    "bson vector": _bson,
    "code array": lambda batch: batch.vectors,
    "code bytes": lambda batch: _rows(batch.vectors, batch.vectors.dtype.str),
    "code lists": lambda batch: _codes(batch).tolist(),
    "codes as floats": lambda batch: batch.vectors.astype(np.float32),
    "codes as float lists": lambda batch: batch.vectors.astype(np.float32).tolist(),
    "float array": lambda batch: batch.vectors,
    "float bytes": lambda batch: _rows(batch.vectors, "<f4"),
    "dimensions, indices and values": _triples,
    "float lists": lambda batch: batch.vectors.tolist(),
    "indices and values": lambda batch: [
        {"indices": ids.tolist(), "values": weights.tolist()} for ids, weights in batch.rows()
    ],
    "named cells": lambda batch: [{"cells": row} for row in _named(batch)],
    "named weights": _named,
    "packed array": lambda batch: np.ascontiguousarray(batch.bits()),
    "packed bytes": lambda batch: _rows(batch.bits(), "u1"),
    "packed bytes, lsb first": _least_significant_first,
    "packed hex": lambda batch: _rows_hex(batch.bits()),
    "packed signed lists": lambda batch: batch.bits().view(np.int8).tolist(),
    "signed code array": _codes,
    "signed code bytes": lambda batch: _rows(_codes(batch), "i1"),
    "signs": lambda batch: batch.signs().tolist(),
    "sparsevec text": _sparsevec_text,
    "token code blocks": lambda batch: _blocks(_token_codes(batch)),
    "token code lists": _token_codes,
    "token float blocks": lambda batch: _blocks(batch.lists()),
    "token float lists": lambda batch: batch.lists(),
    "token hex lists": lambda batch: [_rows_hex(vectors) for vectors in batch.rows()],
    "token weights": lambda batch: batch.dicts(),
    "unit floats": _unit_floats,
    "vector text": _vector_text,
    "zeros and ones": lambda batch: _ones(batch).astype(np.float32),
    "zeros and ones bytes": lambda batch: _rows(_ones(batch), "<f4"),
    "zeros and ones lists": lambda batch: _ones(batch).astype(np.float32).tolist(),
}
