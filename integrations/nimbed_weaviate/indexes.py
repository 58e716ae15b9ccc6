"""Vector indexes: which one ranks each type of vector correctly, and how a collection is set up.

What each metric and quantiser does with a vector is
read from Weaviate's sources: its hamming counts unequal floats, its BQ keeps the sign alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from weaviate.classes.config import Configure, VectorDistances, Vectorizers
from weaviate.outputs.config import CollectionConfig

from nimbed import VectorSpec, stores
from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType, check_literal

__all__ = [
    "KINDS",
    "Kind",
    "VectorSetup",
    "index_fault",
    "index_for",
    "index_json",
    "kind_of",
    "quantizer_for",
    "quantizers_of",
    "spec_fault",
    "vector_setups",
]

if TYPE_CHECKING:
    from weaviate.collections.classes.config_base import (
        _QuantizerConfigCreate,  # pyright: ignore[reportPrivateUsage]
    )
    from weaviate.collections.classes.config_vector_index import (
        _VectorIndexConfigCreate,  # pyright: ignore[reportPrivateUsage]
    )

    #: A short word, or weaviate-client's own object.
    Index = Literal["hnsw", "flat"] | _VectorIndexConfigCreate
    Quantizer = Literal["none", "bq"] | _QuantizerConfigCreate

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

_HFRESH = frozenset({"cosine", "l2-squared"})
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
        index: ``hnsw``, or ``flat`` to compare with every vector; or weaviate-client's own object,
            such as ``Configure.VectorIndex.dynamic(...)``, which is judged, and gets the metric
            where it names none.
        quantizer: ``bq`` keeps one bit of a number in memory, ``none`` everything; or
            weaviate-client's own object, such as ``Configure.VectorIndex.Quantizer.rq(bits=8)``.
            None leaves it to the server, but is ``none`` for packed types: a server's default
            quantiser may not know the metric.

    Raises:
        ConfigurationError: If a choice is unknown, or would rank wrongly.
    """
    made = quantizer_for(quantizer)
    if not isinstance(index, str):
        if made is not None:
            raise ConfigurationError(
                "the index object brings its own quantiser; give it there, and leave quantizer out"
            )
        chosen = index
    else:
        check_literal("index", index, Literal["hnsw", "flat"])
        build = Configure.VectorIndex.flat if index == "flat" else Configure.VectorIndex.hnsw
        chosen = build(quantizer=made)
    return _judged(chosen, spec)


def quantizer_for(asked: Quantizer | None) -> _QuantizerConfigCreate | None:
    """Return weaviate-client's own object for a quantiser.

    Raises:
        ConfigurationError: If it is unknown.
    """
    quantizers = Configure.VectorIndex.Quantizer
    if asked is None:
        return None
    if isinstance(asked, str):
        check_literal("quantizer", asked, Literal["none", "bq"])
        return quantizers.bq() if asked == "bq" else quantizers.none()
    if not hasattr(asked, "quantizer_name"):
        raise ConfigurationError(
            f"quantizer must be 'none', 'bq' or one of Configure.VectorIndex.Quantizer; got "
            f"{type(asked).__name__}"
        )
    return asked


def _judged(index: Any, spec: VectorSpec) -> _VectorIndexConfigCreate:
    """Return an index of the client's with what it leaves open, if it ranks a spec's vectors.

    Raises:
        ConfigurationError: If it does not.
    """
    if not hasattr(index, "vector_index_type"):
        raise ConfigurationError(
            f"index must be 'hnsw', 'flat' or one of Configure.VectorIndex; got "
            f"{type(index).__name__}"
        )
    metric_of_type = stores.field(spec, "weaviate").metric
    kind = index.vector_index_type().value
    names = [name for name in ("hnsw", "flat") if getattr(index, name, None) is not None]
    parts = {name: getattr(index, name) for name in names}
    metrics = {each.distance.value for each in (index, *parts.values()) if each.distance}
    if getattr(index, "multivector", None) is not None or any(
        getattr(each, "multivector", None) is not None for each in parts.values()
    ):
        raise ConfigurationError(
            "this index holds several vectors a text, and the spec is of one; leave multi_vector "
            "out"
        )
    if len(metrics) > 1:
        raise ConfigurationError(
            f"the parts of this index compare by {' and by '.join(sorted(metrics))}; name one "
            f"metric, or none"
        )
    metric = next(iter(metrics), metric_of_type)
    for name, each in [(kind, index), *parts.items()]:
        fault = spec_fault(spec, metric, quantizers_of(each), index=name)
        if fault:
            raise ConfigurationError(f"{spec.embedding_type} vectors: {fault}")
    if kind == "dynamic" and spec.packed:
        # Either part may meet the server's default quantiser.
        both = {"hnsw": Configure.VectorIndex.hnsw(), "flat": Configure.VectorIndex.flat()}
        parts = {**both, **parts}
    finished = {name: _finished(each, metric, packed=spec.packed) for name, each in parts.items()}
    whole = _finished(index, metric, packed=spec.packed and kind in ("hnsw", "flat"))
    return cast("_VectorIndexConfigCreate", whole.model_copy(update=finished))


