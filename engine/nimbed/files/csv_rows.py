"""Rows of comma-separated values with a header.

A record may span lines; its number is that of its first line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from nimbed.errors import ConfigurationError, InputError
from nimbed.files.rows import BadRow, Row, id_fault, text_fault
from nimbed.files.sources import Source, lines, name_of
from nimbed.inputs import encodable

__all__ = ["csv_header", "csv_rows"]

_LONGEST_FIELD = 2**26


def csv_rows(
    source: Source, *, text_field: str, id_field: str | None, carry: bool
) -> Iterator[Row | BadRow]:
    """Yield a row a record; every value is a string.

    Raises:
        ConfigurationError: If the header lacks a field that is asked for.
        InputError: If there is no header, or it names a column twice.
    """
    _allow_long_fields()
    reader = csv.reader(_decoded(source), strict=True)
    header = _header(reader, name_of(source))
    for name in (text_field, id_field):
        if name is not None and name not in header:
            raise ConfigurationError(
                f"{name_of(source)} has no column {name!r}; its header names {', '.join(header)}"
            )
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield BadRow(number, f"not valid CSV: {error}")
            continue
        if cells is None:
            return
        if cells:  # the csv module gives an empty list for an empty line
            yield _row(number, header, cells, text_field, id_field, carry)


def csv_header(source: Source) -> list[str]:
    """Return the names of the columns, in order.

    Raises:
        InputError: If there is no header, or it names a column twice.
    """
    _allow_long_fields()
    return _header(csv.reader(_decoded(source), strict=True), name_of(source))


def _header(reader: Iterator[list[str]], source: str) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise InputError(f"the header of {source} is not valid CSV: {error}") from error
    if not header:
        raise InputError(f"{source} is empty, expected a header that names its columns")
    if not all(map(encodable, header)):
        raise InputError(f"the header of {source} is not valid UTF-8")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"the header of {source} names the column {twice!r} twice")
    return header


def _row(
    number: int,
    header: Sequence[str],
    cells: list[str],
    text_field: str,
    id_field: str | None,
    carry: bool,
) -> Row | BadRow:
    if len(cells) != len(header):
        return BadRow(number, f"{len(cells)} fields, the header names {len(header)}")
    if not all(map(encodable, cells)):
        return BadRow(number, "not valid UTF-8")
    record = dict(zip(header, cells, strict=True))
    text = record.pop(text_field)
    identity = None if id_field is None else record.pop(id_field)
    fault = text_fault(text) or (id_fault(identity) if id_field is not None else None)
    return BadRow(number, fault) if fault else Row(number, text, identity, record if carry else {})


def _decoded(source: Source) -> Iterator[str]:
    # Bytes that are no UTF-8 become surrogates here, so that one of them spoils its own record
    # and not the rest of the file.
    return (line.decode(errors="surrogateescape") for _, line in lines(source))


def _allow_long_fields() -> None:
    # The csv module refuses fields of more than 131,072 characters unless the whole process is
    # told otherwise; it is only ever told to allow more.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
