"""Arrow's IPC files: feather, and the folders that Hugging Face's datasets save."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nimbed.errors import InputError
from nimbed.files.arrow import RecordBatch, Schema, arrow
from nimbed.files.sources import Source, name_of, random_access

__all__ = ["IpcFile", "open_ipc"]

_MAGIC = b"ARROW1"


class IpcFile:
    """An open file, or several of one schema; read as a parquet file is.

    Attributes:
        schema_arrow: Names and types of the columns.
    """

    def __init__(self, readers: Sequence[Any]) -> None:
        self.schema_arrow: Schema = readers[0].schema
        self._readers = readers

    def iter_batches(
        self, *, batch_size: int, columns: Sequence[str] | None = None
    ) -> Iterator[RecordBatch]:
        """Yield the rows, at most so many at a time, of the columns that are asked for."""
        for reader in self._readers:
            whole = (
                (reader.get_batch(place) for place in range(reader.num_record_batches))
                if hasattr(reader, "num_record_batches")
                else reader
            )
            for batch in whole:
                some = batch if columns is None else batch.select(list(columns))
                for start in range(0, some.num_rows, batch_size):
                    yield some.slice(start, batch_size)


@contextmanager
def open_ipc(source: Source) -> Generator[IpcFile]:
    """Open a feather file, an Arrow stream, or a folder that ``Dataset.save_to_disk`` wrote.

    Raises:
        MissingExtraError: If pyarrow is not installed.
        InputError: If a file is missing, damaged or of another format.
    """
    pa = arrow()
    with ExitStack() as stack:
        try:
            readers: list[Any] = []
            for place in _files(source):
                file = place
                if isinstance(place, Path):
                    file = stack.enter_context(pa.memory_map(str(place)))
                begins = file.read(len(_MAGIC))
                file.seek(0)
                kind = pa.ipc.open_file if begins == _MAGIC else pa.ipc.open_stream
                readers.append(stack.enter_context(kind(file)))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name_of(source)} is not a whole Arrow file: {error}") from error
        yield IpcFile(readers)


def _files(source: Source) -> list[Any]:
    folder = Path(source) if isinstance(source, (str, Path)) else None
    if folder is None or not folder.is_dir():
        return [random_access(source)]
    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [Path(each["filename"]) for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(folder)!r} is no folder that Dataset.save_to_disk wrote: its state.json cannot "
            f"be read ({error})"
        ) from error
    # A name and no path: what lies outside of the folder is not the dataset.
    if not names or any(name.name != str(name) for name in names):
        raise InputError(f"the state.json of {str(folder)!r} names no files of that folder")
    return [folder / name for name in names]
