"""Dask: vectors through ``DataFrame.map_partitions``, and the ``meta`` that it needs.

    frame.map_partitions(embed_partition, embed, meta=partition_meta(frame._meta, embed))

Dask is not imported. Vectors stay Arrow's fixed-size lists, as ``pandas.ArrowDtype``.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

import numpy as np

from nimbed.errors import missing_extra
from nimbed.files.arrow import Table, arrow
from nimbed_ray.embed_texts import EmbedTexts

__all__ = ["embed_partition", "partition_meta"]

# pandas may be absent where types are checked.
Frame: TypeAlias = Any

# The number of a row, while a table holds only what is needed to embed it.
_NUMBER = "nimbed row number"


def embed_partition(frame: Frame, embed: EmbedTexts) -> Frame:
    """Return a partition with vectors added; its index and its columns are kept.

    Raises:
        InputError: If ``embed`` says ``raise`` and a text cannot be embedded.
        ConfigurationError: If a column is missing, or has a name that the output needs.
    """
    return _joined(frame, embed(_needed(frame, embed)))


def partition_meta(meta: Frame, embed: EmbedTexts) -> Frame:
    """Return the empty frame that tells Dask the columns and their types; loads nothing."""
    return _joined(meta.iloc[:0], embed.schema(_needed(meta.iloc[:0], embed).schema).empty_table())


def _needed(frame: Frame, embed: EmbedTexts) -> Table:
    """Return texts and ids as Arrow, and of the other columns only the names, to be checked."""
    pa = arrow()
    table = pa.table({_NUMBER: np.arange(len(frame))})
    for name in frame.columns:
        if name == embed.label.text_field:
            column = pa.array(frame[name], pa.string(), from_pandas=True)
        elif name == embed.label.id_field:
            column = pa.array(frame[name], from_pandas=True)
        else:
            column = pa.nulls(len(frame))
        table = table.append_column(str(name), column)
    return table


def _joined(frame: Frame, table: Table) -> Frame:
    try:
        pd = importlib.import_module("pandas")
    except ImportError as error:
        raise missing_extra("ray", needs="pandas") from error
    kept = frame.iloc[table[_NUMBER].to_numpy()]
    own = {
        name: pd.Series(pd.arrays.ArrowExtensionArray(table[name]), index=kept.index)
        for name in table.column_names[len(frame.columns) + 1 :]
    }
    return kept.assign(**own)
