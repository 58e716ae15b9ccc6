"""Rows of a job's input: what can be embedded, what cannot and why, and what was left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nimbed.errors import ConfigurationError
from nimbed.inputs import encodable

__all__ = [
    "BLANK",
    "BadRow",
    "Item",
    "Reject",
    "Row",
    "as_rows",
    "id_fault",
    "row_id",
    "text_fault",
    "without_nan",
]

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


#: What a script may hand in: a row of a file, (id, text) or (id, text, metadata).
Item = Row | BadRow | tuple[str | int, str] | tuple[str | int, str, Mapping[str, Any]]


def as_rows(items: Iterable[Item]) -> Iterator[Row | BadRow]:
    """Yield every item as a row; tuples are numbered by their place, from 1.

    Raises:
        ConfigurationError: If an item is neither a row nor such a tuple, or has None for an id.
    """
    for place, item in enumerate(items, 1):
        yield item if isinstance(item, (Row, BadRow)) else _row(place, item)


def _row(place: int, item: Any) -> Row:
    if not isinstance(item, tuple) or len(item) not in (2, 3):
        raise ConfigurationError(
            f"a passage is (id, text), (id, text, metadata) or a row of a file; item {place} is "
            f"{type(item).__name__}"
        )
    name, text, *rest = item
    if name is None:
        raise ConfigurationError(f"item {place} has no id; give each passage one of its own")
    return Row(place, text, name, rest[0] if rest else {})


def row_id(row: Row, source: str) -> str | int:
    """Return a row's id, or ``source:number`` where it has none."""
    return f"{source}:{row.number}" if row.id is None else row.id


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


def without_nan(value: Any) -> Any:
    """Return a value with null for NaN and infinity, which parquet has and JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in cast(dict[str, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in cast(list[Any], value)]
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was left out, and why."""

    number: int
    id: str | int | None
    reason: str

    def to_json(self) -> str:
        """Return the row as a line of a list of rejects, without its end."""
        facts = {"number": self.number, "id": self.id, "reason": self.reason}
        return json.dumps(facts, ensure_ascii=True)
