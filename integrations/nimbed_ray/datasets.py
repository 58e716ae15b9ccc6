"""Ray Data: vectors for a dataset of texts, in the dataset or in a folder of parquet parts.

:func:`embed_dataset` makes the vectors when the dataset is read; :func:`embed_into_parts` writes
files now, and makes none again that is there already.
"""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError, NimbedError
from nimbed.files.arrow import FileContract, Table, arrow
from nimbed.reports import Progress, reporting
from nimbed.spec import check_literal, require_same_space
from nimbed_ray.cluster import Dataset, import_ray, plan_actors
from nimbed_ray.embed_texts import EmbedTexts
from nimbed_ray.folder import Folder, opened
from nimbed_ray.parts import (
    SETTINGS,
    FolderSettings,
    OnStale,
    Part,
    PartWriter,
    begin,
    complete,
    parts_of,
    read_settings,
)

__all__ = ["PartsReport", "embed_dataset", "embed_into_parts", "label_of", "read_parts"]

# What is lost when an actor dies, and enough texts to be packed well by length.
_ROWS_PER_PART = 4096


# ---- a dataset with vectors ------------------------------------------------------------------


def embed_dataset(
    dataset: Dataset,
    embed: EmbedTexts,
    *,
    actors: int | None = None,
    threads: int | None = None,
    gpus: bool | None = None,
    batch_size: int = 1024,
) -> Dataset:
    """Return the dataset with vectors, which are made when it is read.

    An error then comes as one of Ray's that quotes nimbed's, unless the dataset's
    ``context.raise_original_map_exception`` is set.

    Args:
        dataset: Has a column of texts.
        embed: Makes the vectors; it is copied to every actor, which reads the model once.
        actors: Processes that embed; None for one a GPU, or one for every ``threads`` cores.
        threads: CPU threads of each; None for 1 on CPUs, an equal share of the cores on GPUs. A
            model of gigabytes wants more threads and so fewer copies.
        gpus: Whether each actor gets a GPU; None: if there are any, and the model runs here.
        batch_size: Rows that are embedded at a time; the engine packs them by their lengths.

    Raises:
        ConfigurationError: If a column is known to be missing, or the cluster has no room for
            the actors.
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1; got {batch_size}")
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        embed.check_columns(schema.names)
    worker, options = _on_actors(embed, actors, threads, gpus)
    return dataset.map_batches(
        _EmbedActor,
        fn_constructor_args=(worker,),
        batch_size=batch_size,
        batch_format="pyarrow",
        **options,
    )


class _EmbedActor:
    """An :class:`EmbedTexts` in an actor, which Ray makes from a class only."""

    def __init__(self, embed: EmbedTexts) -> None:
        self._embed = embed

    def __call__(self, table: Table) -> Table:
        return self._embed(table)


def _on_actors(
    embed: EmbedTexts, actors: int | None, threads: int | None, gpus: bool | None
) -> tuple[EmbedTexts, dict[str, Any]]:
    """Return what each actor gets, and the actors as options of ``Dataset.map_batches``."""
    planned = plan_actors(embed.embedder, count=actors, threads=threads or embed.threads, gpus=gpus)
    worker = copy.copy(embed)
    worker.threads = planned.threads
    return worker, planned.map_options()


def label_of(dataset: Dataset) -> FileContract:
    """Return the contract of the vectors in a dataset, after asking every block.

    The dataset is run if it was not, so materialize one that is costly.

    Raises:
        SpaceMismatchError: If two blocks hold vectors of different spaces.
        ConfigurationError: If two blocks hold different roles, if one was not written by nimbed,
            or if there is none.
    """
    labels: list[FileContract] = []
    blocks = dataset.map_batches(_metadata, batch_size=None, batch_format="pyarrow")
    for row in blocks.iter_rows():
        facts: dict[str, str] = json.loads(row["metadata"])
        metadata = {key.encode(): value.encode() for key, value in facts.items()}
        labels.append(FileContract.from_metadata(metadata, source="a block of the dataset"))
    if not labels:
        raise ConfigurationError("the dataset is empty, so its vectors have no contract")
    first = labels[0]
    for label in labels[1:]:
        require_same_space(first.spec, label.spec, doing="keep in one dataset")
        if label != first:
            raise ConfigurationError(
                f"blocks of the dataset disagree: {first.input_type} vectors of column "
                f"{first.text_field!r}, {label.input_type} vectors of column {label.text_field!r}"
            )
    return first


def _metadata(table: Table) -> Table:
    """Return what the schema of a block says about vectors, as a table of one row."""
    pa = arrow()
    if not table.num_rows:
        return pa.table({"metadata": pa.array([], pa.string())})
    found: dict[bytes, bytes] = table.schema.metadata or {}
    ours = {
        key.decode(): value.decode() for key, value in found.items() if key.startswith(b"nimbed.")
    }
    return pa.table({"metadata": [json.dumps(ours)]})


# ---- a folder of parts -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsReport:
    """What :func:`embed_into_parts` did with a dataset.

    Attributes:
        output: The folder.
        spec: The contract of every vector in it.
        rows: Vectors in the folder.
        embedded: Those of them that were made now.
        tokens: Tokens that the model read for those.
        left_out: Rows that could not be embedded; ``OUTPUT/_left_out`` has them with the reasons.
        parts: Files of vectors.
        deleted: Parts whose rows the dataset no longer has.
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
    """Embed a dataset into parquet files, and keep those that are there already.

    A job that was interrupted, at any moment, is resumed by the same call with the same rows in
    the same order: it makes the parts that are missing, and a part is complete or absent. Rows
    keep the dataset's order, in which :func:`nimbed_ray.parts_of` names the parts. Any parquet
    reader reads them, and so do :func:`nimbed.files.read_embedded` and ``nimbed load``.

    Args:
        dataset: Has a column of texts. What comes before it (reading, filters) runs again.
        embed: Makes the vectors.
        output: A folder that every machine sees: a path, or ``s3://bucket/path`` and the like.
        rows_per_part: Rows of the dataset that become one part; None for what the folder was
            started with, else 4096.
        actors: As :func:`nimbed_ray.embed_dataset`.
        threads: As there.
        gpus: As there.
        on_stale: What happens to parts whose rows the dataset no longer has: ``raise`` reports
            them at the end, ``delete`` deletes them.
        progress: True for a bar, or a callable told (done, total) in rows; the total is 0, since
            it is not known before the end.

    Raises:
        InputError: If a row is bad and ``embed`` says ``raise``.
        SpaceMismatchError: If the folder holds vectors of another space.
        ConfigurationError: If the folder was started with another role or other options, if it
            holds stale parts or files that are not nimbed's, or if the cluster has no room for
            the actors.
        BackendError: If the model or the server failed.
    """
    check_literal("on_stale", on_stale, OnStale)
    folder = Folder.at(output)
    existing = read_settings(folder)
    rows = rows_per_part
    if rows is None:
        rows = _ROWS_PER_PART if existing is None else existing.rows_per_part
    if rows < 1:
        raise ConfigurationError(f"rows_per_part must be at least 1; got {rows_per_part}")
    schema = dataset.schema()
    if schema is not None:  # before the folder is started with a column that is not there
        embed.check_columns(schema.names)
    worker, options = _on_actors(embed, actors, threads, gpus)
    settings = FolderSettings(
        label=embed.label,
        truncate=embed.options.truncate,
        nulls=embed.on_error == "null",
        rows_per_part=rows,
    )
    begin(folder, settings)
    made: list[Part] = []
    with _killing_actors() as registry, _in_order(dataset), reporting(progress, 0) as finished:
        # Exactly so many rows each, whatever the size of blocks and cluster: the same rows meet
        # in the same part every time.
        batches = dataset.repartition(target_num_rows_per_block=rows, strict=True)
        outcomes = batches.map_batches(
            _PartActor,
            fn_constructor_args=(worker, folder, registry),
            batch_size=rows,
            batch_format="pyarrow",
            **options,
        )
        for part in _parts(outcomes):
            made.append(part)
            finished(part.rows + part.left_out)
    deleted = complete(folder, made, on_stale)
    return PartsReport(
        output=output,
        spec=embed.label.spec,
        rows=sum(part.rows for part in made),
        embedded=sum(part.rows for part in made if part.made),
        tokens=sum(part.tokens for part in made),
        left_out=sum(part.left_out for part in made),
        parts=len(made),
        deleted=deleted,
    )


