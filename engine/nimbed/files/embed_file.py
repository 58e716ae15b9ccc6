"""Embed every text of a file into another file, in memory that does not grow with either."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol, Self

from nimbed.batch import EmbeddingBatch
from nimbed.bulk import JobReport, embed_accepted, ignore
from nimbed.chunks import (
    Chunk,
    ContextText,
    LateSplitter,
    Splitter,
    chunk_row,
    split_rows,
)
from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, InputError
from nimbed.files.arrow import RESERVED, FileContract
from nimbed.files.ipc import open_ipc
from nimbed.files.parquet import ArrowTable, Carried, ChunkTable, open_parquet
from nimbed.files.readers import RowReader
from nimbed.files.sources import Source, check_exists, is_rereadable, is_source, kind_of, name_of
from nimbed.files.writers import InferredColumns, Staging, check_output, open_writer, spec_beside
from nimbed.options import EmbedOptions
from nimbed.reports import Progress, reporting
from nimbed.rows import BadRow, Reject, Row, TextFields, row_id
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec, check_literal

__all__ = ["FileReport", "OnError", "embed_file"]

OnError = Literal["raise", "skip"]

# A batch is closed at either bound. Rows: enough to sort by length, and few enough that all are
# tokenized before the first is embedded. Characters: what is held when the texts are long.
_BATCH_ROWS = 4096
_BATCH_CHARACTERS = 2**23


@dataclass(slots=True, kw_only=True)
class FileReport(JobReport):
    """What became of a file; every row of a file is new.

    Attributes:
        output: The file of vectors.
        spec: Their contract.
        skipped_list: The file that says which rows were left out and why, if there are any.
    """

    output: Path
    spec: VectorSpec
    skipped_list: Path | None = None

    @property
    def rows(self) -> int:
        """Vectors written."""
        return self.loaded

    @property
    def skipped(self) -> int:
        """Rows that were left out."""
        return self.rejected


def embed_file(
    embedder: Embedder,
    source: Source,
    output: str | os.PathLike[str],
    *,
    input_type: InputType,
    text_field: str | Sequence[str] = "text",
    id_field: str | None = None,
    kind: str | None = None,
    template: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    embedding_type: EmbeddingType = "float",
    dimensions: int | None = None,
    truncate: Truncate = "NONE",
    int8_scale: Int8Scale | None = None,
    on_error: OnError = "raise",
    splitter: Splitter | None = None,
    progress: Progress = False,
) -> FileReport:
    """Embed every text of a file into another file, which appears when it is complete.

    Args:
        embedder: Makes the vectors.
        source: What :func:`nimbed.files.read_rows` reads, which says more of the next six.
        output: ``.parquet`` (ids and other columns carried along, the spec in the schema
            metadata), ``.jsonl`` or ``.npy`` (the spec in ``OUTPUT.spec.json``).
        input_type: ``query`` or ``passage``, the role of every text.
        text_field: Field or column of the text, or several, joined in a column ``text``.
        id_field: Field or column of the id, if any.
        kind: The format of the source, where its name does not tell it.
        template: How several text fields are joined.
        encoding: Of a text format.
        delimiter: Of csv.
        embedding_type: How a dimension is stored.
        dimensions: One of the sizes the model offers; None for all.
        truncate: What happens to a text that is too long.
        int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
        on_error: ``raise`` stops at the first row that cannot be embedded and names its line;
            ``skip`` leaves such rows out and lists them in ``OUTPUT.skipped.jsonl``.
        splitter: Divides each text into chunks, a row each: its id gets ``#`` and its number, and
            the columns of :data:`nimbed.chunks.CHUNK_FIELDS` say where it lies; a
            :class:`nimbed.chunks.LateSplitter` embeds it with the text around it.
        progress: True for a bar, or a callable told (done, total) in rows; the total of a stream,
            or of chunks, is 0.

    Raises:
        InputError: If the source is missing or damaged, or a row is bad; ``.rows`` has its
            number in the source.
        ConfigurationError: If the model cannot give such vectors, a format or a column is
            unknown, or the folder of the output does not exist.
        BackendError: If the model or the server failed.
    """
    check_literal("on_error", on_error, OnError)
    options = EmbedOptions(
        input_type=input_type,
        embedding_type=embedding_type,
        dimensions=dimensions,
        truncate=truncate,
        int8_scale=int8_scale,
    )
    target = Path(output)
    text = TextFields.of(text_field, template)
    reader = RowReader(
        source=source,
        kind=kind_of(source, kind),
        text=text,
        id_field=id_field,
        carry=check_output(target) != ".npy",
        encoding=encoding,
        delimiter=delimiter,
    )
    _check_names(source, target, text.name, id_field)
    contract = FileContract(
        spec=embedder.spec(**options.of_spec),
        input_type=input_type,
        text_field=text.name,
        # A document of a folder is called by its path.
        id_field="id" if reader.kind == "folder" else id_field,
    )
    embed = functools.partial(
        embedder.embed, input_type=input_type, truncate=truncate, **options.of_spec
    )
    return _run(
        reader, contract, embed, target, on_error=on_error, splitter=splitter, progress=progress
    )


_ANY = {False: Chunk(0, 0, 1, ""), True: Chunk(0, 0, 1, ContextText("", 0, 0))}


class _Embed(Protocol):
    """An embedder's ``embed`` whose options are chosen."""

    def __call__(self, inputs: Sequence[str], /, *, progress: Progress) -> EmbeddingBatch:
        """Embed texts."""
        ...


