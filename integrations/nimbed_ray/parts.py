"""One stretch of a dataset into one parquet file, unless the file is there already.

A part is named by the content of its rows, so whoever meets the same rows again, on whichever
machine, finds it. Knows no cluster.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nimbed.files.arrow import Table, arrow, parquet
from nimbed_ray.embed_texts import EmbedTexts
from nimbed_ray.folder import Folder
from nimbed_ray.tries import Tries

__all__ = ["LEFT_OUT", "Part", "PartWriter", "copy_name", "digest", "is_part"]

#: Folder below that of the parts; holds, under the same names, the rows that were left out.
LEFT_OUT = "_left_out"

_PREFIX, _SUFFIX = "part-", ".parquet"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of vectors.

    Attributes:
        name: Of the file.
        rows: Vectors in it.
        left_out: Rows that could not be embedded.
        tokens: Tokens that the model read for it now; 0 if it was there already.
        made: Whether it was made now.
    """

    name: str
    rows: int
    left_out: int
    tokens: int
    made: bool

    def table(self) -> Table:
        """Return the facts as a table of one row, which Ray can carry."""
        return arrow().Table.from_pylist([asdict(self)])


class PartWriter:
    """Makes parts; a class for ``Dataset.map_batches``.

    Args:
        embed: Makes the vectors.
        folder: Takes the parts.
    """

    def __init__(self, embed: EmbedTexts, folder: Folder) -> None:
        self._embed = embed
        self._folder = folder

    def __call__(self, rows: Table) -> Table:
        """Make the part of some rows, and return what became of it."""
        name = f"{_PREFIX}{digest(rows)}{_SUFFIX}"
        there = self._there(name)
        if there is not None:
            return Part(name, there, rows.num_rows - there, 0, made=False).table()
        with Tries(self._folder).one(name, rows=self._named(rows)):
            embedded = self._embed.embed(rows)
        if embedded.rejected.num_rows:
            # First, so that a part that is there has its list beside it.
            self._folder.write(f"{LEFT_OUT}/{name}", _parquet(embedded.rejected))
        self._folder.write(name, _parquet(embedded.table))
        rows_in, left_out = embedded.table.num_rows, embedded.rejected.num_rows
        return Part(name, rows_in, left_out, embedded.tokens, made=True).table()

    def _named(self, rows: Table) -> str:
        field = self._embed.label.id_field
        if field is None or field not in rows.column_names:
            return f"{rows.num_rows} rows"
        first, last = rows[field][0].as_py(), rows[field][-1].as_py()
        return f"the {rows.num_rows} rows from {field} {first!r} to {last!r}"

    def _there(self, name: str) -> int | None:
        """Return the rows of a part, or None if it is absent or damaged."""
        file = self._folder.open(name)
        if file is None:
            return None
        with file:
            try:
                return int(parquet().ParquetFile(file).metadata.num_rows)
            except arrow().ArrowInvalid:
                return None


def digest(rows: Table) -> str:
    """Return 32 hex digits of the rows' content: names, types and values of every column.

    How the rows are laid out in memory (chunks, slices, offsets) does not matter, so a run finds
    what another has made.
    """
    plain = rows.replace_schema_metadata(None).combine_chunks()
    # Taking every row copies them to the start of fresh buffers, with zeros below nulls.
    copied = plain.take(arrow().array(np.arange(rows.num_rows))).combine_chunks()
    sink = arrow().BufferOutputStream()
    with arrow().ipc.new_stream(sink, copied.schema) as stream:
        stream.write_table(copied)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:32]


def copy_name(name: str, number: int) -> str:
    """Return what the part is called that holds the same rows for the given time, from 1."""
    return name if number == 1 else f"{name.removesuffix(_SUFFIX)}-{number}{_SUFFIX}"


def is_part(name: str) -> bool:
    """Whether a file of a folder is one of its parts."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def _parquet(table: Table) -> Any:
    sink = arrow().BufferOutputStream()
    parquet().write_table(table, sink, compression="zstd")
    return sink.getvalue()
