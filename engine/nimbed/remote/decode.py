"""The body of an answer to an array, after every reason to distrust it was checked.

Knows nothing about the caller's rows, slicing or quantisation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed.remote.codec import from_base64, from_json

__all__ = ["Answer", "Malformed", "decode"]


class Malformed(ValueError):
    """An answer that is none; ``.positions`` are the inputs concerned, if not all are."""

    def __init__(self, message: str, positions: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.positions = tuple(positions)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Answer:
    """A verified answer.

    Attributes:
        vectors: float32 of shape (n, width), or uint8 for packed bits; in the order of the
            inputs.
        tokens: Tokens the server read for the whole request, or None.
        model: Name of the model that answered, or None.
        base64: Whether the vectors came as base64.
    """

    vectors: NDArray[Any]
    tokens: int | None
    model: str | None
    base64: bool


def decode(
    body: bytes, *, count: int, widths: Collection[int] = (), packed: bool = False
) -> Answer:
    """Read an embeddings answer.

    Args:
        body: JSON of OpenAI's shape; vectors as lists of numbers or as base64 of little-endian
            float32.
        count: Inputs of the request.
        widths: Widths that were promised; empty if none was.
        packed: Whether packed bits (lists of bytes) were asked for, instead of floats.

    Raises:
        Malformed: If the answer does not hold exactly one finite vector of one promised width
            for each input.
    """
    try:
        said = from_json(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"an answer of {len(body)} bytes that is not JSON ({error})") from None
    items = said.get("data") if isinstance(said, dict) else None
    if not isinstance(items, list):
        raise Malformed("an answer without a list of data")
    ordered = _in_order(items, count)
    as_text = isinstance(ordered[0], str)
    vectors: NDArray[Any]
    if packed:
        vectors = _bytes(ordered, widths)
    elif as_text:
        vectors = _from_base64(ordered, widths)
    else:
        vectors = _from_lists(ordered, widths)
    usage = said.get("usage")
    model = said.get("model")
    return Answer(
        vectors=vectors,
        tokens=_tokens(usage) if isinstance(usage, dict) else None,
        model=model if isinstance(model, str) else None,
        base64=as_text and not packed,
    )


def _in_order(items: list[Any], count: int) -> list[Any]:
    """Return the embeddings by index, which must be exactly 0 to count - 1."""
    if len(items) != count:
        raise Malformed(f"{len(items)} vectors for {count} inputs")
    ordered: list[Any] = [None] * count
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        if type(index) is not int or not 0 <= index < count:
            raise Malformed(f"a vector with index {index!r} for {count} inputs")
        if ordered[index] is not None:
            raise Malformed(f"two vectors with index {index}", [index])
        embedding = item.get("embedding")
        if not isinstance(embedding, (str, list)):
            raise Malformed(f"{type(embedding).__name__} in place of vector {index}", [index])
        ordered[index] = embedding
    return ordered


def _from_base64(ordered: list[Any], widths: Collection[int]) -> NDArray[np.float32]:
    # One pass at C speed; only what fails is looked at vector by vector, to name it.
    try:
        raws = list(map(from_base64, ordered))
    except (ValueError, TypeError):
        raise Malformed("base64 that is damaged", _damaged(ordered)) from None
    size = len(raws[0])
    for position, raw in enumerate(raws):
        if len(raw) % 4:
            raise Malformed(f"base64 of {len(raw)} bytes, which are no float32s", [position])
        if len(raw) != size:
            raise _two_widths(len(raw) // 4, size // 4, position)
    _check_width(size // 4, widths, 0)
    joined = np.frombuffer(b"".join(raws), "<f4").astype(np.float32, copy=False)
    return _finite(joined.reshape(len(raws), size // 4))


def _damaged(ordered: list[Any]) -> list[int]:
    positions = []
    for position, text in enumerate(ordered):
        try:
            from_base64(text)
        except (ValueError, TypeError):
            positions.append(position)
    return positions


def _from_lists(ordered: list[Any], widths: Collection[int]) -> NDArray[np.float32]:
    _check_lengths(ordered, widths)
    try:
        # Not dtype=float32: numpy would read the string "1.5" and the value true as numbers.
        wide = np.array(ordered)
    except (ValueError, OverflowError):
        wide = np.array(None)
    if wide.dtype.kind not in "fiu" or wide.ndim != 2:
        raise Malformed("vectors that are not lists of numbers")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity, refused below
        return _finite(wide.astype(np.float32))


def _bytes(ordered: list[Any], widths: Collection[int]) -> NDArray[np.uint8]:
    _check_lengths(ordered, widths)
    wide = np.array(ordered)
    if wide.dtype.kind != "i" or wide.ndim != 2 or wide.min() < 0 or wide.max() > 255:
        raise Malformed("packed vectors that are not lists of bytes")
    return wide.astype(np.uint8)


def _check_lengths(ordered: list[Any], widths: Collection[int]) -> None:
    for position, embedding in enumerate(ordered):
        if not isinstance(embedding, list):
            raise Malformed("vectors of two encodings", [position])
        if not position:
            _check_width(len(embedding), widths, position)
        elif len(embedding) != len(ordered[0]):
            raise _two_widths(len(embedding), len(ordered[0]), position)


def _check_width(width: int, widths: Collection[int], position: int) -> None:
    if width < 1 or (widths and width not in widths):
        promised = " or ".join(map(str, sorted(widths))) or "at least 1"
        raise Malformed(f"vectors of width {width} where {promised} was promised", [position])


def _two_widths(width: int, first: int, position: int) -> Malformed:
    return Malformed(f"vectors of width {first} and {width} in one answer", [position])


def _finite(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise Malformed("NaN or infinity in a vector", np.flatnonzero(~finite).tolist())
    return vectors


def _tokens(usage: dict[str, Any]) -> int | None:
    for name in ("prompt_tokens", "total_tokens"):
        value = usage.get(name)
        if type(value) is int and value >= 0:
            return value
    return None
