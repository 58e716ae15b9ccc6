"""The client's view of a collection in, one flat description of each of its vectors out.

Hides the difference between named vectors and the single unnamed one of older collections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weaviate.classes.config import VectorDistances, Vectorizers
from weaviate.outputs.config import CollectionConfig

__all__ = ["VectorSetup", "vector_setups"]


@dataclass(frozen=True, slots=True)
class VectorSetup:
    """How a collection gets and compares one of its vectors.

    Attributes:
        name: The vector's name; empty for the single vector of older collections.
        module: The module that embeds; ``none`` for vectors that are given.
        settings: The module's settings as they are stored, defaults of the server among them.
        metric: The distance.
        quantizers: What compresses the vectors; a dynamic index may have two.
    """

    name: str
    module: str
    settings: Mapping[str, Any]
    metric: str
    quantizers: frozenset[str]


def vector_setups(config: CollectionConfig) -> list[VectorSetup]:
    """Return the setup of every vector of a collection."""
    if config.vector_config:
        named = config.vector_config.items()
        return [
            _setup(name, it.vectorizer.vectorizer, it.vectorizer.model, it.vector_index_config)
            for name, it in named
        ]
    module = config.vectorizer or Vectorizers.NONE
    settings: dict[str, Any] = {}
    if config.vectorizer_config is not None:
        # The client takes this key out of the settings of an unnamed vector.
        taken = config.vectorizer_config.vectorize_collection_name
        settings = {**config.vectorizer_config.model, "vectorizeClassName": taken}
    return [_setup("", module, settings, config.vector_index_config)]


def _setup(name: str, module: Vectorizers | str, settings: Any, index: Any) -> VectorSetup:
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
    )
