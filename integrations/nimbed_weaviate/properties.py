"""A row's fields in, properties that Weaviate stores as they are, or why it cannot.

Knows the limits of Weaviate's wire and names, but no collection.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nimbed.inputs import encodable

__all__ = ["UnfitError", "properties_of"]

_NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,230}")
_RESERVED = frozenset({"id", "_id", "_additional", "vector", "vectors"})
# A number travels as a double: a larger integer would come out as another one.
_EXACT = 2**53


class UnfitError(ValueError):
    """A field that Weaviate would refuse, or change without a word."""


def properties_of(columns: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, Any]:
    """Return fields as properties, in the order of their names.

    Dates become RFC 3339 (without a zone: UTC), decimals and other things text, as loaders of
    files give them; an empty field is left out.

    Args:
        columns: The fields.
        wanted: Those to keep, where the row has them; None keeps all.

    Raises:
        UnfitError: If a name or a value cannot be stored.
    """
    names = columns if wanted is None else [name for name in wanted if name in columns]
    return {
        name: _plain(name, columns[name]) for name in sorted(names) if _kept(name, columns[name])
    }


def _kept(name: object, value: object) -> bool:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UnfitError(
            f"{name!r} is no name for a property: letters, digits and _, no digit in front"
        )
    if name in _RESERVED:
        raise UnfitError(f"Weaviate keeps the name {name!r} for itself; call the field otherwise")
    return value is not None


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > _EXACT:
            raise UnfitError(
                f"{name} is {value}; numbers travel to Weaviate as doubles, which are exact to "
                f"2^53: store it as text"
            )
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitError(f"{name} is {value}, which Weaviate does not store")
        return value
    if isinstance(value, datetime.datetime):
        return value.isoformat() + ("" if value.tzinfo else "Z")
    if isinstance(value, datetime.date):
        return f"{value.isoformat()}T00:00:00Z"
    if isinstance(value, Mapping):
        return {
            key: _plain(f"{name}.{key}", each)
            for key, each in sorted(value.items())
            if _kept(key, each)
        }
    if isinstance(value, (list, tuple)):
        return _plain_list(name, value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise UnfitError(f"{name} holds bytes; store them as text in base64")
    text = str(value)
    if not encodable(text):
        raise UnfitError(f"{name} is not valid Unicode")
    return text


def _plain_list(name: str, values: Sequence[Any]) -> list[Any]:
    """Return a list as one of a single kind: Weaviate's arrays know no other."""
    plain: list[Any] = [None if each is None else _plain(name, each) for each in values]
    kinds = {type(each) for each in plain}
    if kinds == {int, float}:
        return [float(each) for each in plain]
    if len(kinds) > 1 or kinds & {list, type(None)}:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UnfitError(f"{name} is a list of {listed}; Weaviate's lists hold one plain kind")
    return plain
