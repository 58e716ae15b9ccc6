"""A spec and the name of a database in, its field out; nonsense pairs are refused.

The tables of what each database has are in ``packed.py`` and ``numeric.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nimbed.batch import EmbeddingBatch
from nimbed.errors import ConfigurationError
from nimbed.spec import VectorSpec, require_same_space
from nimbed.stores.numeric import float_shapes, int8_shapes, uint8_shapes
from nimbed.stores.packed import packed_shapes
from nimbed.stores.payload import PAYLOADS, Payload, Vectors
from nimbed.stores.shape import Shape

__all__ = ["StoreField", "field", "names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreField:
    """How a database stores and compares the vectors of a spec.

    Attributes:
        store: Name of the database.
        spec: The contract of the vectors.
        type: Type of the field or column.
        metric: The metric, as the database spells it.
        operator: What a query orders by: operator, function or search parameter.
        options: Further settings of the field or its index.
        payload: Name of the form that :meth:`encode` gives.
        note: Why a substituted metric is exact; empty where the database has the metric.
    """

    store: str
    spec: VectorSpec
    type: str
    metric: str
    operator: str
    options: Mapping[str, Any]
    payload: Payload
    note: str = ""

    def encode(self, batch: EmbeddingBatch) -> Vectors:
        """Return what the database's client takes, one element a vector.

        Raises:
            SpaceMismatchError: If the batch has another spec than this field.
        """
        require_same_space(self.spec, batch.spec, doing=f"store in one {self.store} field")
        return PAYLOADS[self.payload](batch)

    def to_dict(self) -> dict[str, Any]:
        """Return the field as JSON types, the spec as its fingerprint."""
        return {
            "store": self.store,
            "type": self.type,
            "metric": self.metric,
            "operator": self.operator,
            "options": dict(self.options),
            "payload": self.payload,
            "note": self.note,
            "fingerprint": self.spec.fingerprint,
        }


def names() -> tuple[str, ...]:
    """Return the names of the databases that :func:`field` knows."""
    return tuple(sorted(packed_shapes(8, 1)))


def field(
    spec: VectorSpec, store: str, *, metric: str | None = None, emulate: bool = False
) -> StoreField:
    """Return how a database stores and compares the vectors of a spec.

    Args:
        spec: The contract of the vectors.
        store: Name of the database; see :func:`names`.
        metric: The metric you have in mind, to be checked; None takes the spec's.
        emulate: Accept another metric where the database lacks the right one and the neighbours
            are exactly the same.

    Raises:
        ConfigurationError: If the database is unknown, cannot index so many dimensions or lacks
            the metric, or if the metric is wrong for these vectors.
    """
    if metric not in (None, spec.metric):
        raise ConfigurationError(_wrong_metric(spec, metric))
    shapes = _shapes(spec)
    if store not in shapes:
        close = difflib.get_close_matches(store.lower(), shapes, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigurationError(
            f"no store is called {store!r}; {hint}nimbed knows {', '.join(sorted(shapes))}"
        )
    shape = shapes[store]
    if shape.most is not None and spec.dimensions > shape.most:
        raise ConfigurationError(
            f"{store} indexes at most {shape.most} dimensions of type {shape.type.split('(')[0]}; "
            f"got {spec.dimensions}; take fewer dimensions, or embedding_type='ubinary'"
        )
    if shape.emulates and not emulate:
        raise ConfigurationError(
            f"{store} has no {spec.metric} metric for {spec.embedding_type} vectors; "
            f"{shape.emulates}: pass emulate=True to use that"
        )
    return StoreField(
        store=store,
        spec=spec,
        type=shape.type,
        metric=shape.metric,
        operator=shape.operator,
        options=shape.options,
        payload=shape.payload,
        note=shape.emulates,
    )


def _shapes(spec: VectorSpec) -> Mapping[str, Shape]:
    if spec.packed:
        return packed_shapes(spec.dimensions, spec.width)
    by_type = {"float": float_shapes, "int8": int8_shapes, "uint8": uint8_shapes}
    return by_type[spec.embedding_type](spec.dimensions)


def _wrong_metric(spec: VectorSpec, metric: str | None) -> str:
    said = f"{metric} does not rank {spec.embedding_type} vectors rightly"
    if spec.packed:
        return (
            f"{said}: a byte holds eight signs, not a number; use hamming, or store "
            f"batch.signs(), whose cosine and dot product rank exactly as hamming does"
        )
    if metric == "hamming":
        return f"{said}: it compares bits; embed with embedding_type='ubinary', or use cosine"
    if spec.embedding_type == "uint8":
        return f"{said}: its zero is shifted to 128; use euclidean, or embedding_type='int8'"
    if spec.embedding_type == "float" and metric in ("dot", "euclidean", "l2"):
        return f"these are unit vectors, which {metric} ranks exactly as cosine does; use cosine"
    return f"{said}; use {spec.metric}"
