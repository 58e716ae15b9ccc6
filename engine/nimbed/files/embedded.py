"""A parquet file of vectors, back as rows and batches.

Reads what ``parquet_writer`` wrote, in stretches, and trusts nothing that it can check.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike

import numpy as np

from nimbed.batch import EmbeddingBatch, concatenate
from nimbed.errors import InputError
from nimbed.files.arrow import ParquetFile, RecordBatch
from nimbed.files.label import RESERVED, TOKENS_FIELD, TRUNCATED_FIELD, VECTOR_FIELD, Label
from nimbed.files.parquet_rows import open_parquet, rows_of
from nimbed.files.rows import Row

__all__ = ["EmbeddedFile", "open_embedded", "read_embedded"]

_STRETCH = 4096


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """An open file of vectors.

    Attributes:
        label: The spec, the role, and the names of the text and id columns.
        count: Vectors in the file.
        name: For messages.
    """

    label: Label
    count: int
    name: str
    _file: ParquetFile

    def stretches(self) -> Iterator[tuple[list[Row], EmbeddingBatch]]:
        """Yield rows (text, id, other columns) and their vectors, a few thousand at a time.

        Raises:
            InputError: If the file was changed since it was written.
        """
        number = 0
        for record in self._file.iter_batches(batch_size=_STRETCH):
            rows: list[Row] = []
            for row in rows_of(
                record,
                self.label.text_field,
                self.label.id_field,
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
        for record in self._file.iter_batches(batch_size=_STRETCH, columns=list(RESERVED)):
            yield self._batch(record)

    def _batch(self, record: RecordBatch) -> EmbeddingBatch:
        spec = self.label.spec
        lists = record.column(VECTOR_FIELD)
        # Not .values: that ignores the slice that a stretch may be.
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        if flat.size != record.num_rows * spec.width:
            raise InputError(f"{self.name} holds vectors that are null or not {spec.width} wide")
        truncated = record.column(TRUNCATED_FIELD).to_numpy(zero_copy_only=False)
        return EmbeddingBatch(
            vectors=flat.reshape(record.num_rows, spec.width),
            spec=spec,
            input_type=self.label.input_type,
            token_counts=record.column(TOKENS_FIELD).to_numpy(zero_copy_only=False),
            truncated=tuple(np.flatnonzero(truncated).tolist()),
        )


@contextmanager
def open_embedded(source: str | PathLike[str]) -> Generator[EmbeddedFile]:
    """Open a parquet file that :func:`nimbed.files.embed_file` wrote.

    Raises:
        InputError: If the file is missing, damaged or changed.
        ConfigurationError: If nimbed did not write it.
        MissingExtraError: If pyarrow is not installed.
    """
    with open_parquet(source) as file:
        schema = file.schema_arrow
        label = Label.from_metadata(schema.metadata or {}, source=str(source))
        needed = (*RESERVED, label.text_field, label.id_field)
        missing = [name for name in needed if name is not None and name not in schema.names]
        if missing:
            raise InputError(f"{source} has lost its columns {', '.join(missing)}")
        yield EmbeddedFile(label, file.metadata.num_rows, str(source), file)


def read_embedded(source: str | PathLike[str]) -> EmbeddingBatch:
    """Return every vector of a file that :func:`nimbed.files.embed_file` wrote.

    Raises:
        InputError: If the file is missing, damaged or changed.
        ConfigurationError: If nimbed did not write it.
        MissingExtraError: If pyarrow is not installed.
    """
    with open_embedded(source) as file:
        spec = file.label.spec
        empty = EmbeddingBatch(
            vectors=np.empty((0, spec.width), spec.dtype),
            spec=spec,
            input_type=file.label.input_type,
            token_counts=np.empty(0, np.int32),
        )
        return concatenate([empty, *file.batches()])
