"""Passages in, one batch of vectors for each vector column out.

Knows embedders and layouts, but no database.
"""

from __future__ import annotations

from collections.abc import Sequence

import nimbed
from nimbed import Embedder, EmbeddingBatch, VectorSpec
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed.files.load_report import Reject
from nimbed.files.refusals import embed_accepted, embedding_passages, refused_rows
from nimbed.quantize import quantize
from nimbed.spec import Truncate, require_same_space
from nimbed_pgvector.columns import Layout, float_twin
from nimbed_pgvector.loading import Vectorise
from nimbed_pgvector.passages import Passages
from nimbed_pgvector.schema import Table

__all__ = [
    "check_embedder",
    "embed_question",
    "embedding_with",
    "fitting_embedder",
    "for_columns",
    "no_vectors",
]


def embedding_with(embedder: Embedder, layout: Layout, *, truncate: Truncate = "NONE") -> Vectorise:
    """Return what embeds passages into a layout; a text the model refuses becomes a reject."""
    spec = layout.spec if layout.rescoring is None else layout.rescoring.spec
    embed = embedding_passages(embedder, spec, truncate=truncate)

    def vectorise(passages: Passages) -> tuple[Passages, Sequence[bytes], Sequence[Reject]]:
        refused: list[Reject] = []

        def refuse(places: list[int], error: InputError) -> None:
            some = passages.select(places)
            refused.extend(refused_rows(error, some.numbers, some.ids))

        places, batch = embed_accepted(passages.texts, embed, refuse)
        kept = passages.select(places) if refused else passages
        return kept, layout.fields(for_columns(batch, layout)), refused

    return vectorise


def for_columns(batch: EmbeddingBatch, layout: Layout) -> list[EmbeddingBatch]:
    """Return the batch of each vector column; compact ones are made of floats if need be.

    Raises:
        SpaceMismatchError: If the batch is of another space, or too compact for the layout.
    """
    return [_as(batch, column.spec) for column in layout.columns]


def embed_question(embedder: Embedder, layout: Layout, question: str) -> EmbeddingBatch:
    """Return the query's vector: floats where candidates are rescored, else the column's type."""
    spec = layout.spec
    rescored = spec.packed or layout.rescoring is not None
    return embedder.embed(
        [question],
        input_type="query",
        embedding_type="float" if rescored else spec.embedding_type,
        dimensions=spec.dimensions,
        int8_scale=None if rescored else spec.int8_scale,
    )


def fitting_embedder(embedder: Embedder | None, table: Table | None, *, name: str) -> Embedder:
    """Return the embedder given, or the one that the table names, or the embedded default.

    Raises:
        SpaceMismatchError: If it does not fit the table.
    """
    if table is None:
        return nimbed.load() if embedder is None else embedder
    spec = table.layout.spec
    if embedder is None:
        embedder = nimbed.load(spec.model, revision=spec.revision)
    check_embedder(embedder, spec, name=name)
    return embedder


def check_embedder(embedder: Embedder, spec: VectorSpec, *, name: str) -> None:
    """Refuse an embedder whose vectors do not live in the table's space.

    Raises:
        SpaceMismatchError: If its fingerprint differs from the table's.
    """
    try:
        promised = embedder.spec(
            embedding_type=spec.embedding_type,
            dimensions=spec.dimensions,
            int8_scale=spec.int8_scale,
        )
    except ValueError as error:
        raise SpaceMismatchError(
            f"the table {name} holds vectors of {spec.model}, {spec.dimensions} dimensions; "
            f"{embedder.card.id} cannot give such: {error}"
        ) from error
    require_same_space(spec, promised, doing=f"use for the table {name}")


def no_vectors(passages: Passages) -> tuple[Passages, Sequence[bytes], Sequence[Reject]]:
    """Refuse to embed: these passages come with their vectors.

    Raises:
        ConfigurationError: Always.
    """
    raise ConfigurationError(f"{len(passages)} passages came without the vectors promised")


def _as(batch: EmbeddingBatch, spec: VectorSpec) -> EmbeddingBatch:
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
