"""An Arrow table of texts in, the same table with vectors out.

Knows Arrow and embedders, and no cluster: Ray, Spark and Dask call it alike.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

import nimbed
from nimbed import Embedder, EmbeddingBatch, ModelCard
from nimbed.errors import ConfigurationError, InputError, name_rows
from nimbed.files.arrow import RESERVED, Schema, Table, arrow
from nimbed.files.arrow import FileContract as Label
from nimbed.files.parquet import rows_of
from nimbed.rows import Row
from nimbed.spec import (
    EmbeddingType,
    InputType,
    Int8Scale,
    Truncate,
    check_literal,
    require_same_space,
)
from nimbed_ray.columns import ERROR_FIELD, rejected_rows, vector_columns, vector_fields
from nimbed_ray.threads import limit_threads

__all__ = ["ERROR_FIELD", "EmbedTexts", "Embedded", "OnError"]

#: ``raise`` stops at the first text that cannot be embedded; ``null`` keeps its row, with a null
#: for a vector and the reason in ``embedding_error``; ``skip`` leaves the row out.
OnError = Literal["raise", "null", "skip"]

_LOG = logging.getLogger("nimbed")


class Embedded(NamedTuple):
    """What became of a table.

    Attributes:
        table: Its rows with their vectors.
        rejected: The rows that were left out, with the reason in ``embedding_error``.
        tokens: Tokens that the model read.
    """

    table: Table
    rejected: Table
    tokens: int


class EmbedTexts:
    """Adds vectors to Arrow tables; a class for ``Dataset.map_batches``.

    Making one loads no weights, and a pickle holds none: each process that calls it reads the
    model once, at its first table. Give ``batch_format="pyarrow"`` to ``map_batches``, or let
    :func:`nimbed_ray.embed_dataset` do it.

    Args:
        model: A name for :func:`nimbed.load`, or an embedder that was made with the options it
            needs (device, base_url, ...). A server's key does not travel: each machine reads its
            own environment.
        input_type: ``query`` or ``passage``, the role of every text.
        text_field: Column of the texts.
        id_field: Column of the ids, by which messages name a row; None names its number.
        embedding_type: How a dimension is stored.
        dimensions: One of the sizes the model offers; None for all.
        truncate: What happens to a text that is too long.
        int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
        on_error: What becomes of a row whose text cannot be embedded: ``raise``, ``null`` or
            ``skip``.
        threads: CPU threads that a process may use; None leaves that to the libraries.

    Attributes:
        label: The contract that stands in the metadata of every schema.

    Raises:
        ConfigurationError: If the model cannot give such vectors.
    """

    def __init__(
        self,
        model: str | ModelCard | Embedder | None = None,
        *,
        input_type: InputType,
        text_field: str = "text",
        id_field: str | None = None,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        on_error: OnError = "raise",
        threads: int | None = None,
    ) -> None:
        check_literal("input_type", input_type, InputType)
        check_literal("truncate", truncate, Truncate)
        check_literal("on_error", on_error, OnError)
        if threads is not None and threads < 1:
            raise ConfigurationError(f"threads must be at least 1; got {threads}")
        self.embedder = (
            nimbed.load(model) if model is None or isinstance(model, (str, ModelCard)) else model
        )
        self.label = Label(
            spec=self.embedder.spec(
                embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
            ),
            input_type=input_type,
            text_field=text_field,
            id_field=id_field,
        )
        self.truncate: Truncate = truncate
        self.on_error: OnError = on_error
        self.threads = threads
        self._dimensions = dimensions

    def __repr__(self) -> str:
        spec = self.label.spec
        return (
            f"EmbedTexts({spec.model!r}, {self.label.input_type}, {spec.dimensions} dimensions, "
            f"{spec.embedding_type})"
        )

    def schema(self, given: Schema) -> Schema:
        """Return the schema that tables of the given schema will get; nothing is loaded.

        The vectors are ``fixed_size_list<float | int8 | uint8>[width]``; the spec, the role and
        the names of the columns stand in the schema's metadata, where
        :func:`nimbed_ray.label_of` finds them.

        Raises:
            ConfigurationError: If a column is missing, or has a name that the output needs.
        """
        self.check_columns(given.names)
        own = vector_fields(self.label.spec, nullable=self.on_error == "null")
        metadata = {**(given.metadata or {}), **self.label.to_metadata()}
        return arrow().schema([*given, *own], metadata=metadata)

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuse columns that do not have the texts, or have a name that the output needs.

        Raises:
            ConfigurationError: If it is so.
        """
        for name in (self.label.text_field, self.label.id_field):
            if name is not None and list(names).count(name) != 1:
                raise ConfigurationError(
                    f"the table has no column {name!r}; it has {', '.join(names)}"
                )
        taken = [name for name in (*RESERVED, ERROR_FIELD) if name in names]
        if taken:
            raise ConfigurationError(
                f"the table has a column {taken[0]!r} already, and the output needs that name; "
                f"rename or drop it"
            )

    def __call__(self, table: Table) -> Table:
        """Return the table with vectors.

        Raises:
            InputError: If ``on_error`` is ``raise`` and a text cannot be embedded.
            SpaceMismatchError: If the model here is not the model that was promised.
            BackendError: If the model or the server failed.
        """
        embedded = self.embed(table)
        left_out = embedded.rejected.num_rows
        if left_out:
            reason = embedded.rejected[ERROR_FIELD][0].as_py()
            _LOG.warning("rows left out: %d; the first because %s", left_out, reason)
        return embedded.table

    def embed(self, table: Table) -> Embedded:
        """Do what calling does, and return the rows that were left out too."""
        pa = arrow()
        if not isinstance(table, pa.Table):
            raise ConfigurationError(
                f"expected a pyarrow.Table, got {type(table).__name__}; pass "
                f"batch_format='pyarrow' to map_batches"
            )
        schema = self.schema(table.schema)
        reasons: dict[int, str] = {}
        rows: list[Row] = []
        label = self.label
        for row in rows_of(table, label.text_field, label.id_field, first_number=0):
            if isinstance(row, Row):
                rows.append(row)
            else:
                self._reject(table, reasons, [row.number], row.reason)
        rows, batch = self._embed(table, rows, reasons)
        places = np.array([row.number for row in rows], np.int64)
        if self.on_error == "null":
            kept, size = table, table.num_rows
        else:
            kept, size = table.take(pa.array(places)) if reasons else table, len(rows)
            places = np.arange(size)
        own = vector_columns(
            batch, places, size=size, reasons=reasons if self.on_error == "null" else None
        )
        rejected = rejected_rows(table, reasons if self.on_error == "skip" else {})
        made = pa.Table.from_arrays([*kept.columns, *own], schema=schema)
        return Embedded(made, rejected, int(batch.token_counts.sum()))

    def embed_batch(self, texts: Sequence[str]) -> EmbeddingBatch:
        """Embed texts as promised.

        Raises:
            InputError: If a text cannot be embedded.
            SpaceMismatchError: If the model here is not the model that was promised.
        """
        spec = self.label.spec
        limit_threads(self.threads)
        batch = self.embedder.embed(
            texts,
            input_type=self.label.input_type,
            embedding_type=spec.embedding_type,
            dimensions=self._dimensions,
            truncate=self.truncate,
            int8_scale=spec.int8_scale,
        )
        # Another machine may hold another model under the same name.
        require_same_space(spec, batch.spec, doing="put into one dataset")
        return batch

    def _embed(
        self, table: Table, rows: list[Row], reasons: dict[int, str]
    ) -> tuple[list[Row], EmbeddingBatch]:
        while True:
            try:
                return rows, self.embed_batch([row.text for row in rows])
            except InputError as error:
                if not error.rows:
                    raise
                reason = str(error).replace(f" ({name_rows(error.rows)})", "")
                refused = set(error.rows)
                self._reject(table, reasons, [rows[at].number for at in error.rows], reason)
                rows = [row for at, row in enumerate(rows) if at not in refused]

    def _reject(
        self, table: Table, reasons: dict[int, str], numbers: list[int], reason: str
    ) -> None:
        if self.on_error != "raise":
            reasons.update(dict.fromkeys(numbers, reason))
            return
        where = f"{name_rows(numbers)} of a block of {table.num_rows}"
        if self.label.id_field is not None:
            where = f"the row with {self.label.id_field} {self._id(table, numbers[0])!r}"
        raise InputError(f"{where}: {reason}", rows=numbers)

    def _id(self, table: Table, number: int) -> Any:
        return table[self.label.id_field][number].as_py()
