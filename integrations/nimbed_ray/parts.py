"""Parts: parquet files of vectors, each made from one batch of rows unless it is there already.

A part is named by a hash of its rows, so the same rows find it again on any machine. Knows nothing
about clusters.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from nimbed.errors import BackendError
from nimbed.files.arrow import Table, arrow, parquet
from nimbed_ray.embed_texts import EmbedTexts
from nimbed_ray.folder import Folder

__all__ = ["LEFT_OUT", "Attempts", "Part", "PartWriter", "content_hash", "copy_name", "is_part"]

#: Folder below the parts that holds, under the same names, the rows that were left out.
LEFT_OUT = "_left_out"

_PREFIX, _SUFFIX = "part-", ".parquet"

# Losing a machine costs an attempt too, so one or two say nothing about the text.
_MOST_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One file of vectors.

    Attributes:
        name: Of the file.
        rows: Vectors in it.
        left_out: Rows that could not be embedded.
        tokens: Tokens that the model read for it now; 0 if it was there already.
        made: Whether it was made now rather than found.
    """

    name: str
    rows: int
    left_out: int
    tokens: int
    made: bool


class PartWriter:
    """Writes parts into a folder.

    Args:
        embed: Makes the vectors.
        folder: Takes the parts.
    """

    def __init__(self, embed: EmbedTexts, folder: Folder) -> None:
        self._embed = embed
        self._folder = folder

    def write(self, rows: Table) -> Part:
        """Make the part of some rows if it is absent or damaged, and return what it holds.

        Raises:
            InputError: If a text cannot be embedded and ``embed`` says ``raise``.
            BackendError: If the model failed, or processes died over these rows again and again.
        """
        name = f"{_PREFIX}{content_hash(rows)}{_SUFFIX}"
        present = self._rows_in(name)
        if present is not None:
            return Part(name, present, rows.num_rows - present, 0, made=False)
        with Attempts(self._folder).attempt(name, rows=self._describe(rows)):
            embedded = self._embed.embed(rows)
        left_out = embedded.rejected.num_rows
        if left_out:
            # First, so that a part never exists without them.
            self._folder.write(f"{LEFT_OUT}/{name}", _parquet(embedded.rejected))
        self._folder.write(name, _parquet(embedded.table))
        return Part(name, embedded.table.num_rows, left_out, embedded.tokens, made=True)

    def _describe(self, rows: Table) -> str:
        field = self._embed.label.id_field
        if field is None or field not in rows.column_names:
            return f"{rows.num_rows} rows"
        first, last = rows[field][0].as_py(), rows[field][-1].as_py()
        return f"the {rows.num_rows} rows from {field} {first!r} to {last!r}"

    def _rows_in(self, name: str) -> int | None:
        """Return the rows of a part, or None if it is absent or damaged."""
        file = self._folder.open(name)
        if file is None:
            return None
        with file:
            try:
                return int(parquet().ParquetFile(file).metadata.num_rows)
            except arrow().ArrowInvalid:
                return None


class Attempts:
    """Counts the processes that died over a part, so that a deadly text ends the job.

    Ray restarts the work of a process that died, however often it dies, so a text that fills the
    memory would keep a cluster busy for ever. Every attempt that is under way, or whose process
    died, has an empty file in a folder beside the parts.

    Args:
        folder: The folder of the parts.
    """

    def __init__(self, folder: Folder) -> None:
        self._marks = Folder(folder.address_of("_tries"))

    @contextmanager
    def attempt(self, name: str, *, rows: str) -> Generator[None]:
        """Mark a part as under way until the block ends.

        Args:
            name: Name of the part.
            rows: What messages call its rows.

        Raises:
            BackendError: If too many processes died over it.
        """
        died = sum(mark.startswith(name) for mark in self._marks.names())
        if died >= _MOST_ATTEMPTS:
            raise BackendError(
                f"{died} processes died while they embedded {rows}; look among them for a text "
                f"that fills the memory, or give each actor more memory"
            )
        mark = f"{name}.{secrets.token_hex(4)}"
        self._marks.write(mark, b"")
        try:
            yield
        finally:
            self._marks.delete(mark)

    def clear(self) -> None:
        """Drop the marks of an earlier run, whose processes were killed with it."""
        for mark in self._marks.names():
            self._marks.delete(mark)


def content_hash(rows: Table) -> str:
    """Return 32 hex digits of the rows' content: names, types and values of every column.

    How they are laid out in memory (chunks, slices, offsets) does not matter, so a run finds what
    another has made.
    """
    plain = rows.replace_schema_metadata(None).combine_chunks()
    # Taking every row copies them to the start of fresh buffers, with zeros below nulls.
    copied = plain.take(arrow().array(np.arange(rows.num_rows))).combine_chunks()
    sink = arrow().BufferOutputStream()
    with arrow().ipc.new_stream(sink, copied.schema) as stream:
        stream.write_table(copied)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:32]


def copy_name(name: str, number: int) -> str:
    """Return the name of the ``number``-th part with the same rows, counted from 1."""
    return name if number == 1 else f"{name.removesuffix(_SUFFIX)}-{number}{_SUFFIX}"


def is_part(name: str) -> bool:
    """Whether the name of a file is that of a part."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def _parquet(table: Table) -> Any:
    sink = arrow().BufferOutputStream()
    parquet().write_table(table, sink, compression="zstd")
    return sink.getvalue()
