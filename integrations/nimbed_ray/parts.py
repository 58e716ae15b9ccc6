"""Parts of a folder: parquet files of vectors, and the manifest of how they are made.

A part is made from one batch of rows unless it is there already: it is named by a hash of its rows,
so the same rows find it again on any machine. Knows nothing about clusters.

``_nimbed.json`` is written before the first part: a folder is for one vector space, one role and
one size of part, and a run that asks for anything else is refused before it embeds a text.
``_complete.json`` is written when every part is there, and lists them in the dataset's order.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nimbed.errors import BackendError, ConfigurationError, InputError
from nimbed.files.arrow import FileContract, Table, arrow, parquet
from nimbed.spec import require_same_space
from nimbed_ray.embed_texts import EmbedTexts
from nimbed_ray.folder import Folder

__all__ = [
    "COMPLETE",
    "LEFT_OUT",
    "SETTINGS",
    "Attempts",
    "FolderSettings",
    "OnStale",
    "Part",
    "PartWriter",
    "begin",
    "complete",
    "content_hash",
    "copy_name",
    "is_part",
    "parts_of",
    "read_settings",
]

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


#: Names of the two files.
SETTINGS, COMPLETE = "_nimbed.json", "_complete.json"
#: ``raise``, or ``delete``: what happens to parts whose rows the dataset no longer has.
OnStale = Literal["raise", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSettings:
    """What every part of a folder has in common.

    Attributes:
        label: The contract of the vectors, and the columns of text and id.
        truncate: What happened to texts that were too long.
        nulls: Whether rows without a vector are kept, with a null and a reason.
        rows_per_part: Rows of the dataset that became one part.
    """

    label: FileContract
    truncate: str
    nulls: bool
    rows_per_part: int

    def facts(self) -> dict[str, object]:
        """Return everything but the spec, as JSON types."""
        return {
            "input_type": self.label.input_type,
            "text_field": self.label.text_field,
            "id_field": self.label.id_field,
            "truncate": self.truncate,
            "nulls": self.nulls,
            "rows_per_part": self.rows_per_part,
        }


def read_settings(folder: Folder) -> FolderSettings | None:
    """Return the settings that a folder was started with, or None if it was not started.

    Raises:
        InputError: If the file was damaged.
    """
    found = folder.read(SETTINGS)
    if found is None:
        return None
    try:
        facts: dict[str, Any] = json.loads(found)
        label = {key.encode(): value.encode() for key, value in facts["label"].items()}
        return FolderSettings(
            label=FileContract.from_metadata(label, source=SETTINGS),
            truncate=facts["truncate"],
            nulls=bool(facts["nulls"]),
            rows_per_part=int(facts["rows_per_part"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.address_of(SETTINGS)} is damaged: {error}") from None


def begin(folder: Folder, asked: FolderSettings) -> None:
    """Prepare a folder for a run: write its settings, or check that they are those asked for.

    From now on the folder is incomplete, and what an earlier run attempted is forgotten.

    Raises:
        SpaceMismatchError: If the folder holds vectors of another space.
        ConfigurationError: If it was started with another role or other options, or has parquet
            files that are not nimbed's.
        InputError: If its settings were damaged.
    """
    settings = read_settings(folder)
    if settings is None:
        _write_settings(folder, asked)
    else:
        ours, theirs = settings.label.spec, asked.label.spec
        require_same_space(ours, theirs, doing=f"put into {folder.address}")
        existing = settings.facts()
        for name, value in asked.facts().items():
            if existing[name] != value:
                raise ConfigurationError(
                    f"{folder.address} was started with {name} {existing[name]!r}; got {value!r}; "
                    f"ask for the same, or use another folder"
                )
    folder.delete(COMPLETE)
    Attempts(folder).clear()


def _write_settings(folder: Folder, settings: FolderSettings) -> None:
    foreign = next((name for name in folder.names() if name.endswith(".parquet")), None)
    if foreign is not None:
        raise ConfigurationError(
            f"{folder.address} holds {foreign!r}, which nimbed did not write there; use an empty "
            f"folder"
        )
    label = settings.label.to_metadata()
    facts = {
        "label": {key.decode(): value.decode() for key, value in label.items()},
        "truncate": settings.truncate,
        "nulls": settings.nulls,
        "rows_per_part": settings.rows_per_part,
    }
    folder.make()
    folder.write(SETTINGS, json.dumps(facts, ensure_ascii=False, indent=2).encode() + b"\n")


def complete(folder: Folder, parts: Sequence[Part], on_stale: OnStale) -> int:
    """Make a folder hold the given parts and nothing else, and list them.

    Args:
        folder: Holds each of the parts at least once.
        parts: In the order of the dataset; the same one may occur several times.
        on_stale: What happens to other parts.

    Returns:
        How many parts were deleted.

    Raises:
        ConfigurationError: If there are others, and ``on_stale`` is ``raise``.
    """
    names: list[str] = []
    seen: Counter[str] = Counter()
    for part in parts:
        # The second of two parts with the same rows gets a file of its own.
        seen[part.name] += 1
        name = copy_name(part.name, seen[part.name])
        content = folder.read(part.name) if name != part.name else None
        if content is not None:
            folder.write(name, content)
        names.append(name)
    folder.sweep()
    stale = sorted({name for name in folder.names() if is_part(name)} - set(names))
    if stale and on_stale == "raise":
        raise ConfigurationError(
            f"{folder.address} holds {len(stale)} parts whose rows the dataset does not have "
            f"({stale[0]}, …): its rows or their order changed. Every part of the dataset is "
            f"there too; call again with on_stale='delete', or use another folder"
        )
    for name in stale:
        folder.delete(name)
    facts = {"rows": sum(part.rows for part in parts), "parts": names}
    folder.write(COMPLETE, json.dumps(facts, indent=1).encode() + b"\n")
    return len(stale)


def parts_of(output: str) -> list[str]:
    """Return the addresses of a complete folder's parts, in the order of the dataset.

    Raises:
        ConfigurationError: If the folder is not complete.
    """
    folder = Folder.at(output)
    found = folder.read(COMPLETE)
    if found is None:
        raise ConfigurationError(
            f"{output} is not complete; call embed_into_parts again, which makes what is missing"
        )
    return [folder.address_of(name) for name in json.loads(found)["parts"]]
