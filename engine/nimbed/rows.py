"""Rows of a job's input: made of records, what cannot be embedded and why, what was left out."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from nimbed.errors import ConfigurationError
from nimbed.inputs import encodable

__all__ = [
    "BLANK",
    "BadRow",
    "Item",
    "RecordReader",
    "Reject",
    "Row",
    "TextFields",
    "as_rows",
    "id_fault",
    "row_id",
    "text_fault",
    "vector_in",
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


#: Numbers of a list from which on it is taken for a vector, to warn of one that nobody declared.
_LEAST_WIDTH = 64


def vector_in(row: Row) -> str | None:
    """Return the first field that holds as many numbers as a vector has, or None."""
    for name, value in row.columns.items():
        if isinstance(value, list) and len(value) >= _LEAST_WIDTH and isinstance(value[0], float):
            return name
    return None


@dataclass(frozen=True, slots=True)
class TextFields:
    """The fields that are the text of a record.

    Attributes:
        names: One, or several that are joined.
        template: How several are joined, such as ``{title}: {body}``; None puts an empty line
            between those that are not empty.
    """

    names: tuple[str, ...]
    template: str | None = None

    @classmethod
    def of(cls, names: str | Sequence[str], template: str | None = None) -> TextFields:
        """Return the fields of a call.

        Raises:
            ConfigurationError: If a template names no field, or one that cannot be.
        """
        given = (names,) if isinstance(names, str) else tuple(names)
        if template is None:
            if not given or len(set(given)) < len(given):
                raise ConfigurationError(f"give each text field once; got {list(given)}")
            return cls(given)
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ConfigurationError(f"the template {template!r} cannot be read: {error}") from None
        fields = [name for _, name, _, _ in parts if name is not None]
        if not fields or any(
            not name or spec or how for _, name, spec, how in parts if name is not None
        ):
            raise ConfigurationError(
                f"a template names fields, as in '{{title}}: {{body}}'; got {template!r}"
            )
        return cls(tuple(dict.fromkeys(fields)), template)

    @property
    def name(self) -> str:
        """What the text is called in an output: as its field, or ``text`` where it is joined."""
        return self.names[0] if self.template is None and len(self.names) == 1 else "text"

    @property
    def joined(self) -> bool:
        """Whether the text is made of fields rather than one of them."""
        return self.template is not None or len(self.names) > 1

    def text(self, values: Mapping[str, Any]) -> Any:
        """Return the text of a record; of a single field whatever it holds."""
        if not self.joined:
            return values[self.names[0]]
        parts = {name: "" if values[name] is None else values[name] for name in self.names}
        wrong = next((name for name, part in parts.items() if not isinstance(part, str)), None)
        if wrong is not None:
            return parts[wrong]  # no text: whoever checks it says so
        if self.template is not None:
            made: list[str] = []
            for literal, name, _, _ in string.Formatter().parse(self.template):
                made += [literal, parts[name] if name else ""]
            return "".join(made)
        return "\n\n".join(part for part in parts.values() if part.strip())


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Makes rows of records.

    Attributes:
        text: The fields of the text.
        id_field: The field of the id, if any.
        carry: Whether the other fields are kept.
    """

    text: TextFields
    id_field: str | None
    carry: bool

    def missing(self, names: Iterable[str]) -> str | None:
        """Return a field that is asked for and not among the names."""
        known = set(names)
        asked = (*self.text.names, *(() if self.id_field is None else (self.id_field,)))
        return next((name for name in asked if name not in known), None)

    def named(self, names: Iterable[str]) -> bool:
        """Return whether the names have every field that is asked for."""
        return self.missing(names) is None

    def row(self, number: int, record: dict[str, Any], *, escaped: bool = False) -> Row | BadRow:
        """Return the row of a record, which is used up; ``escaped`` if JSON may have escapes."""
        text = self.text.text(record)
        for name in self.text.names:
            del record[name]
        identity = None if self.id_field is None else record.pop(self.id_field)
        fault = text_fault(text) or (id_fault(identity) if self.id_field is not None else None)
        # Only an escape can smuggle half a character past the UTF-8 decoder.
        if fault is None and escaped and not _encodable_record(record):
            fault = "a field is not valid Unicode"
        columns = record if self.carry else {}
        return BadRow(number, fault) if fault else Row(number, text, identity, columns)


def _encodable_record(record: dict[str, Any]) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
