"""From batches of vectors to a file of any known format.

What each format holds is said in its own file; this one chooses among them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.files.arrow import arrow
from nimbed.files.jsonl_writer import JsonlWriter
from nimbed.files.label import Label
from nimbed.files.npy_writer import NpyWriter
from nimbed.files.parquet_writer import Carried, ParquetWriter
from nimbed.files.rows import Row
from nimbed.files.staging import Staging

__all__ = ["VectorWriter", "check_output", "open_writer"]

_SUFFIXES = (".parquet", ".jsonl", ".npy")


class VectorWriter(Protocol):
    """Appends vectors to a file; a context manager that completes the file."""

    def write(self, rows: Sequence[Row], batch: EmbeddingBatch) -> None:
        """Append rows with their vectors, one a row, in order."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, /, *rest: object) -> None: ...


def check_output(target: Path) -> str:
    """Return the suffix of a path, if a file of vectors can be written there.

    Raises:
        ConfigurationError: If its suffix is not one of the formats, or its folder is missing.
        MissingExtraError: If pyarrow is needed and absent.
    """
    suffix = target.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigurationError(
            f"the name {target.name!r} does not tell a format; end it in {', '.join(_SUFFIXES)}"
        )
    if target.is_dir():
        raise ConfigurationError(f"{str(target)!r} is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {str(target.parent)!r}; create it first")
    if suffix == ".parquet":
        arrow()
    return suffix


def open_writer(target: Path, *, label: Label, carried: Carried, staging: Staging) -> VectorWriter:
    """Start a file of vectors in a staging.

    Args:
        target: Where the file will be; its suffix tells the format.
        label: What the file says about itself.
        carried: The source's columns, for formats that have types.
        staging: Moves the finished files into place.

    Raises:
        ConfigurationError: As :func:`check_output`.
        MissingExtraError: As :func:`check_output`.
    """
    suffix = check_output(target)
    place = staging.place(target)
    if suffix == ".parquet":
        return ParquetWriter(place, label, carried)
    beside = target.with_name(f"{target.name}.spec.json")
    facts = json.dumps(label.spec.to_dict(), ensure_ascii=False, indent=2)
    staging.place(beside).write_text(facts + "\n", encoding="utf-8")
    return JsonlWriter(place, label) if suffix == ".jsonl" else NpyWriter(place, label)
