"""The column of sparse vectors beside a table's dense ones: its limits, its forms, what fills it.

pgvector's sparsevec takes 16,000 weights a vector and its index 1,000, so that a new table keeps
the 1,000 largest unless it is told otherwise.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nimbed import Embedder, EmbeddingKinds, SparseBatch, SparseSpec, stores
from nimbed.embedder import giving
from nimbed.errors import ConfigurationError
from nimbed.spec import Truncate, VectorSpec, require_same_space
from nimbed_pgvector.statements import Wire

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MOST_INDEXED",
    "SPARSE",
    "SparseColumn",
    "decode_sparse",
    "embedding_kinds",
    "sparse_column",
    "sparse_spec_of",
]

SPARSE = "sparse"
#: Weights that a new table keeps of a vector: as many as the index takes.
MOST_INDEXED = 1_000
_MOST_STORED = 16_000
_WEIGHTS = 100  # of a passage, as a guess


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseColumn:
    """A column of sparse vectors, named like a :class:`nimbed_pgvector.Column`'s parts.

    Attributes:
        name: Name of the column.
        spec: The contract of its vectors.
        operator: The operator that ranks the vectors: the negative dot product.
        operator_class: What an HNSW index needs; empty where vectors may have too many weights.
    """

    kind: ClassVar[str] = "sparsevec"

    name: str
    spec: SparseSpec
    operator: str
    operator_class: str

    @classmethod
    def of(cls, spec: SparseSpec) -> SparseColumn:
        """Return the column for the vectors of a spec.

        Raises:
            ConfigurationError: If pgvector stores no such vectors.
        """
        field = stores.field(spec, "pgvector")
        return cls(
            name=SPARSE,
            spec=spec,
            operator=field.operator,
            operator_class=field.options.get("operator_class", ""),
        )

    @property
    def type(self) -> str:
        """The column's type in SQL."""
        return f"sparsevec({self.spec.dimensions})"

    @property
    def stored_bytes(self) -> int:
        """About how many bytes of one vector are in a row."""
        return 24 + 8 * min(_WEIGHTS, self.spec.max_active or _WEIGHTS)

    def wire(self, batch: SparseBatch, rows: slice = slice(None)) -> list[bytes]:
        """Return some of the vectors as fields of a binary COPY.

        Layout: int32 length; int32 dimensions, weights and zero; the ids, which count from 0, and
        the weights as big-endian floats.

        Raises:
            SpaceMismatchError: If the batch has another spec than the column.
            ConfigurationError: If a vector has more weights than pgvector stores.
        """
        if batch.spec != self.spec:
            require_same_space(self.spec, batch.spec, doing=f"store in the column {self.name}")
        start, stop, _ = rows.indices(len(batch))
        offsets = batch.offsets[start : max(start, stop) + 1]
        within = slice(offsets[0], offsets[-1])
        lengths, offsets = np.diff(offsets), offsets - offsets[0]
        if len(lengths) and lengths.max() > _MOST_STORED:
            raise ConfigurationError(
                f"pgvector stores at most {_MOST_STORED} weights a vector; row "
                f"{start + int(lengths.argmax())} of the batch has {lengths.max()}: embed with "
                f"max_active={MOST_INDEXED}"
            )
        heads = np.zeros((len(lengths), 4), ">i4")
        heads[:, 0] = 12 + 8 * lengths
        heads[:, 1] = self.spec.dimensions
        heads[:, 2] = lengths
        first: list[bytes] = heads.view("V16")[:, 0].tolist()
        ids = batch.ids[within].astype(">i4").tobytes()
        weights = batch.weights[within].astype(">f4").tobytes()
        cuts = itertools.pairwise((4 * offsets).tolist())
        return [
            head + ids[begin:end] + weights[begin:end]
            for head, (begin, end) in zip(first, cuts, strict=True)
        ]

    def parameter(self, batch: SparseBatch) -> Wire:
        """Return the first vector of a batch as a parameter; the statement casts it."""
        return Wire(self.wire(batch, slice(1))[0][4:])

    def literal(self, batch: SparseBatch) -> str:
        """Return the first vector of a batch as people write it in SQL, without quotes."""
        first = batch.select(slice(1))
        return str(stores.field(first.spec, "pgvector").encode(first)[0])


def decode_sparse(data: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the ids and weights of a vector that ``sparsevec_send`` gave."""
    words = np.frombuffer(data, ">i4")
    ids, weights = np.split(words[3:], 2)
    return ids.astype(np.int32), weights.view(">f4").astype(np.float32)


def sparse_column(column: SparseColumn | None, name: str) -> SparseColumn:
    """Return the column of sparse vectors of a table.

    Raises:
        ConfigurationError: If it has none.
    """
    if column is None:
        raise ConfigurationError(
            f"the table {name} has no column of sparse vectors; leave sparse out of the kinds, or "
            f"load into a new table with kinds=('dense', 'sparse')"
        )
    return column


def sparse_spec_of(embedder: Embedder, *, max_active: int | None) -> SparseSpec:
    """Return the contract of an embedder's sparse vectors.

    Raises:
        ConfigurationError: If it gives none.
    """
    return giving(embedder, "sparse").sparse_spec(max_active=max_active)


def embedding_kinds(
    embedder: Embedder, dense: VectorSpec | None, sparse: SparseSpec, *, truncate: Truncate
) -> Callable[[Sequence[str]], EmbeddingKinds]:
    """Return a function that embeds passages in one forward pass, as one or two specs say."""
    embed = functools.partial(
        giving(embedder, "sparse").embed_kinds,
        input_type="passage",
        truncate=truncate,
        max_active=sparse.max_active,
    )
    if dense is None:
        return functools.partial(embed, kinds=("sparse",))
    return functools.partial(
        embed,
        kinds=("dense", "sparse"),
        embedding_type=dense.embedding_type,
        dimensions=dense.dimensions,
        int8_scale=dense.int8_scale,
    )
