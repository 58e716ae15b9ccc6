"""Vectors into a parquet file: the source's columns, then fixed-size lists.

The spec stands as JSON in the schema metadata under ``nimbed.spec``. Memory holds one row group.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from nimbed.batch import EmbeddingBatch
from nimbed.files.arrow import RecordBatch, Schema, Table, arrow, parquet
from nimbed.files.label import TOKENS_FIELD, TRUNCATED_FIELD, VECTOR_FIELD, Label
from nimbed.files.parquet_rows import ArrowColumns
from nimbed.files.rows import Row

__all__ = ["ArrowTable", "Carried", "ParquetWriter"]

# A row group is closed at either bound: readers take one at a time into memory.
_GROUP_BYTES = 2**25
_GROUP_ROWS = 2**16


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
        """Take the rows out of the stretches of the table that they came from."""
        views = [row.columns for row in rows if isinstance(row.columns, ArrowColumns)]
        stretches: list[RecordBatch] = []
        for _, group in itertools.groupby(views, key=lambda view: id(view.record)):
            same = list(group)
            stretches.append(same[0].record.take(arrow().array([view.place for view in same])))
        return arrow().Table.from_batches(stretches, schema=self._schema)


class ParquetWriter:
    """Writes one parquet file.

    Args:
        path: Where to write.
        label: What the file says about itself.
        carried: The source's columns.
    """

    def __init__(self, path: Path, label: Label, carried: Carried) -> None:
        pa, schema = arrow(), carried.schema()
        element = pa.from_numpy_dtype(np.dtype(label.spec.dtype))
        own = [
            pa.field(VECTOR_FIELD, pa.list_(element, label.spec.width), nullable=False),
            pa.field(TOKENS_FIELD, pa.int32(), nullable=False),
            pa.field(TRUNCATED_FIELD, pa.bool_(), nullable=False),
        ]
        metadata: dict[bytes, bytes] = {**(schema.metadata or {}), **label.to_metadata()}
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
