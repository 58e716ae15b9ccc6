"""Columns: the PostgreSQL type of vectors, their binary form in a COPY, and metadata as JSON."""

from __future__ import annotations

import functools
import json
import math
import os
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from datetime import time as dt_time
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nimbed import EmbeddingBatch, EmbeddingKinds, SparseBatch, SparseSpec, VectorSpec, stores
from nimbed.batch import quantize
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.spec import Kind, check_literal, require_same_space
from nimbed_pgvector.sparse import SparseColumn
from nimbed_pgvector.statements import Wire

__all__ = [
    "EMBEDDING",
    "RESCORING",
    "TEXT_BYTES",
    "Also",
    "AnyColumn",
    "Column",
    "Layout",
    "encode_json",
    "float_twin",
    "json_fault",
]

Also = Literal["float", "halfvec"]

EMBEDDING, RESCORING = "embedding", "rescoring"
#: Bytes of a row without its vectors, as a guess.
TEXT_BYTES = 300
_MOST_STORED = 16_000
_FORMS = {"vector": ">f4", "halfvec": ">f2"}
_LENGTH = struct.Struct(">i")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of vectors.

    Attributes:
        name: Name of the column.
        spec: The contract of its vectors.
        kind: ``bit``, ``vector`` or ``halfvec``.
        operator: The distance operator that ranks the vectors.
        operator_class: What an HNSW index on the column needs.
    """

    name: str
    spec: VectorSpec
    kind: str
    operator: str
    operator_class: str

    @classmethod
    def embedding(cls, spec: VectorSpec) -> Column:
        """Return the indexed column of a spec.

        Raises:
            ConfigurationError: If pgvector cannot index so many dimensions.
        """
        return _embedding_column(spec)

    @classmethod
    def rescoring(cls, spec: VectorSpec, also: Also) -> Column:
        """Return the column of floats that candidates are ranked by; it has no index.

        Raises:
            ConfigurationError: If the embedding column has the floats already.
        """
        check_literal("also", also, Also)
        if spec.embedding_type == "float":
            raise ConfigurationError(
                "also= stores floats beside a compact type, but the embedding is float already; "
                "leave it out, or embed with embedding_type='ubinary'"
            )
        if spec.dimensions > _MOST_STORED:
            raise ConfigurationError(f"pgvector stores at most {_MOST_STORED} dimensions")
        kind = "vector" if also == "float" else "halfvec"
        return cls(
            name=RESCORING,
            spec=float_twin(spec),
            kind=kind,
            operator="<=>",
            operator_class=f"{kind}_cosine_ops",
        )

    @property
    def type(self) -> str:
        """The column's type in SQL."""
        return f"{self.kind}({self.spec.dimensions})"

    @property
    def stored_bytes(self) -> int:
        """Bytes of one vector in a row."""
        per_vector = {"bit": self.spec.width, "halfvec": 2 * self.spec.dimensions}
        return 8 + per_vector.get(self.kind, 4 * self.spec.dimensions)

    def wire(self, batch: EmbeddingBatch, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """Return some of the vectors as fields of a binary COPY, shape (n, bytes a field).

        Layout: int32 length; then int32 bits and the packed bytes for ``bit``, or uint16
        dimensions, uint16 zero and big-endian floats for ``vector`` and ``halfvec``.

        Raises:
            SpaceMismatchError: If the batch has another spec than the column.
        """
        if batch.spec != self.spec:  # much cheaper than the fingerprints, which name the fault
            require_same_space(self.spec, batch.spec, doing=f"store in the column {self.name}")
        dimensions = self.spec.dimensions
        if self.kind == "bit":
            head, form, width = struct.pack(">i", dimensions), "u1", self.spec.width
            data: NDArray[Any] = batch.bits()[rows]
        else:
            head, form, width = struct.pack(">HH", dimensions, 0), _FORMS[self.kind], dimensions
            data = batch.vectors[rows]
        # One record a row, so that the conversion writes straight into its place.
        kind = np.dtype([("head", "V8"), ("data", form, (width,))])
        out = np.empty(len(data), kind)
        size = kind.itemsize - _LENGTH.size
        out["head"] = np.void(_LENGTH.pack(size) + head)
        out["data"] = data
        return out.view(np.uint8).reshape(len(data), kind.itemsize)

    def parameter(self, batch: EmbeddingBatch) -> Wire:
        """Return the first vector of a batch as a parameter; the statement casts it."""
        return Wire(self.wire(batch, slice(1))[0, _LENGTH.size :].tobytes())

    def literal(self, batch: EmbeddingBatch) -> str:
        """Return the first vector of a batch as people write it in SQL, without quotes."""
        if self.kind == "bit":
            bits = np.unpackbits(batch.bits()[0])[: self.spec.dimensions]
            return "".join(map(str, bits.tolist()))
        numbers = batch.vectors[0].astype(_FORMS[self.kind]).astype(np.float32)
        return f"[{','.join(f'{number:.9g}' for number in numbers.tolist())}]"


AnyColumn: TypeAlias = Column | SparseColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The vector columns of a table, of which there is one at least.

    Attributes:
        dense: The dense vectors that are indexed, if any.
        rescoring: The floats that they are rescored by, if any.
        sparse: The sparse vectors beside them, or alone, if any.
    """

    dense: Column | None = None
    rescoring: Column | None = None
    sparse: SparseColumn | None = None

    @classmethod
    def of(
        cls,
        spec: VectorSpec | None,
        *,
        also: Also | None = None,
        sparse: SparseSpec | None = None,
    ) -> Layout:
        """Return the columns for a spec of dense vectors, for one of sparse ones, or for both.

        Raises:
            ConfigurationError: If pgvector cannot hold such vectors.
        """
        return cls(
            dense=None if spec is None else Column.embedding(spec),
            rescoring=None if also is None or spec is None else Column.rescoring(spec, also),
            sparse=None if sparse is None else SparseColumn.of(sparse),
        )

    @property
    def embedding(self) -> Column:
        """The dense vectors that are indexed.

        Raises:
            ConfigurationError: If there are none.
        """
        if self.dense is None:
            raise ConfigurationError(
                "the table holds sparse vectors alone, and this needs dense ones; load into a new "
                "table with kinds=('dense', 'sparse') (--kinds dense,sparse)"
            )
        return self.dense

    @property
    def spec(self) -> VectorSpec:
        """The contract of the indexed vectors; raises as ``embedding`` does."""
        return self.embedding.spec

    @property
    def contract(self) -> VectorSpec | SparseSpec:
        """The contract that names the model: of dense vectors, or of sparse ones alone."""
        return self.stored[0].spec

    @property
    def also(self) -> Also | None:
        """The type of the column for rescoring, as a caller asks for it."""
        if self.rescoring is None:
            return None
        return "float" if self.rescoring.kind == "vector" else "halfvec"

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of dense vectors, in the order of the table."""
        return tuple(column for column in (self.dense, self.rescoring) if column is not None)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that the table has."""
        columns: dict[Kind, AnyColumn | None] = {"dense": self.dense, "sparse": self.sparse}
        return tuple(kind for kind, column in columns.items() if column is not None)

    @property
    def stored(self) -> tuple[AnyColumn, ...]:
        """All vector columns, in the order of the table."""
        return self.columns if self.sparse is None else (*self.columns, self.sparse)

    def batches(self, batch: EmbeddingBatch) -> list[EmbeddingBatch]:
        """Return the batch of each column; compact ones are made of floats if need be.

        Raises:
            SpaceMismatchError: If the batch is of another space, or too compact for a column.
        """
        return [_converted(batch, column.spec) for column in self.columns]

    def encoder(
        self, given: EmbeddingBatch | SparseBatch | EmbeddingKinds
    ) -> Callable[[slice], list[bytes]]:
        """Return a function from rows to the fields of their vectors in a binary COPY.

        Raises:
            SpaceMismatchError: If the vectors are of another space or kind than the columns.
        """
        kinds = given if isinstance(given, EmbeddingKinds) else EmbeddingKinds()
        dense = given if isinstance(given, EmbeddingBatch) else kinds.dense
        sparse = given if isinstance(given, SparseBatch) else kinds.sparse
        came = [batch.spec.kind for batch in (dense, sparse) if batch is not None]
        if tuple(came) != self.kinds:
            raise SpaceMismatchError(
                f"the table holds {' and '.join(self.kinds)} vectors; got {' and '.join(came)} ones"
            )
        batches = [] if dense is None else self.batches(dense)
        column = self.sparse
        if column is None or sparse is None:
            return functools.partial(self.fields, batches)
        some, of_sparse = sparse, column
        if dense is None:
            return lambda rows: of_sparse.wire(some, rows)

        def both(rows: slice) -> list[bytes]:
            dense_fields = self.fields(batches, rows)
            return list(map(bytes.__add__, dense_fields, of_sparse.wire(some, rows)))

        return both

    def fields(self, batches: Sequence[EmbeddingBatch], rows: slice = slice(None)) -> list[bytes]:
        """Return for each row its fields of a binary COPY, from one batch a column."""
        wires = [
            column.wire(batch, rows) for column, batch in zip(self.columns, batches, strict=True)
        ]
        joined = np.hstack(wires) if len(wires) > 1 else wires[0]
        # A list of void scalars is one of bytes: a tenth of the time that slices take.
        fields: list[bytes] = joined.view(f"V{joined.shape[1]}")[:, 0].tolist()
        return fields


@functools.lru_cache(maxsize=64)
def float_twin(spec: VectorSpec) -> VectorSpec:
    """Return the spec of the floats that a compact spec was made from; floats are their own."""
    if spec.embedding_type == "float":
        return spec
    return VectorSpec.of(
        model=spec.model,
        dimensions=spec.dimensions,
        revision=spec.revision,
        query_prompt=spec.query_prompt,
        passage_prompt=spec.passage_prompt,
    )


@functools.lru_cache(maxsize=64)
def _embedding_column(spec: VectorSpec) -> Column:
    field = stores.field(spec, "pgvector")
    return Column(
        name=EMBEDDING,
        spec=spec,
        kind=field.type.partition("(")[0],
        operator=field.operator,
        operator_class=field.options["operator_class"],
    )


def _converted(batch: EmbeddingBatch, spec: VectorSpec) -> EmbeddingBatch:
    if batch.spec == spec:
        return batch
    from_floats = batch.spec.embedding_type == "float"
    expected = float_twin(spec) if from_floats else spec
    if batch.spec != expected:
        require_same_space(expected, batch.spec, doing="bring into one column")
    return EmbeddingBatch(
        vectors=quantize(batch.vectors, spec),
        spec=spec,
        input_type=batch.input_type,
        token_counts=batch.token_counts,
        truncated=batch.truncated,
    )


def _plain(value: object) -> object:
    """Return what JSON says of a value of a typed file or of a script.

    Raises:
        TypeError: If nothing that could be searched for, such as bytes or a set.
    """
    if isinstance(value, (date, dt_time, timedelta, np.datetime64, np.timedelta64)):
        return str(value)
    if isinstance(value, (Decimal, uuid.UUID, os.PathLike)):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


# NaN would be refused by jsonb. Making an encoder takes as long as encoding a row with it.
encode_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, default=_plain
).encode


def json_fault(kept: Mapping[str, Any], error: Exception) -> str:
    """Return which field is to blame for an error, and why."""
    for name, value in kept.items():
        try:
            encode_json(value)
        except (ValueError, TypeError, RecursionError) as fault:
            nan = isinstance(value, float) and not math.isfinite(value)
            return f"the field {name!r} is {value}" if nan else f"the field {name!r}: {fault}"
    return str(error)
