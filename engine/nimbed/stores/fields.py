"""The field that a database needs for the vectors of a spec."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nimbed.embedder import Embedder, HybridEmbedder, giving
from nimbed.errors import ConfigurationError
from nimbed.kinds import EmbeddingKinds
from nimbed.spec import (
    InputType,
    MultiVectorSpec,
    SparseSpec,
    Truncate,
    VectorSpec,
    check_literal,
    require_same_space,
)
from nimbed.stores.databases import DATABASES, AnySpec, Template, keeping_lengths
from nimbed.stores.kinds import kind_template
from nimbed.stores.payloads import PAYLOADS, AnyBatch, Payload, Vectors

__all__ = ["SparseEncoder", "StoreField", "field", "names"]


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
        payload: Name of what :meth:`encode` gives.
        note: What to know of it, such as why a metric used in place of the right one is exact;
            else empty.
    """

    store: str
    spec: AnySpec
    type: str
    metric: str
    operator: str
    options: Mapping[str, Any]
    payload: Payload
    note: str = ""

    def encode(self, batch: AnyBatch) -> Vectors:
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
    return tuple(sorted(DATABASES))


def field(
    spec: AnySpec, store: str, *, metric: str | None = None, emulate: bool = False
) -> StoreField:
    """Return how a database stores and compares the vectors of a spec.

    Args:
        spec: The contract of the vectors: dense, sparse or one a token.
        store: Name of the database; see :func:`names`.
        metric: The metric that you intend to use, to be checked; None takes the spec's.
        emulate: Whether to accept another metric where the database lacks the right one and the
            neighbours are exactly the same.

    Raises:
        ConfigurationError: If the database is unknown, has no vectors of that kind, cannot index so
            many dimensions or lacks the metric, or if the metric is wrong for these vectors.
    """
    if metric not in (None, spec.metric):
        raise ConfigurationError(_wrong_metric(spec, metric))
    if store not in DATABASES:
        close = difflib.get_close_matches(store.lower(), DATABASES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigurationError(
            f"no database is called {store!r}; {hint}nimbed knows {', '.join(names())}"
        )
    if isinstance(spec, VectorSpec):
        template, note = _dense_template(spec, store, emulate=emulate)
    else:
        template = kind_template(store, spec)
        note = template.note
    return StoreField(
        store=store,
        spec=spec,
        type=template.type_for(spec),
        metric=template.metric,
        operator=template.operator,
        options=template.options_for(spec),
        payload=template.payload,
        note=note,
    )


def _dense_template(spec: VectorSpec, store: str, *, emulate: bool) -> tuple[Template, str]:
    """Return how a database stores dense vectors, and why a metric in place of theirs is exact."""
    database = DATABASES[store]
    template = database.template(spec)
    if not spec.normalized:
        template = keeping_lengths(store, template, spec.metric)
    if template.most is not None and spec.dimensions > template.most:
        fits = database.packed.most is None or spec.dimensions <= database.packed.most
        bits = fits and spec.normalized
        raise ConfigurationError(
            f"{store} indexes at most {template.most} dimensions of type "
            f"{template.type.split('(')[0]}; got {spec.dimensions}; use fewer dimensions"
            f"{', or embedding_type=' + repr('ubinary') if bits else ''}"
        )
    if template.emulates and not emulate:
        raise ConfigurationError(
            f"{store} has no {spec.metric} metric for {spec.embedding_type} vectors; "
            f"{template.emulates}: pass emulate=True to use that"
        )
    return template, template.emulates


def _wrong_metric(spec: AnySpec, metric: str | None) -> str:
    if isinstance(spec, SparseSpec | MultiVectorSpec):
        return f"{metric} does not rank {spec.kind} vectors; use {spec.metric}"
    fault = f"{metric} does not rank {spec.embedding_type} vectors correctly"
    if not spec.normalized:
        return (
            f"the vectors of {spec.model} keep their length, which it ranks by; use {spec.metric}"
        )
    if spec.packed:
        return (
            f"{fault}: a byte holds eight signs, not a number; use hamming, or store "
            f"batch.signs(), whose cosine and dot product rank exactly as hamming does"
        )
    if metric == "hamming":
        return f"{fault}: it compares bits; use {spec.metric}, or embedding_type='ubinary'"
    if spec.embedding_type == "uint8":
        return f"{fault}: its zero is shifted to 128; use euclidean, or embedding_type='int8'"
    if spec.embedding_type == "float" and metric in ("dot", "euclidean", "l2"):
        return f"these are unit vectors, which {metric} ranks exactly as cosine does; use cosine"
    return f"{fault}; use {spec.metric}"


class _HoldsEmbedder(Protocol):
    """A framework's embeddings, which load their embedder at first use."""

    @property
    def embedder(self) -> Embedder: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseEncoder:
    """Encodes passages and queries as a store's client takes sparse vectors.

    Attributes:
        source: What embeds: an embedder, or a framework's embeddings that hold one. One that gives
            dense vectors too is shared, not loaded twice.
        store: The database, as :func:`nimbed.stores.field` calls it.
        max_active: The most weights that a vector keeps; None for all.
        truncate: What happens to a text that is too long: ``NONE`` raises and names its row.

    Raises:
        ConfigurationError: At the first call, if the model gives no sparse vectors.
    """

    source: Embedder | _HoldsEmbedder
    store: str
    max_active: int | None = None
    truncate: Truncate = "NONE"

    def __post_init__(self) -> None:
        """Refuse a word that no model knows."""
        check_literal("truncate", self.truncate, Truncate)

    @property
    def embedder(self) -> HybridEmbedder:
        """What embeds, loaded now if it was not before."""
        held = self.source if isinstance(self.source, Embedder) else self.source.embedder
        return giving(held, "sparse")

    @property
    def spec(self) -> SparseSpec:
        """The contract of the vectors."""
        return self.embedder.sparse_spec(max_active=self.max_active)

    def encode(self, texts: Sequence[str], role: InputType) -> list[Any]:
        """Return the sparse vector of each text.

        Raises:
            InputError: If texts are blank, too long or no strings; ``.rows`` names them.
            BackendError: If the model or the server failed.
        """
        return self._encoded(self.embedder.embed_kinds(texts, **self._options(role)))

    async def aencode(self, texts: Sequence[str], role: InputType) -> list[Any]:
        """Do what :meth:`encode` does without blocking the event loop."""
        return self._encoded(await self.embedder.aembed_kinds(texts, **self._options(role)))

    def _options(self, role: InputType) -> dict[str, Any]:
        return {
            "kinds": ("sparse",),
            "input_type": role,
            "max_active": self.max_active,
            "truncate": self.truncate,
        }

    def _encoded(self, found: EmbeddingKinds) -> list[Any]:
        assert found.sparse is not None  # it was asked for
        return list(field(found.sparse.spec, self.store).encode(found.sparse))
