"""Rows of tables as text or spreadsheets: csv, tsv, xlsx."""

from __future__ import annotations

import csv
import importlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nimbed.errors import ConfigurationError, InputError, missing_extra
from nimbed.files.sources import Source, lines, name_of, random_access
from nimbed.inputs import encodable
from nimbed.rows import BadRow, RecordReader, Row

__all__ = ["csv_rows", "xlsx_rows"]

_LONGEST_FIELD = 2**26
_DELIMITERS = (",", ";", "\t", "|")


def csv_rows(
    source: Source, records: RecordReader, *, encoding: str | None, delimiter: str | None
) -> Iterator[Row | BadRow]:
    """Yield a row a record; every value is a string, and a record may span lines.

    Args:
        source: What to read.
        records: Makes rows of records.
        encoding: As :func:`nimbed.files.sources.lines` takes it.
        delimiter: What stands between two fields; None takes the one of comma, semicolon, tab and
            bar by which the header names the fields that are asked for.

    Raises:
        ConfigurationError: If the header lacks a field that is asked for.
        InputError: If there is no header, or it names a column twice.
    """
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigurationError(f"a delimiter is one character; got {delimiter!r}")
    # The csv module refuses fields of more than 131,072 characters unless the whole process is
    # told otherwise; it is only ever told to allow more.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    # Bytes that are no UTF-8 become surrogates here, so that one of them spoils its own record
    # and not the rest of the file.
    feed = _Feed(line.decode(errors="surrogateescape") for _, line in lines(source, encoding))
    if delimiter is None:
        first = feed.peek()
        able = (each for each in _DELIMITERS if records.named(_cells(first, each)))
        delimiter = next(able, ",")
    reader = csv.reader(feed, strict=True, delimiter=delimiter)
    header = _header(reader, name_of(source))
    if not records.named(header):
        raise ConfigurationError(
            f"{name_of(source)} has no column {records.missing(header)!r}; its header names "
            f"{', '.join(header)}"
        )
    while True:
        number = feed.next_record()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # An unbalanced quote swallows the lines behind it; they are read again by themselves.
            feed.give_back()
            yield BadRow(number, f"not valid CSV: {error}")
            continue
        if cells is None:
            return
        if not cells:  # the csv module gives an empty list for an empty line
            continue
        if len(cells) != len(header):
            over = f" over {len(feed.taken)} lines" if len(feed.taken) > 1 else ""
            yield BadRow(number, f"{len(cells)} fields{over}, the header names {len(header)}")
        elif not all(map(encodable, cells)):
            yield BadRow(number, "not valid UTF-8")
        else:
            yield records.row(number, dict(zip(header, cells, strict=True)))


class _Feed:
    """The lines of a file for the csv module, of which the last record's can be had again.

    Attributes:
        taken: The lines of the record that is being read.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._left = iter(lines)
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self._number = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._left)
        self.taken.append(line)
        return line

    def peek(self) -> str:
        """Return the first line without taking it."""
        for line in self._left:
            self._again.append(line)
            return line
        return ""

    def next_record(self) -> int:
        """Begin another record, and return the number of its first line."""
        self._number += len(self.taken)
        self.taken = []
        return self._number

    def give_back(self) -> None:
        """Have all lines of the record but its first read again."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _header(reader: Iterator[list[str]], source: str) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise InputError(f"the header of {source} is not valid CSV: {error}") from error
    if not header:
        raise InputError(f"{source} is empty, expected a header that names its columns")
    if not all(map(encodable, header)):
        raise InputError(f"the header of {source} is not valid UTF-8")
    _check_once(header, source)
    return header


def _check_once(header: Sequence[str], source: str) -> None:
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"the header of {source} names the column {twice!r} twice")


def xlsx_rows(source: Source, records: RecordReader) -> Iterator[Row | BadRow]:
    """Yield a row a line of a workbook's first sheet, whose first line names the columns.

    Raises:
        ConfigurationError: If the first line lacks a field that is asked for.
        InputError: If the file is no workbook, or names a column twice.
        MissingExtraError: If openpyxl is not installed.
    """
    try:
        openpyxl: Any = importlib.import_module("openpyxl")  # it has no types
    except ImportError as error:
        raise missing_extra("xlsx", needs="openpyxl") from error
    place, name = random_access(source), name_of(source)
    try:
        book = openpyxl.load_workbook(place, read_only=True, data_only=True)
    except Exception as error:  # whatever a broken zip or XML makes of it
        raise InputError(f"{name} is not a whole workbook: {error}") from error
    try:
        sheet: Iterator[tuple[Any, ...]] = book.worksheets[0].iter_rows(values_only=True)
        header = ["" if cell is None else str(cell) for cell in next(sheet, ())]
        while header and not header[-1]:
            header.pop()
        _check_once([each for each in header if each], name)
        if not records.named(header):
            raise ConfigurationError(
                f"the first sheet of {name} has no column {records.missing(header)!r}; its first "
                f"line names {', '.join(header) or 'none'}"
            )
        for number, cells in enumerate(sheet, 2):
            if any(cell is not None for cell in cells):
                pairs = zip(header, cells, strict=False)
                yield records.row(number, {column: cell for column, cell in pairs if column})
    finally:
        book.close()
