"""A dataset of texts into a folder of parquet parts; what is there is not made again."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError
from nimbed.files.arrow import Table
from nimbed.progress import Progress, reporting
from nimbed.spec import check_literal
from nimbed_ray.cluster import Dataset, import_ray, plan_actors, pool_options, running
from nimbed_ray.embed_texts import EmbedTexts
from nimbed_ray.folder import Folder, opened
from nimbed_ray.ledger import OnStale, complete, parts_of, reopen
from nimbed_ray.parts import Part, PartWriter
from nimbed_ray.promise import PROMISE, Promise, keep_promise, read_promise

__all__ = ["PartsReport", "embed_into_parts", "read_parts"]

# What is lost when an actor dies, and enough texts to be packed well by length.
_ROWS_PER_PART = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsReport:
    """What became of a dataset.

    Attributes:
        output: The folder.
        spec: The contract of every vector in it.
        rows: Vectors in the folder.
        embedded: Those of them that were made now.
        tokens: Tokens that the model read for these.
        left_out: Rows that could not be embedded; ``OUTPUT/_left_out`` lists them with reasons.
        parts: Files of vectors.
        deleted: Parts of rows that the dataset has no more.
    """

    output: str
    spec: VectorSpec
    rows: int
    embedded: int
    tokens: int
    left_out: int
    parts: int
    deleted: int


def embed_into_parts(
    dataset: Dataset,
    embed: EmbedTexts,
    output: str,
    *,
    rows_per_part: int | None = None,
    actors: int | None = None,
    threads: int | None = None,
    gpus: bool | None = None,
    on_stale: OnStale = "raise",
    progress: Progress = False,
) -> PartsReport:
    """Embed a dataset into parquet files, of which those that are there are kept.

    Interrupted at any moment and called again with the same rows in the same order, it makes the
    parts that are missing, and no part is ever half there. Rows keep the dataset's order;
    :func:`nimbed_ray.parts_of` names the parts in it. Any parquet reader reads a part, and so do
    :func:`nimbed.files.read_embedded` and ``nimbed load``.

    Args:
        dataset: Has a column of texts. What is above it (reading, filters) runs again.
        embed: Says what is wanted.
        output: A folder that every machine sees: a path, or ``s3://bucket/path`` and the like.
        rows_per_part: Rows of the dataset that become one part; None for what the folder was
            begun with, else 4096.
        actors: As :func:`nimbed_ray.embed_dataset`.
        threads: As there.
        gpus: As there.
        on_stale: What becomes of parts whose rows the dataset has no more: ``raise`` says so at
            the end, ``delete`` deletes them.
        progress: True for a bar, or a callable told (done, total) in rows; the total is 0, since
            nobody knows it before the end.

    Raises:
        InputError: If a row is bad and ``embed`` says ``raise``.
        SpaceMismatchError: If the folder holds vectors of another space.
        ConfigurationError: If the folder was begun with another role or other options, holds
            stale parts or strangers' files, or the cluster has no room for the actors.
        BackendError: If the model or the server failed.
    """
    check_literal("on_stale", on_stale, OnStale)
    folder = Folder.at(output)
    begun = read_promise(folder)
    rows = _ROWS_PER_PART if begun is None else begun.rows_per_part
    rows = rows if rows_per_part is None else rows_per_part
    if rows < 1:
        raise ConfigurationError(f"rows_per_part must be at least 1; got {rows_per_part}")
    schema = dataset.schema()
    if schema is not None:  # before the folder is begun with a name that is nobody's
        embed.check_columns(schema.names)
    planned = plan_actors(embed.embedder, count=actors, threads=threads or embed.threads, gpus=gpus)
    keep_promise(
        folder,
        Promise(
            label=embed.label,
            truncate=embed.truncate,
            nulls=embed.on_error == "null",
            rows_per_part=rows,
        ),
        begun,
    )
    reopen(folder)
    worker = copy.copy(embed)
    worker.threads = planned.threads
    parts: list[Part] = []
    # Stretches of exactly so many rows, whatever the size of blocks and cluster: the same rows
    # meet in the same part every time.
    done = dataset.repartition(target_num_rows_per_block=rows, strict=True).map_batches(
        PartWriter,
        fn_constructor_args=(worker, folder),
        batch_size=rows,
        batch_format="pyarrow",
        **pool_options(planned),
    )
    with _in_order(dataset), running(done), reporting(progress, 0) as finished:
        for row in done.iter_rows():
            part = Part(**row)
            parts.append(part)
            finished(part.rows + part.left_out)
    deleted = complete(folder, parts, on_stale)
    return PartsReport(
        output=output,
        spec=embed.label.spec,
        rows=sum(part.rows for part in parts),
        embedded=sum(part.rows for part in parts if part.made),
        tokens=sum(part.tokens for part in parts),
        left_out=sum(part.left_out for part in parts),
        parts=len(parts),
        deleted=deleted,
    )


def read_parts(output: str) -> Dataset:
    """Return a complete folder as a dataset, in order, with the contract in its schemas.

    ``ray.data.read_parquet`` gives the same rows, but forgets a schema's metadata.

    Raises:
        ConfigurationError: If the folder is not complete, or its dataset had no rows.
    """
    parts, begun = parts_of(output), read_promise(Folder.at(output))
    if begun is None:
        raise ConfigurationError(f"{output} has lost its {PROMISE}")
    if not parts:
        raise ConfigurationError(f"{output} is complete and has no parts: its dataset had no rows")
    system, paths = opened(parts)
    dataset: Dataset = import_ray().data.read_parquet(paths, filesystem=system)
    dataset.context.execution_options.preserve_order = True
    return dataset.map_batches(
        _labelled, fn_args=(begun.label.to_metadata(),), batch_size=None, batch_format="pyarrow"
    )


def _labelled(table: Table, metadata: dict[bytes, bytes]) -> Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})


@contextmanager
def _in_order(dataset: Dataset) -> Generator[None]:
    """Let the dataset's blocks keep their order, and its errors their kind."""
    context = dataset.context
    options = context.execution_options
    before = options.preserve_order, context.raise_original_map_exception
    options.preserve_order = context.raise_original_map_exception = True
    try:
        yield
    finally:
        options.preserve_order, context.raise_original_map_exception = before
