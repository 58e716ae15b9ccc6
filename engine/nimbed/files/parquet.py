"""Parquet: rows read from a file, vectors written to one, and such a file read back.

Neither reading nor writing holds more than a few thousand rows or one row group in memory. The
spec stands as JSON in the schema metadata under ``nimbed.spec``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from nimbed.batch import EmbeddingBatch, concatenate
from nimbed.chunks import CHUNK_FIELDS, CONTEXT_FIELD, ChunkColumns
from nimbed.errors import ConfigurationError, InputError
from nimbed.files.arrow import (
    RESERVED,
    TOKENS_FIELD,
    TRUNCATED_FIELD,
    VECTOR_FIELD,
    Column,
    FileContract,
    ParquetFile,
    RecordBatch,
    Schema,
    Table,
    arrow,
    parquet,
)
from nimbed.files.sources import Source, name_of, random_access
from nimbed.rows import BadRow, RecordReader, Row, TextFields, id_fault, text_fault

__all__ = [
    "ArrowColumns",
    "ArrowTable",
    "Carried",
    "ChunkTable",
    "EmbeddedFile",
    "ParquetWriter",
    "arrow_rows",
    "open_embedded",
    "open_parquet",
    "read_embedded",
    "rows_of",
]

# Rows that are in memory at a time; a text of average length makes this a few MB.
_READ_ROWS = 1024
# Pages are read through a buffer of this size instead of a whole column of a row group at once.
_READ_BUFFER = 2**20
# A row group is closed at either bound: readers take one at a time into memory.
_GROUP_BYTES = 2**25
_GROUP_ROWS = 2**16
# Rows of a file of vectors that are read back at a time.
_PART_ROWS = 4096


class _Columns:
    """The columns of a record batch, converted to Python when one of their values is looked at.

    Attributes:
        record: Every column of the record batch.
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

    __slots__ = ("_columns", "place")

    def __init__(self, columns: _Columns, place: int) -> None:
        self._columns = columns
        self.place = place

    @property
    def record(self) -> RecordBatch:
        """The record batch that the row belongs to, every column of it."""
        return self._columns.record

    def __getitem__(self, name: str) -> Any:
        return self._columns.values(name)[self.place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)

    def __repr__(self) -> str:
        return f"ArrowColumns({dict(self)!r})"


@contextmanager
def open_parquet(source: Source) -> Generator[ParquetFile]:
    """Open a parquet file so that it can be read a few thousand rows at a time.

    Raises:
        MissingExtraError: If pyarrow is not installed.
        InputError: If the file is missing, damaged, of another format, or a pipe.
    """
    place, name = random_access(source), name_of(source)
    try:
        file = parquet().ParquetFile(place, pre_buffer=False, buffer_size=_READ_BUFFER)
    except (arrow().ArrowException, OSError) as error:
        raise InputError(f"{name} is not a whole parquet file: {error}") from error
    with file:
        yield file


def arrow_rows(
    source: Source,
    records: RecordReader,
    open_file: Callable[[Source], AbstractContextManager[Any]] = open_parquet,
) -> Iterator[Row | BadRow]:
    """Yield a row a record.

    Args:
        source: What to read.
        records: Which columns are text and id.
        open_file: Opens it, as :func:`open_parquet` does.

    Raises:
        ConfigurationError: If the schema lacks a field that is asked for, or it is no text.
        InputError: If the file is missing or damaged.
    """
    asked = [*records.text.names, *([] if records.id_field is None else [records.id_field])]
    with open_file(source) as file:
        _check_schema(file.schema_arrow, records.text.names, records.id_field, name_of(source))
        columns = None if records.carry else asked
        number = 0
        try:
            for record in file.iter_batches(batch_size=_READ_ROWS, columns=columns):
                yield from rows_of(record, records.text, records.id_field, first_number=number + 1)
                number += record.num_rows
        except (arrow().ArrowException, OSError) as error:
            raise InputError(f"{name_of(source)} is damaged: {error}") from error


def rows_of(
    record: RecordBatch,
    text: TextFields,
    id_field: str | None,
    *,
    first_number: int,
    hidden: Sequence[str] = (),
) -> Iterator[Row | BadRow]:
    """Yield the rows of a record batch or table.

    Args:
        record: Every column.
        text: Names of the columns of texts.
        id_field: Name of the column of ids, if there is one.
        first_number: The number of the first row.
        hidden: Columns that the rows do not show.
    """
    unseen = frozenset({*text.names, *hidden} | ({id_field} if id_field is not None else set()))
    columns = _Columns(record, unseen)
    texts = _values(record.column(text.names[0]))
    if text.joined:
        parts = [_values(record.column(name)) for name in text.names]
        texts = [
            text.text(dict(zip(text.names, values, strict=True)))
            for values in zip(*parts, strict=True)
        ]
    ids = _values(record.column(id_field)) if id_field is not None else None
    for place, content in enumerate(texts):
        number = first_number + place
        identity = ids[place] if ids is not None else None
        fault = text_fault(content) or (id_fault(identity) if ids is not None else None)
        if fault:
            yield BadRow(number, fault)
        else:
            yield Row(number, content, identity, ArrowColumns(columns, place))


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


