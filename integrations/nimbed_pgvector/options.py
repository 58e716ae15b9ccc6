"""What a caller asks of a table's vectors, and the layout that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nimbed import Embedder, SparseSpec, VectorSpec
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.options import KindOptions
from nimbed.spec import EmbeddingType, Int8Scale, Kind, require_same_space
from nimbed.stores.kinds import MULTI_VECTORS
from nimbed_pgvector.columns import Also, Layout, float_twin
from nimbed_pgvector.schema import Table
from nimbed_pgvector.sparse import MOST_INDEXED, sparse_spec_of

__all__ = ["TableOptions", "check_embedder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """What a caller asks of a table's vectors; None means: as the table has it, or the default.

    Attributes:
        embedding_type: How a dimension is stored; a new table gets ``float``.
        dimensions: Float dimensions; a new table gets the model's full size.
        int8_scale: Scale of int8 and uint8.
        also: Type of a second column of floats, by which candidates are rescored.
        kinds: ``dense``, or ``dense`` and ``sparse``; a new table gets ``dense``.
        max_active: The most weights that a sparse vector keeps, those of the largest; a new table
            gets 1,000, as many as an index takes.
    """

    embedding_type: EmbeddingType | None = None
    dimensions: int | None = None
    int8_scale: Int8Scale | None = None
    also: Also | None = None
    kinds: Sequence[Kind] | None = None
    max_active: int | None = None

    def __post_init__(self) -> None:
        """Refuse kinds that are none, or that no table has."""
        kinds = KindOptions(kinds=self.kinds, max_active=self.max_active).kinds
        if kinds is not None and "multi" in kinds:
            raise ConfigurationError(
                f"pgvector stores no multi-vectors: {MULTI_VECTORS['pgvector']}"
            )
        if kinds is not None and "dense" not in kinds:
            raise ConfigurationError("every table has dense vectors: add dense to the kinds")

    def from_embedder(self, embedder: Embedder, *, name: str) -> Callable[[Table | None], Layout]:
        """Return a function from the table, or None, to its layout, for an embedder's vectors."""

        def layout_of(table: Table | None) -> Layout:
            stored = None if table is None else table.layout.spec
            asked = (self.embedding_type, self.dimensions, self.int8_scale)
            if stored is not None and asked == (None, None, None):
                check_embedder(embedder, stored, name=name)
                return self._beside(stored, table, sparse(table))
            spec = embedder.spec(
                embedding_type=self.embedding_type
                or (stored.embedding_type if stored else "float"),
                dimensions=self.dimensions or (stored.dimensions if stored else None),
                int8_scale=self.int8_scale,
            )
            return self._beside(spec, table, sparse(table))

        def sparse(table: Table | None) -> SparseSpec | None:
            return self._sparse(
                table, lambda most: sparse_spec_of(embedder, max_active=most), name=name
            )

        return layout_of

    def from_vectors(
        self, given: VectorSpec, sparse: SparseSpec | None = None, *, name: str
    ) -> Callable[[Table | None], Layout]:
        """Return a function from the table, or None, to its layout, for vectors that exist.

        Floats can still become any compact type; anything else stays what it is.
        """

        def layout_of(table: Table | None) -> Layout:
            stored = None if table is None else table.layout.spec
            if stored is not None and self.embedding_type in (None, stored.embedding_type):
                spec = stored
            elif self.embedding_type in (None, given.embedding_type):
                spec = given
            else:
                spec = VectorSpec.of(
                    model=given.model,
                    dimensions=given.dimensions,
                    embedding_type=self.embedding_type,
                    revision=given.revision,
                    int8_scale=self.int8_scale,
                    query_prompt=given.query_prompt,
                    passage_prompt=given.passage_prompt,
                )
            source = float_twin(spec) if given.embedding_type == "float" else spec
            require_same_space(source, given, doing=f"load into the table {name}")
            asked = (
                self if sparse is None or self.kinds else replace(self, kinds=("dense", "sparse"))
            )
            beside = asked._sparse(table, lambda _: sparse, name=name)
            layout = self._beside(spec, table, beside)
            if layout.rescoring is not None and given.embedding_type != "float":
                raise SpaceMismatchError(
                    f"the column for rescoring needs floats, but these vectors are "
                    f"{given.embedding_type}; embed the texts again with embedding type float"
                )
            return layout

        return layout_of

    def _beside(self, spec: VectorSpec, table: Table | None, sparse: SparseSpec | None) -> Layout:
        also = self.also
        if also is None and table is not None and spec.embedding_type != "float":
            also = table.layout.also
        return Layout.of(spec, also=also, sparse=sparse)

    def _sparse(
        self,
        table: Table | None,
        spec_of: Callable[[int | None], SparseSpec | None],
        *,
        name: str,
    ) -> SparseSpec | None:
        """Return the contract of the sparse column that is asked for, or that the table has.

        Raises:
            ConfigurationError: If the table has other kinds of vectors than are asked for.
        """
        stored = None if table is None else table.layout.sparse
        wanted = stored is not None if self.kinds is None else "sparse" in self.kinds
        if table is not None and wanted != (stored is not None):
            raise ConfigurationError(
                f"the table {name} has {'no' if stored is None else 'a'} column of sparse vectors; "
                f"leave kinds out to keep what it has, or load into a new table"
            )
        if wanted:
            default = MOST_INDEXED if stored is None else stored.spec.max_active
            found = spec_of(default if self.max_active is None else self.max_active)
            if found is None:
                raise ConfigurationError(
                    f"the table {name} holds dense and sparse vectors; these rows bring dense ones "
                    f"alone: embed the texts again"
                )
            return found
        if self.max_active is not None:
            raise ConfigurationError(
                "max_active is for sparse vectors; ask for them with kinds=('dense', 'sparse')"
            )
        return None


def check_embedder(embedder: Embedder, spec: VectorSpec, *, name: str) -> None:
    """Refuse an embedder whose vectors do not live in the table's space.

    Raises:
        SpaceMismatchError: If its fingerprint differs from the table's.
    """
    try:
        offered = embedder.spec(
            embedding_type=spec.embedding_type,
            dimensions=spec.dimensions,
            int8_scale=spec.int8_scale,
        )
    except ValueError as error:
        raise SpaceMismatchError(
            f"the table {name} holds vectors of {spec.model}, {spec.dimensions} dimensions; "
            f"{embedder.card.id} cannot make such vectors: {error}"
        ) from error
    require_same_space(spec, offered, doing=f"use for the table {name}")
