"""Rows of a parquet file, a stretch of one row group at a time.

The other columns stay in Arrow: they are carried along with their exact types, and become Python
values only where somebody looks at one.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nimbed.errors import ConfigurationError, InputError
from nimbed.files.arrow import Column, ParquetFile, RecordBatch, Schema, arrow, parquet
from nimbed.files.rows import BadRow, Row, id_fault, text_fault
from nimbed.files.sources import Source, check_exists, is_rereadable, name_of

__all__ = ["ArrowColumns", "open_parquet", "parquet_rows", "rows_of"]

# Rows that are in memory at a time; a text of average length makes this a few MB.
_STRETCH = 1024
# Pages are read through a buffer of this size instead of a whole column of a row group at once.
_READ_BUFFER = 2**20


class _Stretch:
    """A stretch of a table, whose columns become Python's when one of their values is looked at.

    Attributes:
        record: Every column of the stretch.
        names: Those that rows show.
    """

    __slots__ = ("_made", "names", "record")

    def __init__(self, record: RecordBatch, hidden: frozenset[str]) -> None:
        self.record = record
        self.names = tuple(name for name in record.schema.names if name not in hidden)
        self._made: dict[str, list[Any]] = {}

    def values(self, name: str) -> list[Any]:
        """Return a column; all of it at once takes a tenth of the time of value by value."""
        found = self._made.get(name)
        if found is None:
            if name not in self.names:
                raise KeyError(name)
            found = self._made[name] = _pythons(self.record.column(name))
        return found


class ArrowColumns(Mapping[str, Any]):
    """The other columns of one row, converted to Python when looked at."""

    __slots__ = ("_stretch", "place")

    def __init__(self, stretch: _Stretch, place: int) -> None:
        self._stretch = stretch
        self.place = place

    @property
    def record(self) -> RecordBatch:
        """The stretch of the table that the row belongs to, every column of it."""
        return self._stretch.record

    def __getitem__(self, name: str) -> Any:
        return self._stretch.values(name)[self.place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stretch.names)

    def __len__(self) -> int:
        return len(self._stretch.names)

    def __repr__(self) -> str:
        return f"ArrowColumns({dict(self)!r})"


@contextmanager
def open_parquet(source: Source) -> Generator[ParquetFile]:
    """Open a parquet file so that it can be read in stretches.

    Raises:
        MissingExtraError: If pyarrow is not installed.
        InputError: If the file is missing, damaged, of another format, or a pipe.
    """
    check_exists(source)
    name = name_of(source)
    if not isinstance(source, (str, os.PathLike)) or not is_rereadable(source):
        raise InputError(f"{name} is a stream; parquet is read from its end, so save it first")
    try:
        file = parquet().ParquetFile(Path(source), pre_buffer=False, buffer_size=_READ_BUFFER)
    except (arrow().ArrowException, OSError) as error:
        raise InputError(f"{name} is not a whole parquet file: {error}") from error
    with file:
        yield file


def parquet_rows(
    source: Source, *, text_field: str, id_field: str | None, carry: bool
) -> Iterator[Row | BadRow]:
    """Yield a row a record.

    Raises:
        ConfigurationError: If the schema lacks a field that is asked for, or it is no text.
        InputError: If the file is missing or damaged.
    """
    with open_parquet(source) as file:
        _check_schema(file.schema_arrow, text_field, id_field, name_of(source))
        wanted = None if carry else [name for name in (text_field, id_field) if name is not None]
        number = 0
        try:
            for record in file.iter_batches(batch_size=_STRETCH, columns=wanted):
                yield from rows_of(record, text_field, id_field, first_number=number + 1)
                number += record.num_rows
        except (arrow().ArrowException, OSError) as error:
            raise InputError(f"{name_of(source)} is damaged: {error}") from error


def rows_of(
    record: RecordBatch,
    text_field: str,
    id_field: str | None,
    *,
    first_number: int,
    hidden: Sequence[str] = (),
) -> Iterator[Row | BadRow]:
    """Yield the rows of one stretch of a table.

    Args:
        record: Every column of the stretch.
        text_field: Name of the column of texts.
        id_field: Name of the column of ids, if there is one.
        first_number: The number of the first row.
        hidden: Columns that the rows do not show.
    """
    unseen = frozenset({text_field, *hidden} | ({id_field} if id_field is not None else set()))
    stretch = _Stretch(record, unseen)
    texts = _values(record.column(text_field))
    ids = _values(record.column(id_field)) if id_field is not None else None
    for place, text in enumerate(texts):
        number = first_number + place
        identity = ids[place] if ids is not None else None
        fault = text_fault(text) or (id_fault(identity) if ids is not None else None)
        if fault:
            yield BadRow(number, fault)
        else:
            yield Row(number, text, identity, ArrowColumns(stretch, place))


def _values(column: Column) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:  # parquet does not check its strings; one of them is broken
        return [_one(scalar) for scalar in column]


def _one(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode(errors="surrogateescape")


def _pythons(column: Column) -> list[Any]:
    if getattr(column.type, "unit", None) == "ns":
        return [_nanoseconds(scalar) if scalar.is_valid else None for scalar in column]
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:  # one of them is broken
        return [_python(scalar) for scalar in column]


def _python(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode(errors="replace")


def _nanoseconds(scalar: Any) -> Any:
    """Return a time as Python has it, or as text where it is finer than Python's.

    pyarrow would give other types where pandas is installed, and lose what time64 has.
    """
    pa, kind = arrow(), scalar.type
    if scalar.value % 1000:
        return scalar.cast(pa.string()).as_py()
    if pa.types.is_timestamp(kind):
        coarser = pa.timestamp("us", tz=kind.tz)
    else:
        coarser = pa.time64("us") if pa.types.is_time(kind) else pa.duration("us")
    return scalar.cast(coarser).as_py()


def _check_schema(schema: Schema, text_field: str, id_field: str | None, source: str) -> None:
    for name in (text_field, id_field):
        if name is not None and schema.names.count(name) != 1:
            raise ConfigurationError(
                f"{source} has no column {name!r}; it has {', '.join(schema.names)}"
            )
    types, kind = arrow().types, schema.field(text_field).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise ConfigurationError(f"the column {text_field!r} of {source} is {kind}, expected text")