class _PartActor:
    """A :class:`PartWriter` in an actor; what nimbed raises there comes back as a row."""

    def __init__(self, embed: EmbedTexts, folder: Folder, registry: Any) -> None:
        registry.add.remote(import_ray().get_runtime_context().current_actor)
        self._writer = PartWriter(embed, folder)

    def __call__(self, rows: Table) -> Table:
        outcome: Part | NimbedError
        try:
            outcome = self._writer.write(rows)
        except NimbedError as error:
            error.add_note(f"in an actor:\n{traceback.format_exc()}")
            outcome = error
        return arrow().table({"outcome": [pickle.dumps(outcome)]})


class _ActorRegistry:
    """An actor that knows the other actors of a run; goes with the last handle to it."""

    def __init__(self) -> None:
        self._actors: list[Any] = []
        self._ended = False

    def add(self, actor: Any) -> None:
        """Add an actor, or kill it if the run has ended."""
        if self._ended:
            import_ray().kill(actor)
        self._actors.append(actor)

    def end(self) -> None:
        """Kill every actor, and those that are added from now on."""
        self._ended = True
        for actor in self._actors:
            import_ray().kill(actor)


@contextmanager
def _killing_actors() -> Generator[Any]:
    """Yield a registry, and kill the actors in it at the end of the block.

    Ray lets go of the actors of a run that failed only when nothing refers to the run or to its
    last block any more. The error itself and threads of Ray's do, perhaps for ever: the actors
    would keep their CPUs, and the next run would wait for them.
    """
    ray = import_ray()
    registry = ray.remote(num_cpus=0)(_ActorRegistry).remote()
    try:
        yield registry
    finally:
        with suppress(ray.exceptions.RayError):
            ray.get(registry.end.remote())


