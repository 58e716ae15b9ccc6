"""What a script hands to a load, as rows.

Knows nothing about files or databases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nimbed.errors import ConfigurationError
from nimbed.files.rows import BadRow, Row

__all__ = ["Item", "as_rows", "identity"]

#: What a script may hand in: a row of a file, (id, text) or (id, text, metadata).
Item = Row | BadRow | tuple[str | int, str] | tuple[str | int, str, Mapping[str, Any]]


def as_rows(items: Iterable[Item]) -> Iterator[Row | BadRow]:
    """Yield every item as a row; tuples are numbered by their place, from 1.

    Raises:
        ConfigurationError: If an item is neither a row nor such a tuple, or has None for an id.
    """
    for place, item in enumerate(items, 1):
        yield item if isinstance(item, (Row, BadRow)) else _row(place, item)


def identity(row: Row, source: str) -> str | int:
    """Return a row's id, or ``source:number`` where it has none."""
    return f"{source}:{row.number}" if row.id is None else row.id


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
