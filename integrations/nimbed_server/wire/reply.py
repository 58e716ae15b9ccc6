"""Vectors in, the JSON of an embeddings answer out.

Rows are written one by one, so that a thread that renders a large answer lets the event loop in
between them.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

__all__ = ["render"]


def render(
    vectors: NDArray[Any],
    *,
    model: str,
    tokens: int,
    encoding_format: Literal["float", "base64"],
) -> bytes:
    """Return the body of an answer.

    Args:
        vectors: Array of shape (n, width), of float32, int8 or uint8.
        model: The served name.
        tokens: What the model read, prompts and special tokens included.
        encoding_format: ``base64`` writes the bytes of a row: little-endian float32, or raw
            int8 or uint8.
    """
    written = _base64(vectors) if encoding_format == "base64" else _lists(vectors)
    data = b",".join(
        [
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, row)
            for index, row in enumerate(written)
        ]
    )
    return (
        b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (
            data,
            orjson.dumps(model),
            tokens,
            tokens,
        )
    )


def _lists(vectors: NDArray[Any]) -> Iterator[bytes]:
    rows = np.ascontiguousarray(vectors)
    return (orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows)


def _base64(vectors: NDArray[Any]) -> Iterator[bytes]:
    little = vectors.astype(vectors.dtype.newbyteorder("<"), order="C", copy=False)
    return (b'"%b"' % b2a_base64(row, newline=False) for row in little)
