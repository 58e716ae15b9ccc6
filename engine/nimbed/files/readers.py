"""Readers of files of texts: plain text, JSON lines, CSV and parquet become rows.

Nothing is read ahead, and of a text format one record is in memory at a time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from nimbed.errors import ConfigurationError, InputError, name_rows
from nimbed.files.arrow import RESERVED
from nimbed.files.parquet import parquet_rows
from nimbed.files.sources import Kind, Source, kind_of, lines, name_of
from nimbed.inputs import encodable
from nimbed.rows import BLANK, BadRow, Row, id_fault, text_fault

__all__ = ["RowReader", "read_rows"]

_LONGEST_FIELD = 2**26


def read_rows(
    source: Source,
    *,
    text_field: str = "text",
    id_field: str | None = None,
    kind: str | None = None,
    carry: bool = True,
) -> Iterator[Row | BadRow]:
    """Yield every record of a file, the bad ones with their reason, without reading ahead.

    Args:
        source: A path, ``-`` for standard input, or an open binary stream.
        text_field: Field or column that holds the text; ``txt`` has none.
        id_field: Field or column that holds a string or an integer, if any.
        kind: ``txt``, ``jsonl``, ``csv`` or ``parquet``; None tells it from the suffix, and takes
            a stream for ``txt``.
        carry: False leaves ``Row.columns`` empty and does not read the other columns.

    Raises:
        ConfigurationError: If the format is unknown, or a column does not exist.
        InputError: If the file is missing or damaged as a whole.
        MissingExtraError: If pyarrow is needed and absent.
    """
    found = kind_of(source, kind)
    if found == "txt":
        if id_field is not None:
            raise ConfigurationError(
                f"a .txt file holds one text a line and has no field {id_field!r}; leave out the "
                f"id field, or use jsonl, csv or parquet"
            )
        return _txt_rows(source)
    if text_field == id_field:
        raise ConfigurationError(f"{text_field!r} cannot be both the text and the id")
    return _BY_FIELD[found](source, text_field=text_field, id_field=id_field, carry=carry)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """A source of rows that can be read more than once, and names its rows for messages.

    Attributes:
        source: A path, ``-`` or a stream.
        kind: Its format.
        text_field: Field of the text.
        id_field: Field of the id, if any.
        carry: Whether the other fields are read too.
    """

    source: Source
    kind: Kind
    text_field: str
    id_field: str | None
    carry: bool

    @property
    def typeless(self) -> bool:
        """Whether the format does not say what type a field has."""
        return self.kind != "parquet"

    def rows(self, *, carry: bool | None = None) -> Iterator[Row | BadRow]:
        """Read the source from its start.

        Raises:
            ConfigurationError: If a row has a field whose name the output needs.
        """
        rows = read_rows(
            self.source,
            text_field=self.text_field,
            id_field=self.id_field,
            kind=self.kind,
            carry=self.carry if carry is None else carry,
        )
        for row in rows:
            if isinstance(row, Row) and row.columns:
                taken = next((name for name in RESERVED if name in row.columns), None)
                if taken is not None:
                    raise ConfigurationError(
                        f"{self.where([row.number])} has a field {taken!r} already, and the "
                        f"output needs that name; rename it, or write .npy"
                    )
            yield row

    def where(self, numbers: Sequence[int]) -> str:
        """Return ``line 3 of corpus.jsonl`` for a message."""
        return f"{self.places(numbers)} of {name_of(self.source)}"

    def places(self, numbers: Sequence[int]) -> str:
        """Return ``line 3`` or ``rows 3, 5`` for a message."""
        named = name_rows(numbers)
        return named if self.kind == "parquet" else named.replace("row", "line", 1)


def _txt_rows(source: Source) -> Iterator[Row | BadRow]:
    """Yield a row a line. Blank lines are bad, except the ones that end the file."""
    first_blank = 0
    for number, line in lines(source):
        text, fault = _decoded(line)
        fault = fault or text_fault(text)
        if fault == BLANK:
            first_blank = first_blank or number
            continue
        if first_blank:
            yield from (BadRow(blank, BLANK) for blank in range(first_blank, number))
            first_blank = 0
        yield BadRow(number, fault) if fault else Row(number, text)


def _jsonl_rows(
    source: Source, *, text_field: str, id_field: str | None, carry: bool
) -> Iterator[Row | BadRow]:
    """Yield a row a JSON object. Blank lines are passed over, as every reader of JSONL does."""
    for number, line in lines(source):
        if line.strip():
            yield _jsonl_row(number, line, text_field, id_field, carry)


def _jsonl_row(
    number: int, line: bytes, text_field: str, id_field: str | None, carry: bool
) -> Row | BadRow:
    source, fault = _decoded(line)
    if fault is not None:
        return BadRow(number, fault)
    try:
        parsed: Any = json.loads(source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not valid JSON: {error}")
    if not isinstance(parsed, dict):
        return BadRow(number, f"the line holds JSON {type(parsed).__name__}, expected an object")
    record = cast(dict[str, Any], parsed)
    for name in (text_field, id_field):
        if name is not None and name not in record:
            return BadRow(number, f"no field {name!r}; it has {_listed(record)}")
    return _row_of(number, record, text_field, id_field, carry, escaped="\\u" in source)


def _row_of(
    number: int,
    record: dict[str, Any],
    text_field: str,
    id_field: str | None,
    carry: bool,
    *,
    escaped: bool = False,
) -> Row | BadRow:
    text = record.pop(text_field)
    identity = None if id_field is None else record.pop(id_field)
    fault = text_fault(text) or (id_fault(identity) if id_field is not None else None)
    # Only an escape can smuggle half a character past the UTF-8 decoder.
    if fault is None and escaped and not _encodable_record(record):
        fault = "a field is not valid Unicode"
    return BadRow(number, fault) if fault else Row(number, text, identity, record if carry else {})


def _decoded(line: bytes) -> tuple[str, str | None]:
    """Return (text, None), or an empty text and what is wrong with the bytes."""
    ending = b"\r\n" if line.endswith(b"\r\n") else b"\n"
    try:
        return line.removesuffix(ending).decode(), None
    except UnicodeDecodeError as error:
        place = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        return "", f"not valid UTF-8 ({place})"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _encodable_record(record: dict[str, Any]) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(record: dict[str, Any]) -> str:
    names = [repr(name) for name in record]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") or "none"


def _csv_rows(
    source: Source, *, text_field: str, id_field: str | None, carry: bool
) -> Iterator[Row | BadRow]:
    """Yield a row a record; every value is a string, and a record may span lines.

    Raises:
        ConfigurationError: If the header lacks a field that is asked for.
        InputError: If there is no header, or it names a column twice.
    """
    # The csv module refuses fields of more than 131,072 characters unless the whole process is
    # told otherwise; it is only ever told to allow more.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    # Bytes that are no UTF-8 become surrogates here, so that one of them spoils its own record
    # and not the rest of the file.
    decoded = (line.decode(errors="surrogateescape") for _, line in lines(source))
    reader = csv.reader(decoded, strict=True)
    header = _csv_header(reader, name_of(source))
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
        if not cells:  # the csv module gives an empty list for an empty line
            continue
        if len(cells) != len(header):
            yield BadRow(number, f"{len(cells)} fields, the header names {len(header)}")
        elif not all(map(encodable, cells)):
            yield BadRow(number, "not valid UTF-8")
        else:
            record = dict(zip(header, cells, strict=True))
            yield _row_of(number, record, text_field, id_field, carry)


def _csv_header(reader: Iterator[list[str]], source: str) -> list[str]:
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


_BY_FIELD = {"jsonl": _jsonl_rows, "csv": _csv_rows, "parquet": parquet_rows}
