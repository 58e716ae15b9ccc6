"""A record of a file, as what can be embedded or as the reason why it cannot.

Knows nothing about formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nimbed.inputs import encodable

__all__ = ["BLANK", "BadRow", "Row", "id_fault", "text_fault"]

BLANK = "the text is blank"

_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Row:
    """A record with a text.

    Attributes:
        number: Place in the source, from 1: the line where the record starts, or the row of a
            parquet file.
        text: What is embedded.
        id: The record's own name, if the caller said which field holds it.
        columns: Every other field, to be carried along.
    """

    number: int
    text: str
    id: str | int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that cannot be embedded.

    Attributes:
        number: Place in the source, as in :class:`Row`.
        reason: What is wrong with it.
    """

    number: int
    reason: str


def text_fault(text: object) -> str | None:
    """Return why a value cannot be embedded, or None if it can."""
    if not isinstance(text, str):
        return f"the text is {_kind(text)}, expected a string"
    if not text or text.isspace():
        return BLANK
    return None if encodable(text) else "the text is not valid Unicode"


def id_fault(value: object) -> str | None:
    """Return why a value cannot be an id, or None if it can."""
    if isinstance(value, str):
        if not value:
            return "the id is empty"
        return None if encodable(value) else "the id is not valid Unicode"
    if isinstance(value, bool) or not isinstance(value, int):
        return f"the id is {_kind(value)}, expected a string or an integer"
    return None if value in _INT64 else f"the id {value} does not fit 64 bits"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