def _run(
    reader: RowReader,
    contract: FileContract,
    embed: _Embed,
    target: Path,
    *,
    on_error: OnError,
    splitter: Splitter | None,
    progress: Progress,
) -> FileReport:
    into_parquet = check_output(target) == ".parquet"
    rereadable, late = is_rereadable(reader.source), isinstance(splitter, LateSplitter)
    inferred = InferredColumns(contract)
    carried: Carried = inferred
    report = FileReport(output=target, spec=contract.spec)
    total = 0
    with Staging(target) as staging, _Rejects(reader, on_error, report, staging) as rejects:
        if rereadable:
            learning = inferred if reader.typeless and into_parquet else None
            any_chunk = None if splitter is None else _ANY[late]
            total, bad = _survey(reader, learning, any_chunk)
            if bad is not None and on_error == "raise":
                rejects.reject([bad], bad.reason)
        good = _good(reader, rejects)
        if splitter is not None:
            total, good = 0, _chunks(good, splitter, name_of(reader.source))
        batches = _batched(good)
        if into_parquet and reader.typeless:
            batches = _fitting(batches, inferred, rejects, learn=not rereadable)
        elif into_parquet:
            open_file = open_ipc if reader.kind == "feather" else open_parquet
            with open_file(reader.source) as file:
                carried = (
                    ArrowTable(file.schema_arrow)
                    if splitter is None
                    else ChunkTable(
                        file.schema_arrow, contract.text_field, contract.id_field, late=late
                    )
                )
        none: list[Row] = []
        # The first batch tells the columns of a stream, so it is read before the writer starts.
        batches = itertools.chain([next(batches, none)], batches)
        with (
            open_writer(target, contract=contract, carried=carried, staging=staging) as writer,
            reporting(progress, total) as finished,
        ):
            for rows in batches:
                kept, vectors = rejects.embed(rows, embed, finished)
                writer.write(kept, vectors)
                report.loaded += len(vectors)
                report.count_embedded(vectors)
                del rows, kept, vectors  # before the next batch is read
    return report


def _skipped_list(target: Path) -> Path:
    """Return the path of the list of rows that an output leaves out."""
    return target.with_name(f"{target.name}.skipped.jsonl")


def _check_names(source: Source, target: Path, text_field: str, id_field: str | None) -> None:
    check_exists(source)
    for written in (target, _skipped_list(target), spec_beside(target)):
        if is_source(written, [source]):
            raise ConfigurationError(
                f"{str(written)!r} is the input, and would be replaced; write to another name"
            )
    for name in (text_field, id_field):
        if name in RESERVED:
            raise ConfigurationError(f"the output needs the name {name!r} for itself; rename it")


def _chunks(rows: Iterable[Row], splitter: Splitter, source: str) -> Iterator[Row]:
    return (row for row in split_rows(rows, splitter, source=source) if isinstance(row, Row))


