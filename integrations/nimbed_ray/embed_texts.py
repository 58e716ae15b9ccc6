"""``EmbedTexts`` adds vectors to Arrow tables; Ray, Spark and Dask call it alike."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import nimbed
from nimbed import Embedder, EmbeddingBatch, ModelCard, VectorSpec
from nimbed.errors import ConfigurationError, InputError, name_rows
from nimbed.files.arrow import (
    RESERVED,
    TOKENS_FIELD,
    TRUNCATED_FIELD,
    VECTOR_FIELD,
    Column,
    FileContract,
    Schema,
    Table,
    arrow,
)
from nimbed.files.parquet import rows_of
from nimbed.options import EmbedOptions
from nimbed.rows import Row, TextFields
from nimbed.spec import (
    EmbeddingType,
    InputType,
    Int8Scale,
    Truncate,
    check_literal,
    require_same_space,
)

__all__ = ["ERROR_FIELD", "EmbedTexts", "Embedded", "OnError", "limit_threads"]

#: Why a row has no vector.
ERROR_FIELD = "embedding_error"
#: ``raise`` stops at the first text that cannot be embedded; ``null`` keeps its row, with a null
#: for a vector and the reason in ``embedding_error``; ``skip`` leaves the row out.
OnError = Literal["raise", "null", "skip"]

# torch reads the first when it is imported, the tokenizers' Rust pool the second when it starts.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")

_LOG = logging.getLogger("nimbed")


@dataclass(frozen=True, slots=True)
class Embedded:
    """A table with vectors, and the rows that got none.

    Attributes:
        table: The rows with their vectors.
        rejected: The rows that were left out, with the reason in ``embedding_error``.
        tokens: Tokens that the model read.
    """

    table: Table
    rejected: Table
    tokens: int


class EmbedTexts:
    """Adds vectors to Arrow tables; a class for ``Dataset.map_batches``.

    Construction loads no weights, and a pickle holds none: each process loads the model once, at
    its first table. Pass ``batch_format="pyarrow"`` to ``map_batches``, or let
    :func:`nimbed_ray.embed_dataset` do so.

    Args:
        model: A name for :func:`nimbed.load`, or an embedder that was made with the options it
            needs (device, base_url, ...). A server's key does not travel: each machine reads its
            own environment.
        input_type: ``query`` or ``passage``, the role of every text.
        text_field: Column of the texts.
        id_field: Column of the ids, by which messages name a row; None for its number.
        embedding_type: How a dimension is stored.
        dimensions: One of the sizes the model offers; None for the full vector.
        truncate: What happens to a text that is too long.
        int8_scale: ``even`` (default) or ``nim``, for int8 and uint8.
        on_error: What happens to a row whose text cannot be embedded: ``raise``, ``null`` or
            ``skip``.
        threads: CPU threads that a process may use; None leaves that to the libraries.

    Attributes:
        label: The contract of the vectors, written into the metadata of every schema.

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
        self.options = EmbedOptions(
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
        )
        check_literal("on_error", on_error, OnError)
        if threads is not None and threads < 1:
            raise ConfigurationError(f"threads must be at least 1; got {threads}")
        self.embedder = (
            nimbed.load(model) if model is None or isinstance(model, (str, ModelCard)) else model
        )
        self.label = FileContract(
            spec=self.embedder.spec(**self.options.of_spec),
            input_type=input_type,
            text_field=text_field,
            id_field=id_field,
        )
        self.on_error: OnError = on_error
        self.threads = threads

    def __repr__(self) -> str:
        spec = self.label.spec
        return (
            f"EmbedTexts({spec.model!r}, {self.label.input_type}, {spec.dimensions} dimensions, "
            f"{spec.embedding_type})"
        )

    def schema(self, given: Schema) -> Schema:
        """Return the schema that tables of the given schema will get; loads no weights.

        The vectors are ``fixed_size_list<float | int8 | uint8>[width]``; the spec, the role and
        the names of the columns are in the schema's metadata, where
        :func:`nimbed_ray.label_of` finds them.

        Raises:
            ConfigurationError: If a column is missing, or has a name that the output needs.
        """
        self.check_columns(given.names)
        own = _vector_fields(self.label.spec, nullable=self.on_error == "null")
        metadata = {**(given.metadata or {}), **self.label.to_metadata()}
        return arrow().schema([*given, *own], metadata=metadata)

    def check_columns(self, names: Sequence[str]) -> None:
        """Check that a table has the columns that are read, and none that the output adds.

        Raises:
            ConfigurationError: If a column is missing, or has a name that the output needs.
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
            SpaceMismatchError: If this machine has another model under the same name.
            BackendError: If the model or the server failed.
        """
        embedded = self.embed(table)
        left_out = embedded.rejected.num_rows
        if left_out:
            reason = embedded.rejected[ERROR_FIELD][0].as_py()
            _LOG.warning("rows left out: %d; the first because %s", left_out, reason)
        return embedded.table

    def embed(self, table: Table) -> Embedded:
        """Return the table with vectors, and the rows that were left out; raises as a call does."""
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
        text = TextFields((label.text_field,))
        for row in rows_of(table, text, label.id_field, first_number=0):
            if isinstance(row, Row):
                rows.append(row)
            else:
                self._reject(table, reasons, {row.number: row.reason})
        rows, batch = self._embed_valid(table, rows, reasons)
        positions = np.array([row.number for row in rows], np.int64)
        if self.on_error == "null":
            kept, rejected = table, _rejected(table, {})
            own = _vector_columns(batch, positions, size=table.num_rows)
            own.append(pa.array(map(reasons.get, range(table.num_rows)), pa.string()))
        else:
            kept = table.take(pa.array(positions)) if reasons else table
            rejected = _rejected(table, reasons)
            own = _vector_columns(batch, np.arange(len(rows)), size=len(rows))
        embedded = pa.Table.from_arrays([*kept.columns, *own], schema=schema)
        return Embedded(embedded, rejected, int(batch.token_counts.sum()))

    def embed_batch(self, texts: Sequence[str]) -> EmbeddingBatch:
        """Return the vectors of texts, none of which may be bad.

        Raises:
            InputError: If a text cannot be embedded.
            SpaceMismatchError: If this machine has another model under the same name.
        """
        limit_threads(self.threads)
        batch = self.embedder.embed(texts, **self.options.keywords())
        require_same_space(self.label.spec, batch.spec, doing="put into one dataset")
        return batch

    def _embed_valid(
        self, table: Table, rows: list[Row], reasons: dict[int, str]
    ) -> tuple[list[Row], EmbeddingBatch]:
        """Embed rows again without those that the embedder refused, until it takes the rest."""
        while True:
            try:
                return rows, self.embed_batch([row.text for row in rows])
            except InputError as error:
                if not error.rows:
                    raise
                refused = {rows[at].number: error.about(n) for n, at in enumerate(error.rows)}
                self._reject(table, reasons, refused)
                rows = [row for row in rows if row.number not in refused]

    def _reject(self, table: Table, reasons: dict[int, str], refused: dict[int, str]) -> None:
        if self.on_error != "raise":
            reasons.update(refused)
            return
        numbers = list(refused)
        where = f"{name_rows(numbers)} of a block of {table.num_rows}"
        if self.label.id_field is not None:
            first = table[self.label.id_field][numbers[0]].as_py()
            where = f"the row with {self.label.id_field} {first!r}"
        raise InputError(f"{where}: {refused[numbers[0]]}", rows=numbers)