def _finished(index: Any, metric: str, *, packed: bool) -> Any:
    """Return a copy of an index with the metric, and without the server's default quantiser."""
    given: dict[str, Any] = {}
    if index.distance is None:
        given["distance"] = VectorDistances(metric)
    if packed and index.quantizer is None:
        given["quantizer"] = Configure.VectorIndex.Quantizer.none()
    return index.model_copy(update=given)


def index_json(index: Any) -> dict[str, Any]:
    """Return an index to be made as Weaviate reads it; its parts too, which have quantisers."""
    made: dict[str, Any] = index.model_dump(mode="json", exclude_none=True)
    for name in ("hnsw", "flat"):
        if getattr(index, name, None) is not None:
            made[name] = index_json(getattr(index, name))
    if index.distance is not None:
        made["distance"] = index.distance.value
    if index.quantizer is not None:
        name = index.quantizer.quantizer_name()
        stated = index.quantizer.model_dump(mode="json", exclude_none=True)
        made[name] = True if name == "skipDefaultQuantization" else stated
    return made


def quantizers_of(index: Any) -> frozenset[str]:
    """Return what compresses the vectors of an index, of either side of the client.

    A configuration to be sent names its quantiser; one that was read tells by its class.
    """
    found = getattr(index, "quantizer", None)
    if found is None:
        return frozenset()
    if hasattr(found, "quantizer_name"):
        name = found.quantizer_name()
    else:
        name = type(found).__name__.strip("_").removesuffix("Config").lower()
    if name == "rq":
        return frozenset({f"rq-{found.bits or 8}"})  # 8 is the server's default
    return frozenset({"none" if name == "skipDefaultQuantization" else name})


def spec_fault(
    spec: VectorSpec, metric: str, quantizers: Collection[str], *, index: str = "hnsw"
) -> str | None:
    """Return why an index ranks the vectors of a spec wrongly, or None if it is right."""
    right = stores.field(spec, "weaviate").metric
    if not spec.normalized and metric != right:
        return f"{spec.model} ranks by the length of its vectors too, as {right} does"
    return index_fault(KINDS[spec.embedding_type], metric, quantizers, index=index)


def index_fault(
    kind: Kind, metric: str, quantizers: Collection[str], *, index: str = "hnsw"
) -> str | None:
    """Return why an index ranks vectors wrongly and what would not, or None if it is right.

    Args:
        kind: What the numbers of the vectors are.
        metric: The distance.
        quantizers: What compresses the vectors, such as ``bq`` and ``rq-8``.
        index: The type of the index.
    """
    if index == "hfresh" and metric not in _HFRESH:
        return f"hfresh knows no {metric}; use hnsw or flat, or {' or '.join(sorted(_HFRESH))}"
    if index == "flat" and (strange := sorted({"pq", "sq"} & set(quantizers))):
        return f"Weaviate has no {strange[0]} for a flat index; use bq, rq or none, or hnsw"
    if metric == "hamming":
        strange = sorted(set(quantizers) - {"none", "bq"})
        if strange:
            return (
                f"the quantiser {strange[0]} knows no hamming distance; use none or bq (a server's "
                f"DEFAULT_QUANTIZATION is kept away by none)"
            )
    if kind in ("zeros and ones", "codes from 0") and (
        signs := sorted({"bq", "rq-1"} & set(quantizers))
    ):
        return (
            f"{signs[0]} keeps signs, and no number here is below 0, so all vectors look alike; "
            f"store ±1 (batch.signs()), or use no quantiser"
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
        index: The type of the index.
        source_properties: The properties that the module embeds; None for all of type text.
        multi: Whether it holds multi-vectors, a vector a token.
    """

    name: str
    module: str
    settings: Mapping[str, Any]
    metric: str
    quantizers: frozenset[str]
    index: str = "hnsw"
    source_properties: tuple[str, ...] | None = None
    multi: bool = False


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
    return VectorSetup(
        name=name,
        module=module.value if isinstance(module, Vectorizers) else module,
        settings=settings,
        metric=metric.value,
        quantizers=frozenset().union(*map(quantizers_of, parts)),
        index="hnsw" if index is None else index.vector_index_type(),
        source_properties=None if sources is None else tuple(sources),
        multi=getattr(index, "multi_vector", None) is not None,
    )
