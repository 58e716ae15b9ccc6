"""The JSON of an embeddings response.

Rows are written one by one, so that a thread that renders a large answer lets the event loop in
between them.
"""

from __future__ import annotations

import sys
from binascii import b2a_base64
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

__all__ = ["as_base64", "as_lists", "render"]


def render(
    vectors: NDArray[Any],
    *,
    model: str,
    tokens: int,
    encoding_format: Literal["float", "base64"],
) -> bytes:
    """Return the body of an answer.

    Args:
        vectors: Array of shape (n, width), n at least 1, of float32, int8 or uint8.
        model: The served name.
        tokens: What the model read, prompts and special tokens included.
        encoding_format: ``base64`` writes the bytes of a row: little-endian float32, or raw
            int8 or uint8.
    """
    rows = np.ascontiguousarray(vectors)
    written = as_base64(rows) if encoding_format == "base64" else as_lists(rows)
    # A row is copied at once, since orjson leaves it in a buffer of twice its size; the answer,
    # which may be 700 kB, is joined once. Fresh pages of memory cost more than the digits.
    opening = b'{"object":"list","data":['
    pieces = []
    for index, row in enumerate(written):
        pieces.append(b'%b{"object":"embedding","index":%d,"embedding":%b' % (opening, index, row))
        opening = b"},"
    pieces.append(
        b'}],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (orjson.dumps(model), tokens, tokens)
    )
    return b"".join(pieces)


def as_lists(rows: NDArray[Any]) -> Iterator[bytes]:
    """Give each row as a JSON list."""
    return (orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows)


def as_base64(rows: NDArray[Any]) -> Iterator[bytes]:
    """Give each row's bytes, little-endian, as a JSON string of base64."""
    little = rows if sys.byteorder == "little" else rows.byteswap()
    return (b'"%b"' % b2a_base64(row, newline=False) for row in little)