def _survey(
    reader: RowReader, columns: InferredColumns | None, chunk: Chunk | None
) -> tuple[int, BadRow | None]:
    """Count the good rows, find the first bad one, and let ``columns`` learn their types.

    A pass over a file costs little beside embedding it, and finds in seconds what would otherwise
    stop the job after hours.
    """
    good, first_bad = 0, None
    for row in reader.rows(carry=columns is not None):
        if isinstance(row, BadRow):
            first_bad = first_bad or row
            continue
        good += 1
        if columns is not None:
            # Where chunks lie changes no type, so that nothing need be split twice.
            columns.learn(row if chunk is None else chunk_row(row, row_id(row, ""), chunk))
    return good, first_bad


class _Rejects:
    """Rows that cannot be embedded: the first stops the job, or all are listed in a file.

    Args:
        reader: Names the rows.
        on_error: What happens to a bad row.
        report: Counts them.
        staging: Where the list is written before it gets its name.
    """

    def __init__(
        self, reader: RowReader, on_error: OnError, report: FileReport, staging: Staging
    ) -> None:
        self._reader = reader
        self._on_error = on_error
        self._report = report
        self._target = _skipped_list(report.output)
        self._staging = staging
        self._file: IO[str] | None = None
        # A list from an earlier run would be taken for this one's.
        staging.drop(self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def reject(self, rows: Sequence[Row | BadRow], *reasons: str) -> None:
        """Stop the job, or list the rows, a reason each.

        Raises:
            InputError: If bad rows stop the job.
        """
        if self._on_error == "raise":
            numbers = [row.number for row in rows]
            # A reason may name its row; here it stands before it.
            shorter = reasons[0].replace(f" ({self._reader.places(numbers[:1])})", "")
            raise InputError(f"{self._reader.where(numbers)}: {shorter}", rows=numbers)
        if self._file is None:
            place = self._staging.place(self._target)
            self._file = place.open("w", encoding="utf-8", newline="\n")
            self._report.skipped_list = self._target
        listed = [
            Reject(row.number, row.id if isinstance(row, Row) else None, reason)
            for row, reason in zip(rows, reasons, strict=True)
        ]
        self._file.writelines(reject.to_json() + "\n" for reject in listed)
        self._report.reject(listed, ignore)

    def embed(
        self, rows: list[Row], embed: _Embed, finished: Callable[[int], None]
    ) -> tuple[list[Row], EmbeddingBatch]:
        """Embed the rows that can be embedded, and reject the others.

        Args:
            rows: A batch of rows.
            embed: Makes the vectors.
            finished: Told how many rows have just been dealt with.

        Returns:
            The rows that were embedded, and their vectors.

        Raises:
            InputError: If bad rows stop the job, or the embedder does not say which row it
                refuses.
        """
        told, size = 0, len(rows)

        def tell(done: int, _total: int) -> None:
            nonlocal told
            if done > told:
                finished(done - told)
                told = done

        def refuse(places: list[int], error: InputError) -> None:
            refused = [rows[place] for place in places]
            # The embedder counts from the start of the batch; a person counts lines.
            lines = [self._reader.places([row.number]) for row in refused]
            self.reject(refused, *(error.about(place, line) for place, line in enumerate(lines)))

        texts = [row.text for row in rows]
        places, batch = embed_accepted(texts, lambda some: embed(some, progress=tell), refuse)
        tell(size, size)
        return [rows[place] for place in places], batch


def _good(reader: RowReader, rejects: _Rejects) -> Iterator[Row]:
    for row in reader.rows():
        if isinstance(row, BadRow):
            rejects.reject([row], row.reason)
        else:
            yield row


def _batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows in lists that are large enough to embed well and small enough to hold."""
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.text)
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _fitting(
    batches: Iterator[list[Row]], columns: InferredColumns, rejects: _Rejects, *, learn: bool
) -> Iterator[list[Row]]:
    """Drop the rows that do not fit the columns, which the first batch of a stream decides."""
    for batch in batches:
        if learn:
            for row in batch:
                columns.learn(row)
            learn = False
        fitting: list[Row] = []
        for row in batch:
            fault = columns.fault(row)
            if fault is None:
                fitting.append(row)
            else:
                rejects.reject([row], fault)
        yield fitting
