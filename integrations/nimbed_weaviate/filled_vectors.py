"""The vectors that a job fills: which of a collection, by what contract, embedded how."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nimbed import Embedder, EmbeddingBatch
from nimbed.bulk import embedding_passages
from nimbed.embedder import giving
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.kinds import EmbeddingKinds
from nimbed.spec import EmbeddingType, Int8Scale, MultiVectorSpec, TokenType, Truncate, VectorSpec
from nimbed_weaviate.indexes import VectorSetup, spec_fault
from nimbed_weaviate.properties import StoredSpec

__all__ = ["FilledVector", "SpecOptions", "embedding_vectors", "fitting", "refuse_other_kind"]

Embedded = EmbeddingBatch | EmbeddingKinds


@dataclass(frozen=True, slots=True)
class FilledVector:
    """A vector of a collection that a job fills.

    Attributes:
        name: Its name; empty for the single one of older collections.
        spec: The contract of what comes into it.
        digests: The property that takes the digests.
    """

    name: str
    spec: StoredSpec
    digests: str


@dataclass(frozen=True, slots=True)
class SpecOptions:
    """What was asked for of the vectors to come; None means as the collection has it.

    Attributes:
        embedding_type: How a dimension is stored.
        dimensions: How many there are.
        int8_scale: For int8 and uint8.
        token_type: Of a multi-vector, how a token's dimension is stored.
        pool_factor: Of a multi-vector, how many alike tokens share a vector.
    """

    embedding_type: EmbeddingType | None = None
    dimensions: int | None = None
    int8_scale: Int8Scale | None = None
    token_type: TokenType | None = None
    pool_factor: int | None = None

    def spec_for(
        self, embedder: Embedder, contract: StoredSpec | None, multi: bool = False
    ) -> StoredSpec:
        """Return the contract of the vectors to come: as asked, else as the collection has it.

        Args:
            embedder: Makes the vectors.
            contract: That of the vectors that are there; None for none.
            multi: Whether the vector is a multi-vector.

        Raises:
            SpaceMismatchError: If the embedder cannot give what the collection has.
            ConfigurationError: If it gives no multi-vectors.
        """
        if multi:
            there = contract if isinstance(contract, MultiVectorSpec) else None
            return giving(embedder, "multi").multi_spec(
                token_type=self.token_type or (there.token_type if there else "float"),
                pool_factor=self.pool_factor or (there.pool_factor if there else 1),
            )
        kind, scale = self.embedding_type, self.int8_scale
        if not isinstance(contract, VectorSpec):
            return embedder.spec(
                embedding_type=kind or "float", dimensions=self.dimensions, int8_scale=scale
            )
        try:
            return embedder.spec(
                embedding_type=kind or contract.embedding_type,
                dimensions=self.dimensions or contract.dimensions,
                int8_scale=contract.int8_scale if scale is None and kind is None else scale,
            )
        except ValueError as error:
            raise SpaceMismatchError(
                f"the collection holds {contract.embedding_type} vectors of {contract.model}, "
                f"{contract.dimensions} dimensions; {embedder.card.id} cannot give such: {error}"
            ) from error


def fitting(
    setups: Sequence[VectorSetup],
    asked: str | None,
    collection: str,
    spec_of: Callable[[VectorSetup], StoredSpec],
) -> tuple[VectorSetup, StoredSpec]:
    """Return the setup of the vector to fill, and the contract of what comes into it.

    Args:
        setups: The collection's vectors.
        asked: The name that was asked for; None where there must be one alone.
        collection: The collection's name.
        spec_of: Makes the contract for a vector.

    Raises:
        ConfigurationError: If there is no such vector, or it would rank wrongly.
    """
    by_name = {setup.name: setup for setup in setups}
    chosen = by_name.get(asked) if asked is not None else setups[0]
    if chosen is None or (asked is None and len(setups) > 1):
        listed = ", ".join(map(repr, by_name))
        raise ConfigurationError(
            f"say which vector of the collection {collection} to fill, with vector=...: it has "
            f"{listed}"
        )
    spec = spec_of(chosen)
    if chosen.multi != isinstance(spec, MultiVectorSpec):
        holds, comes = ("multi-vectors", "one vector a text")
        holds, comes = (holds, comes) if chosen.multi else (comes, holds)
        raise ConfigurationError(
            f"the vector {chosen.name!r} of the collection {collection} holds {holds}, and what "
            f"comes is {comes}"
        )
    if isinstance(spec, MultiVectorSpec):
        return chosen, spec  # whatever the metric, tokens are compared by dot product
    fault = spec_fault(spec, chosen.metric, chosen.quantizers, index=chosen.index)
    if fault:
        raise ConfigurationError(
            f"the collection {collection} compares {spec.embedding_type} vectors by "
            f"{chosen.metric}: {fault}; make it with nimbed_weaviate.self_provided(spec), or pass "
            f"embedding_type"
        )
    return chosen, spec


def refuse_other_kind(vector: FilledVector, also: FilledVector | None, collection: str) -> None:
    """Raise a ConfigurationError unless a multi-vector is filled beside a vector a text."""
    if also is None:
        return
    if isinstance(vector.spec, MultiVectorSpec) or not isinstance(also.spec, MultiVectorSpec):
        raise ConfigurationError(
            f"vector names one of a vector a text, and multi_vector a multi-vector beside it; in "
            f"the collection {collection} {vector.name!r} holds {vector.spec.kind} vectors and "
            f"{also.name!r} {also.spec.kind} ones"
        )


def embedding_vectors(
    embedder: Embedder, vector: FilledVector, also: FilledVector | None, *, truncate: Truncate
) -> Callable[[Sequence[str]], Embedded]:
    """Return a function that embeds passages for the vectors to fill, in one run of the model."""
    multi = vector.spec if also is None else also.spec
    if not isinstance(multi, MultiVectorSpec):
        assert isinstance(vector.spec, VectorSpec)
        return embedding_passages(embedder, vector.spec, truncate=truncate)
    embed = functools.partial(
        giving(embedder, "multi").embed_kinds,
        kinds=("multi",),
        input_type="passage",
        token_type=multi.token_type,
        pool_factor=multi.pool_factor,
        truncate=truncate,
    )
    if not isinstance(vector.spec, VectorSpec):
        return embed
    return functools.partial(
        embed,
        kinds=("dense", "multi"),
        embedding_type=vector.spec.embedding_type,
        dimensions=vector.spec.dimensions,
        int8_scale=vector.spec.int8_scale,
    )
