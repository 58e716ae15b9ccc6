"""A file of texts in, a file of vectors out, in memory that does not grow with either.

Works with any embedder; knows nothing about models or terminals.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError
from nimbed.files.chunks import Embed, chunked, embed_chunk
from nimbed.files.intake import Intake
from nimbed.files.label import RESERVED, Label
from nimbed.files.loose_columns import LooseColumns
from nimbed.files.parquet_rows import open_parquet
from nimbed.files.parquet_writer import ArrowTable, Carried
from nimbed.files.rejects import OnError, Rejects
from nimbed.files.rows import BadRow, Row
from nimbed.files.sources import Source, check_exists, is_rereadable, kind_of
from nimbed.files.staging import Staging
from nimbed.files.writers import check_output, open_writer
from nimbed.progress import Progress, reporting
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec, check_literal

__all__ = ["FileReport", "embed_file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """What became of a file.

    Attributes:
        output: The file of vectors.
        spec: Their contract.
        rows: Vectors written.
        tokens: Tokens the model read.
        truncated: Texts that were cut.
        skipped: Rows that were left out.
        skipped_list: The file that says which and why, if there are any.
    """

    output: Path
    spec: VectorSpec
    rows: int
    tokens: int
    truncated: int
    skipped: int
    skipped_list: Path | None


def embed_file(
    embedder: Embedder,
    source: Source,
    output: str | os.PathLike[str],
    *,
    input_type: InputType,
    text_field: str = "text",
    id_field: str | None = None,
    kind: str | None = None,
    embedding_type: EmbeddingType = "float",
    dimensions: int | None = None,
    truncate: Truncate = "NONE",
    int8_scale: Int8Scale | None = None,
    on_error: OnError = "raise",
    progress: Progress = False,
) -> FileReport:
    """Embed every text of a file into another file, which appears when it is complete.

    Args:
        embedder: Makes the vectors.
        source: ``.txt``, ``.jsonl``, ``.csv`` (each also ``.gz``), ``.parquet``, or ``-``.
        output: ``.parquet`` (ids and other columns carried along, the spec in the schema
            metadata), ``.jsonl`` or ``.npy`` (the spec in ``OUTPUT.spec.json``).
        input_type: ``query`` or ``passage``, the role of every text.
        text_field: Field or column of the text.
        id_field: Field or column of the id, if any.
        kind: The format of the source, where its name does not tell it.
        embedding_type: How a dimension is stored.
        dimensions: One of the sizes the model offers; None for all.
        truncate: What happens to a text that is too long.
        int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
        on_error: ``raise`` stops at the first row that cannot be embedded and names its line;
            ``skip`` leaves such rows out and lists them in ``OUTPUT.skipped.jsonl``.
        progress: True for a bar, or a callable told (done, total) in rows; the total of a stream
            is 0.

    Raises:
        InputError: If the source is missing or damaged, or a row is bad; ``.rows`` has its
            number in the source.
        ConfigurationError: If the model cannot give such vectors, a format or a column is
            unknown, or the folder of the output does not exist.
        BackendError: If the model or the server failed.
    """
    check_literal("input_type", input_type, InputType)
    check_literal("truncate", truncate, Truncate)
    check_literal("on_error", on_error, OnError)
    target = Path(output)
    intake = Intake(
        source=source,
        kind=kind_of(source, kind),
        text_field=text_field,
        id_field=id_field,
        carry=check_output(target) != ".npy",
    )
    _check_names(source, target, text_field, id_field)
    label = Label(
        spec=embedder.spec(
            embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
        ),
        input_type=input_type,
        text_field=text_field,
        id_field=id_field,
    )
    embed = functools.partial(
        embedder.embed,
        input_type=input_type,
        embedding_type=embedding_type,
        dimensions=dimensions,
        truncate=truncate,
        int8_scale=int8_scale,
    )
    return _run(intake, label, embed, target, on_error=on_error, progress=progress)


def _run(
    intake: Intake,
    label: Label,
    embed: Embed,
    target: Path,
    *,
    on_error: OnError,
    progress: Progress,
) -> FileReport:
    listed = target.with_name(f"{target.name}.skipped.jsonl")
    into_parquet = check_output(target) == ".parquet"
    rereadable = is_rereadable(intake.source)
    loose = LooseColumns(label)
    carried: Carried = loose
    total = written = tokens = truncated = 0
    with Staging(target) as staging, Rejects(intake, on_error, listed, staging) as rejects:
        if rereadable:
            total, bad = intake.survey(loose if intake.typeless and into_parquet else None)
            if bad is not None and on_error == "raise":
                rejects.reject([bad], bad.reason)
        chunks = chunked(_good(intake, rejects))
        if into_parquet and intake.typeless:
            chunks = _fitting(chunks, loose, rejects, learn=not rereadable)
        elif into_parquet:
            with open_parquet(intake.source) as file:
                carried = ArrowTable(file.schema_arrow)
        none: list[Row] = []
        # The first chunk tells the columns of a stream, so it is read before the writer starts.
        chunks = itertools.chain([next(chunks, none)], chunks)
        with (
            open_writer(target, label=label, carried=carried, staging=staging) as writer,
            reporting(progress, total) as finished,
        ):
            for chunk in chunks:
                rows, batch = embed_chunk(chunk, embed, rejects, finished)
                writer.write(rows, batch)
                written += len(batch)
                tokens += int(batch.token_counts.sum())
                truncated += len(batch.truncated)
                del chunk, rows, batch  # before the next chunk is read
    return FileReport(
        output=target,
        spec=label.spec,
        rows=written,
        tokens=tokens,
        truncated=truncated,
        skipped=rejects.count,
        skipped_list=listed if rejects.count else None,
    )


def _check_names(source: Source, target: Path, text_field: str, id_field: str | None) -> None:
    check_exists(source)
    if is_rereadable(source) and target.exists() and os.path.samefile(str(source), target):
        raise ConfigurationError(f"{str(target)!r} is the input; write to another name")
    for name in (text_field, id_field):
        if name in RESERVED:
            raise ConfigurationError(f"the output needs the name {name!r} for itself; rename it")


def _good(intake: Intake, rejects: Rejects) -> Iterator[Row]:
    for row in intake.rows():
        if isinstance(row, BadRow):
            rejects.reject([row], row.reason)
        else:
            yield row


def _fitting(
    chunks: Iterator[list[Row]], columns: LooseColumns, rejects: Rejects, *, learn: bool
) -> Iterator[list[Row]]:
    """Drop the rows that do not fit the columns, which the first chunk of a stream decides."""
    for chunk in chunks:
        if learn:
            for row in chunk:
                columns.learn(row)
            learn = False
        fitting: list[Row] = []
        for row in chunk:
            fault = columns.fault(row)
            if fault is None:
                fitting.append(row)
            else:
                rejects.reject([row], fault)
        yield fitting