def _parts(outcomes: Dataset) -> Generator[Part]:
    """Run a dataset of outcomes and yield its parts; raise the first error among them."""
    for block in outcomes.iter_batches(batch_size=None, batch_format="pyarrow"):
        for pickled in block["outcome"].to_pylist():
            outcome: Part | NimbedError = pickle.loads(pickled)
            if isinstance(outcome, NimbedError):
                raise outcome
            yield outcome


@contextmanager
def _in_order(dataset: Dataset) -> Generator[None]:
    """Let blocks keep their order, and errors of the caller's own functions their type."""
    context = dataset.context
    options = context.execution_options
    before = options.preserve_order, context.raise_original_map_exception
    options.preserve_order = context.raise_original_map_exception = True
    try:
        yield
    finally:
        options.preserve_order, context.raise_original_map_exception = before


def read_parts(output: str) -> Dataset:
    """Return a complete folder as a dataset, in order, with the contract in its schemas.

    ``ray.data.read_parquet`` gives the same rows, but forgets a schema's metadata.

    Raises:
        ConfigurationError: If the folder is not complete, or its dataset had no rows.
    """
    parts, settings = parts_of(output), read_settings(Folder.at(output))
    if settings is None:
        raise ConfigurationError(f"{output} has lost its {SETTINGS}")
    if not parts:
        raise ConfigurationError(f"{output} is complete and has no parts: its dataset had no rows")
    system, paths = opened(parts)
    dataset: Dataset = import_ray().data.read_parquet(paths, filesystem=system)
    dataset.context.execution_options.preserve_order = True
    return dataset.map_batches(
        _labelled, fn_args=(settings.label.to_metadata(),), batch_size=None, batch_format="pyarrow"
    )


def _labelled(table: Table, metadata: dict[bytes, bytes]) -> Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
