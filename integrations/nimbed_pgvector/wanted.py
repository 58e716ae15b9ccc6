"""What a caller asks of a table's vectors, and what the table has: the layout out.

Knows no database.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nimbed import Embedder, VectorSpec
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal, require_same_space
from nimbed_pgvector.columns import Also, Layout, float_twin
from nimbed_pgvector.schema import Table
from nimbed_pgvector.vectors import check_embedder

__all__ = ["Wanted", "check_load"]


def check_load(truncate: str, chunk_rows: int) -> None:
    """Refuse options of a load before a table is made for it.

    Raises:
        ConfigurationError: If an option is out of range.
    """
    check_literal("truncate", truncate, Truncate)
    if chunk_rows < 1:
        raise ConfigurationError(f"chunk_rows must be at least 1; got {chunk_rows}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Options of a table's vectors; None means: as the table has it, or the default.

    Attributes:
        embedding_type: How a dimension is stored; a new table gets ``float``.
        dimensions: Float dimensions; a new table gets the model's full size.
        int8_scale: Scale of int8 and uint8.
        also: Type of a second column of floats, by which candidates are rescored.
    """

    embedding_type: EmbeddingType | None = None
    dimensions: int | None = None
    int8_scale: Int8Scale | None = None
    also: Also | None = None

    def from_embedder(self, embedder: Embedder, *, name: str) -> Callable[[Table | None], Layout]:
        """Return what tells the layout, once it is known whether there is a table."""

        def layout_of(table: Table | None) -> Layout:
            asked = (self.embedding_type, self.dimensions, self.int8_scale)
            if table is not None and asked == (None, None, None):
                check_embedder(embedder, table.layout.spec, name=name)
                return self._beside(table.layout.spec, table)
            kind = self.embedding_type or (
                "float" if table is None else table.layout.spec.embedding_type
            )
            spec = embedder.spec(
                embedding_type=kind,
                dimensions=self.dimensions
                or (None if table is None else table.layout.spec.dimensions),
                int8_scale=self.int8_scale,
            )
            return self._beside(spec, table)

        return layout_of

    def from_vectors(self, given: VectorSpec, *, name: str) -> Callable[[Table | None], Layout]:
        """Return what tells the layout for vectors that exist already.

        Floats can still become any compact type; anything else stays what it is.
        """

        def layout_of(table: Table | None) -> Layout:
            if table is not None and self.embedding_type in (
                None,
                table.layout.spec.embedding_type,
            ):
                spec = table.layout.spec
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
            layout = self._beside(spec, table)
            if layout.rescoring is not None and given.embedding_type != "float":
                raise SpaceMismatchError(
                    f"the column for rescoring wants floats, but these vectors are "
                    f"{given.embedding_type}; embed the file again with embedding type float"
                )
            return layout

        return layout_of

    def _beside(self, spec: VectorSpec, table: Table | None) -> Layout:
        if self.also is not None or table is None:
            return Layout.of(spec, also=self.also)
        return Layout.of(spec, also=None if spec.embedding_type == "float" else table.layout.also)