def _check_schema(
    schema: Schema, text_fields: Sequence[str], id_field: str | None, source: str
) -> None:
    for name in (*text_fields, id_field):
        if name is not None and schema.names.count(name) != 1:
            raise ConfigurationError(
                f"{source} has no column {name!r}; it has {', '.join(schema.names)}"
            )
    types = arrow().types
    for name in text_fields:
        kind = schema.field(name).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise ConfigurationError(f"the column {name!r} of {source} is {kind}, expected text")


class Carried(Protocol):
    """The columns of the source, as Arrow."""

    def schema(self) -> Schema:
        """Return their names and types."""
        ...

    def table(self, rows: Sequence[Row]) -> Table:
        """Return the columns of some rows."""
        ...


class ArrowTable:
    """Columns of a source that is Arrow already: they keep their order and exact types."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def schema(self) -> Schema:
        """Return the source's own schema, metadata included."""
        return self._schema

    def table(self, rows: Sequence[Row]) -> Table:
        """Take the rows out of the record batches that they came from."""
        given = [
            row.columns.document if isinstance(row.columns, ChunkColumns) else row.columns
            for row in rows
        ]
        views = [columns for columns in given if isinstance(columns, ArrowColumns)]
        taken: list[RecordBatch] = []
        for _, group in itertools.groupby(views, key=lambda view: id(view.record)):
            same = list(group)
            taken.append(same[0].record.take(arrow().array([view.place for view in same])))
        return arrow().Table.from_batches(taken, schema=self._schema)


class ChunkTable(ArrowTable):
    """The columns of such a source, a row a chunk: ids and texts of chunks, and where they lie.

    Args:
        schema: The source's.
        text_field: Name of its column of texts.
        id_field: Name of its column of ids, if there is one.
        late: Whether they are late chunks.
    """

    def __init__(
        self, schema: Schema, text_field: str, id_field: str | None, *, late: bool
    ) -> None:
        super().__init__(schema)
        self._text, self._id = text_field, id_field
        self._fields = (*CHUNK_FIELDS, CONTEXT_FIELD) if late else CHUNK_FIELDS

    def schema(self) -> Schema:
        """Return the source's schema with the fields of chunks; see :mod:`nimbed.chunks`."""
        pa, schema = arrow(), super().schema()
        document = pa.string() if self._id is None else schema.field(self._id).type
        for name in (self._text, self._id):
            if name is not None:
                place = schema.get_field_index(name)
                schema = schema.set(place, pa.field(name, pa.string()))
        kinds = (document, *[pa.int64()] * 3, pa.string())
        for name, kind in zip(self._fields, kinds, strict=False):
            schema = schema.append(pa.field(name, kind))
        return schema

    def table(self, rows: Sequence[Row]) -> Table:
        """Return the rows of chunks."""
        pa, schema, taken = arrow(), self.schema(), super().table(rows)
        own = {
            **({} if self._id is None else {self._id: [row.id for row in rows]}),
            self._text: [row.text for row in rows],
            **{name: [row.columns[name] for row in rows] for name in self._fields},
        }
        columns = [
            pa.array(own[field.name], field.type) if field.name in own else taken[field.name]
            for field in schema
        ]
        return pa.Table.from_arrays(columns, schema=schema)