def limit_threads(threads: int | None) -> None:
    """Let this process compute on so many CPU threads; None changes nothing.

    Several processes that each take every core slow each other down.
    """
    if threads is None:
        return
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    if "torch" not in sys.modules:
        return
    import torch  # waits where another thread is importing it

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _vector_fields(spec: VectorSpec, *, nullable: bool) -> list[Any]:
    """Return the Arrow fields of the columns that are added to a table.

    Args:
        spec: The contract of the vectors.
        nullable: Whether rows without a vector stay, with the reason in a column of their own.
    """
    pa = arrow()
    element = pa.from_numpy_dtype(np.dtype(spec.dtype))
    fields = [
        pa.field(VECTOR_FIELD, pa.list_(element, spec.width), nullable=nullable),
        pa.field(TOKENS_FIELD, pa.int32(), nullable=nullable),
        pa.field(TRUNCATED_FIELD, pa.bool_(), nullable=nullable),
    ]
    return [*fields, pa.field(ERROR_FIELD, pa.string())] if nullable else fields


def _vector_columns(
    batch: EmbeddingBatch, positions: NDArray[np.int64], *, size: int
) -> list[Column]:
    """Return vectors, token counts and truncation of a table, null where a row has no vector.

    Args:
        batch: The vectors.
        positions: The row of the table that each vector belongs to, ascending.
        size: Rows of the table.
    """
    pa, width = arrow(), batch.spec.width
    truncated = np.zeros(size, bool)
    truncated[positions[list(batch.truncated)]] = True
    vectors, tokens, mask = batch.vectors, batch.token_counts, None
    if len(batch) < size:
        vectors = np.zeros((size, width), batch.vectors.dtype)
        vectors[positions] = batch.vectors
        tokens = np.zeros(size, np.int32)
        tokens[positions] = batch.token_counts
        mask = np.ones(size, bool)
        mask[positions] = False
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    absent = None if mask is None else pa.array(mask)
    return [
        pa.FixedSizeListArray.from_arrays(flat, width, mask=absent),
        pa.array(tokens, mask=mask),
        pa.array(truncated, mask=mask),
    ]


def _rejected(table: Table, reasons: Mapping[int, str]) -> Table:
    """Return the rows of a table that have a reason, with it in a column of its own."""
    pa, numbers = arrow(), sorted(reasons)
    reason_column = pa.array([reasons[number] for number in numbers], pa.string())
    return table.take(pa.array(numbers, pa.int64())).append_column(ERROR_FIELD, reason_column)
