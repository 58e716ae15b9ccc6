"""A dataset of texts in, the same dataset with vectors out, made by actors of a cluster."""

from __future__ import annotations

import copy
import json

from nimbed.errors import ConfigurationError
from nimbed.files.arrow import FileContract as Label
from nimbed.files.arrow import Table, arrow
from nimbed.spec import require_same_space
from nimbed_ray.cluster import Dataset, plan_actors, pool_options
from nimbed_ray.embed_texts import EmbedTexts

__all__ = ["embed_dataset", "label_of"]


def embed_dataset(
    dataset: Dataset,
    embed: EmbedTexts,
    *,
    actors: int | None = None,
    threads: int | None = None,
    gpus: bool | None = None,
    batch_size: int = 1024,
) -> Dataset:
    """Return the dataset with vectors, to be made when somebody reads it.

    What goes wrong then comes as an error of Ray's that quotes nimbed's, unless the dataset's
    ``context.raise_original_map_exception`` is set.

    Args:
        dataset: Has a column of texts.
        embed: Says what is wanted; it is copied to every actor, which reads the model once.
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
    planned = plan_actors(embed.embedder, count=actors, threads=threads or embed.threads, gpus=gpus)
    worker = copy.copy(embed)
    worker.threads = planned.threads
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(worker,),
        batch_size=batch_size,
        batch_format="pyarrow",
        **pool_options(planned),
    )


class _Worker:
    """An :class:`EmbedTexts` in an actor: Ray makes objects of classes alone."""

    def __init__(self, embed: EmbedTexts) -> None:
        self._embed = embed

    def __call__(self, table: Table) -> Table:
        return self._embed(table)


def label_of(dataset: Dataset) -> Label:
    """Return the contract of the vectors in a dataset, once every block was asked.

    The dataset is run if it was not, so materialize one that is costly.

    Raises:
        SpaceMismatchError: If two blocks hold vectors of different spaces.
        ConfigurationError: If two blocks hold different roles, or one holds no vectors of
            nimbed's, or there is none.
    """
    labels: list[Label] = []
    blocks = dataset.map_batches(_metadata, batch_size=None, batch_format="pyarrow")
    for row in blocks.iter_rows():
        facts: dict[str, str] = json.loads(row["metadata"])
        metadata = {key.encode(): value.encode() for key, value in facts.items()}
        labels.append(Label.from_metadata(metadata, source="a block of the dataset"))
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
    pa = arrow()
    if not table.num_rows:
        return pa.table({"metadata": pa.array([], pa.string())})
    found: dict[bytes, bytes] = table.schema.metadata or {}
    ours = {key.decode(): value.decode() for key, value in found.items() if _ours(key)}
    return pa.table({"metadata": [json.dumps(ours)]})


def _ours(key: bytes) -> bool:
    return key.startswith(b"nimbed.")
