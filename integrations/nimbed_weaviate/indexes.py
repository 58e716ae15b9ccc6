"""Vector indexes: which one ranks each type of vector correctly, and how a collection is set up.

What each metric and quantiser does with a vector is
read from Weaviate's sources: its hamming counts unequal floats, its BQ keeps the sign alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from weaviate.classes.config import Configure, VectorDistances, Vectorizers
from weaviate.outputs.config import CollectionConfig

from nimbed import VectorSpec, stores
from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType, check_literal

if TYPE_CHECKING:
    from weaviate.collections.classes.config_vector_index import (
        _VectorIndexConfigCreate,  # pyright: ignore[reportPrivateUsage]
    )

__all__ = [
    "KINDS",
    "Index",
    "Kind",
    "Quantizer",
    "VectorSetup",
    "index_fault",
    "index_for",
    "kind_of",
    "spec_fault",
    "vector_setups",
]

Index = Literal["hnsw", "flat"]
Quantizer = Literal["none", "bq"]

#: What the numbers of a vector are.
Kind = Literal["floats", "codes", "codes from 0", "signs", "zeros and ones"]

#: What :func:`nimbed.stores.field` hands to Weaviate for each type.
KINDS: dict[EmbeddingType, Kind] = {
    "float": "floats",
    "int8": "codes",
    "uint8": "codes from 0",
    "binary": "signs",
    "ubinary": "signs",
}

_ANY = frozenset(metric.value for metric in VectorDistances)
_RANKED: dict[Kind, frozenset[str]] = {
    # Unit vectors: these three give one order.
    "floats": frozenset({"cosine", "dot", "l2-squared"}),
    "codes": frozenset({"cosine"}),
    "codes from 0": frozenset({"l2-squared"}),
    "signs": _ANY,
    "zeros and ones": frozenset({"hamming", "l2-squared", "manhattan"}),
}


def index_for(
    spec: VectorSpec, *, index: Index = "hnsw", quantizer: Quantizer | None = None
) -> _VectorIndexConfigCreate:
    """Return the configuration of an index that ranks the vectors of a spec.

    Args:
        spec: The contract of the vectors.
        index: ``hnsw``, or ``flat`` to compare with every vector.
        quantizer: ``bq`` keeps one bit of a number in memory, ``none`` everything; None leaves it
            to the server, but is ``none`` for packed types: a server's default quantiser may not
            know the metric.

    Raises:
        ConfigurationError: If a choice is unknown, or would rank wrongly.
    """
    check_literal("index", index, Index)
    if quantizer is not None:
        check_literal("quantizer", quantizer, Quantizer)
    field = stores.field(spec, "weaviate")
    chosen = quantizer or field.options.get("quantizer")
    fault = index_fault(KINDS[spec.embedding_type], field.metric, [chosen] if chosen else [])
    if fault:
        raise ConfigurationError(f"{spec.embedding_type} vectors and {chosen}: {fault}")
    quantizers = Configure.VectorIndex.Quantizer
    made = None if not chosen else quantizers.bq() if chosen == "bq" else quantizers.none()
    metric = VectorDistances(field.metric)
    if index == "flat":
        return Configure.VectorIndex.flat(distance_metric=metric, quantizer=made)
    return Configure.VectorIndex.hnsw(distance_metric=metric, quantizer=made)


def spec_fault(spec: VectorSpec, metric: str, quantizers: Collection[str]) -> str | None:
    """Return why an index ranks the vectors of a spec wrongly, or None if it is right."""
    right = stores.field(spec, "weaviate").metric
    if not spec.normalized and metric != right:
        return f"{spec.model} ranks by the length of its vectors too, as {right} does"
    return index_fault(KINDS[spec.embedding_type], metric, quantizers)


def index_fault(kind: Kind, metric: str, quantizers: Collection[str]) -> str | None:
    """Return why an index ranks vectors wrongly and what would not, or None if it is right."""
    if metric == "hamming":
        strange = sorted(set(quantizers) - {"none", "bq"})
        if strange:
            return (
                f"the quantiser {strange[0]} knows no hamming distance; use none or bq (a server's "
                f"DEFAULT_QUANTIZATION is kept away by none)"
            )
    if "bq" in quantizers and kind in ("zeros and ones", "codes from 0"):
        return (
            "bq keeps the sign, and no number here is below 0, so all vectors look alike; store "
            "±1 (batch.signs()), or use no quantiser"
        )
    if metric in _RANKED[kind]:
        return None
    if metric == "hamming":
        if kind == "floats":
            return "hamming counts unequal numbers, and floats are hardly ever equal; use cosine"
        return (
            "hamming counts unequal numbers, so packed bytes are compared by byte and not by bit; "
            "store ±1 (batch.signs(), or an alias of nimbed serve with as=signs)"
        )
    right = " or ".join(sorted(_RANKED[kind]))
    return f"{metric} does not rank {kind} as their type means it; use {right}"


def kind_of(vectors: NDArray[Any]) -> Kind:
    """Return what the numbers of some vectors are, judged by their values alone."""
    values = np.unique(vectors)
    if not np.array_equal(values, np.rint(values)):
        return "floats"
    if np.isin(values, (-1, 1)).all():
        return "signs"
    if np.isin(values, (0, 1)).all():
        return "zeros and ones"
    return "codes" if values[0] < 0 else "codes from 0"


@dataclass(frozen=True, slots=True)
class VectorSetup:
    """How a collection gets and compares one of its vectors.

    Attributes:
        name: The vector's name; empty for the single vector of older collections.
        module: The module that embeds; ``none`` for vectors that are given.
        settings: The module's settings as they are stored, defaults of the server among them.
        metric: The distance.
        quantizers: What compresses the vectors; a dynamic index may have two.
        source_properties: The properties that the module embeds; None for all of type text.
    """

    name: str
    module: str
    settings: Mapping[str, Any]
    metric: str
    quantizers: frozenset[str]
    source_properties: tuple[str, ...] | None = None


def vector_setups(config: CollectionConfig) -> list[VectorSetup]:
    """Return the setup of every vector of a collection."""
    if config.vector_config:
        named = config.vector_config.items()
        return [
            _setup(
                name,
                it.vectorizer.vectorizer,
                it.vectorizer.model,
                it.vector_index_config,
                it.vectorizer.source_properties,
            )
            for name, it in named
        ]
    module = config.vectorizer or Vectorizers.NONE
    settings: dict[str, Any] = {}
    if config.vectorizer_config is not None:
        # The client takes this key out of the settings of an unnamed vector.
        taken = config.vectorizer_config.vectorize_collection_name
        settings = {**config.vectorizer_config.model, "vectorizeClassName": taken}
    return [_setup("", module, settings, config.vector_index_config)]


def _setup(
    name: str,
    module: Vectorizers | str,
    settings: Any,
    index: Any,
    sources: Sequence[str] | None = None,
) -> VectorSetup:
    metric = getattr(index, "distance_metric", VectorDistances.COSINE)
    parts = (index, getattr(index, "hnsw", None), getattr(index, "flat", None))
    found = (getattr(part, "quantizer", None) for part in parts)
    return VectorSetup(
        name=name,
        module=module.value if isinstance(module, Vectorizers) else module,
        settings=settings,
        metric=metric.value,
        # The client says which one by the class of its answer: _BQConfig, _RQConfig, ...
        quantizers=frozenset(
            type(each).__name__.strip("_").removesuffix("Config").lower()
            for each in found
            if each is not None
        ),
        source_properties=None if sources is None else tuple(sources),
    )
