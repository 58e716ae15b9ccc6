"""Rows made of records: which fields are the text, which is the id, and what is kept."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nimbed.errors import ConfigurationError
from nimbed.rows import BadRow, Row, id_fault, text_fault

__all__ = ["RecordReader", "TextFields"]


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