class ParquetWriter:
    """Writes one parquet file.

    Args:
        path: Where to write.
        contract: What the file says about itself.
        carried: The source's columns.
    """

    def __init__(self, path: Path, contract: FileContract, carried: Carried) -> None:
        pa, schema = arrow(), carried.schema()
        element = pa.from_numpy_dtype(np.dtype(contract.spec.dtype))
        own = [
            pa.field(VECTOR_FIELD, pa.list_(element, contract.spec.width), nullable=False),
            pa.field(TOKENS_FIELD, pa.int32(), nullable=False),
            pa.field(TRUNCATED_FIELD, pa.bool_(), nullable=False),
        ]
        metadata: dict[bytes, bytes] = {**(schema.metadata or {}), **contract.to_metadata()}
        self._schema = pa.schema([*schema, *own], metadata=metadata)
        self._carried = carried
        self._waiting: list[Table] = []
        self._writer = parquet().ParquetWriter(path, self._schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._writer:
            if kind is None:
                self._flush()

    def write(self, rows: Sequence[Row], batch: EmbeddingBatch) -> None:
        """Append rows with their vectors."""
        pa, table = arrow(), self._carried.table(rows)
        truncated = np.zeros(len(batch), dtype=bool)
        truncated[list(batch.truncated)] = True
        flat = pa.array(np.ascontiguousarray(batch.vectors).reshape(-1))
        own = [
            pa.FixedSizeListArray.from_arrays(flat, batch.spec.width),
            pa.array(batch.token_counts),
            pa.array(truncated),
        ]
        self._waiting.append(pa.Table.from_arrays([*table.columns, *own], schema=self._schema))
        if (
            sum(table.nbytes for table in self._waiting) >= _GROUP_BYTES
            or sum(table.num_rows for table in self._waiting) >= _GROUP_ROWS
        ):
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(arrow().concat_tables(self._waiting))
            self._waiting.clear()


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """An open file of vectors.

    Attributes:
        contract: The spec, the role, and the names of the text and id columns.
        count: Vectors in the file.
        name: For messages.
    """

    contract: FileContract
    count: int
    name: str
    _file: ParquetFile

    def parts(self) -> Iterator[tuple[list[Row], EmbeddingBatch]]:
        """Yield rows (text, id, other columns) and their vectors, a few thousand at a time.

        Raises:
            InputError: If the file was changed since it was written.
        """
        number = 0
        for record in self._file.iter_batches(batch_size=_PART_ROWS):
            rows: list[Row] = []
            for row in rows_of(
                record,
                TextFields((self.contract.text_field,)),
                self.contract.id_field,
                first_number=number + 1,
                hidden=RESERVED,
            ):
                if not isinstance(row, Row):
                    raise InputError(
                        f"row {row.number} of {self.name}: {row.reason}", rows=[row.number]
                    )
                rows.append(row)
            yield rows, self._batch(record)
            number += record.num_rows

    def batches(self) -> Iterator[EmbeddingBatch]:
        """Yield the vectors alone, a few thousand at a time; other columns are not read."""
        for record in self._file.iter_batches(batch_size=_PART_ROWS, columns=list(RESERVED)):
            yield self._batch(record)

    def _batch(self, record: RecordBatch) -> EmbeddingBatch:
        spec = self.contract.spec
        lists = record.column(VECTOR_FIELD)
        # Not .values: that ignores the slice that a record batch may be.
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        if flat.size != record.num_rows * spec.width:
            raise InputError(f"{self.name} holds vectors that are null or not {spec.width} wide")
        truncated = record.column(TRUNCATED_FIELD).to_numpy(zero_copy_only=False)
        return EmbeddingBatch(
            vectors=flat.reshape(record.num_rows, spec.width),
            spec=spec,
            input_type=self.contract.input_type,
            token_counts=record.column(TOKENS_FIELD).to_numpy(zero_copy_only=False),
            truncated=tuple(np.flatnonzero(truncated).tolist()),
        )


@contextmanager
def open_embedded(source: str | os.PathLike[str]) -> Generator[EmbeddedFile]:
    """Open a parquet file that :func:`nimbed.files.embed_file` wrote.

    Raises:
        InputError: If the file is missing, damaged or changed.
        ConfigurationError: If nimbed did not write it.
        MissingExtraError: If pyarrow is not installed.
    """
    with open_parquet(source) as file:
        schema = file.schema_arrow
        contract = FileContract.from_metadata(schema.metadata or {}, source=str(source))
        needed = (*RESERVED, contract.text_field, contract.id_field)
        missing = [name for name in needed if name is not None and name not in schema.names]
        if missing:
            raise InputError(f"{source} has lost its columns {', '.join(missing)}")
        yield EmbeddedFile(contract, file.metadata.num_rows, str(source), file)


def read_embedded(source: str | os.PathLike[str]) -> EmbeddingBatch:
    """Return every vector of a file that :func:`nimbed.files.embed_file` wrote.

    Raises:
        InputError: If the file is missing, damaged or changed.
        ConfigurationError: If nimbed did not write it.
        MissingExtraError: If pyarrow is not installed.
    """
    with open_embedded(source) as file:
        spec = file.contract.spec
        empty = EmbeddingBatch(
            vectors=np.empty((0, spec.width), spec.dtype),
            spec=spec,
            input_type=file.contract.input_type,
            token_counts=np.empty(0, np.int32),
        )
        return concatenate([empty, *file.batches()])
