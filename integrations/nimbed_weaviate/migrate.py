"""Migration of a collection to another vector space, while it is read and written.

A named vector is added, filled from the stored texts, checked by an audit, and from then on
searched instead of the old one. Which one that is stands in the description of the property
``nimbed_id``: imports and searches of nimbed that name no vector follow it, other programs are
told the line.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from weaviate.collections import Collection
from weaviate.outputs.config import CollectionConfig

import nimbed
from nimbed import Embedder, VectorSpec
from nimbed.audit import AUDITED
from nimbed.bulk import JobReport, ignore
from nimbed.errors import BackendError, ConfigurationError, InputError
from nimbed.reports import Finding
from nimbed.rows import BLANK, Reject
from nimbed.spec import EmbeddingType, Int8Scale, Truncate
from nimbed_weaviate.audit import audit
from nimbed_weaviate.backfill import backfill, embed_stored, text_of
from nimbed_weaviate.calls import RESTART_WAIT, Calls
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.indexes import VectorSetup, vector_setups
from nimbed_weaviate.properties import (
    ID,
    Places,
    contract_of,
    digest_properties,
    ensure_id,
    places_of,
)

if TYPE_CHECKING:
    from nimbed_weaviate.indexes import Index, Quantizer

__all__ = ["Migration", "finish", "migrate", "rollback"]

# Objects that are stored or changed meanwhile need another look; writers that never rest are told.
_PASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What a migration has done.

    Attributes:
        state: ``prepared``: the new vector is filled; ``switched``: it is searched; ``rolled
            back``: the old one is again; ``abandoned``: the new one is given up; ``finished``: the
            old one is.
        vector: The name of the vector that is searched now.
        spec: Its contract; None for a module's that nimbed never filled.
        report: Counts of the objects that were embedded.
        findings: What was checked before the switch.
        left: A vector that nothing asks for any more; Weaviate keeps it.
    """

    state: str
    vector: str
    spec: VectorSpec | None
    report: JobReport
    findings: tuple[Finding, ...] = ()
    left: str | None = None


def migrate(
    collection: Collection[Any, Any],
    embedder: Embedder,
    *,
    vector: str | None = None,
    embedding_type: EmbeddingType | None = None,
    dimensions: int | None = None,
    int8_scale: Int8Scale | None = None,
    index: Index = "hnsw",
    quantizer: Quantizer | None = None,
    source_properties: Sequence[str] | None = None,
    template: str | None = None,
    truncate: Truncate = "NONE",
    switch: bool = True,
    restart_wait: float = RESTART_WAIT,
    on_wait: Callable[[str], None] = ignore,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> Migration:
    """Fill a new vector with another model's or type's, and search by it.

    Imports and searches go on. Killed at any moment and run again, it goes on where it was. The
    old vector is kept for :func:`rollback`. Needs Weaviate 1.31, and vectors that have names.

    Args:
        collection: The collection; with its tenant, if it has tenants.
        embedder: Makes the new vectors.
        vector: The name of the new vector; None makes one of the model's.
        embedding_type: How a dimension is stored; None means as now.
        dimensions: None means the new model's full size.
        int8_scale: Scale of int8 and uint8.
        index: Its index, as for :func:`nimbed_weaviate.self_provided`.
        quantizer: What compresses it, likewise.
        source_properties: The properties whose texts are embedded; None takes those of the old
            vector: ``text`` of an import, or what its module embeds.
        template: Joins them, as for :func:`nimbed_weaviate.embed_stored`.
        truncate: What happens to a text that is too long: NONE rejects it, and a collection with
            rejected objects is not switched. A blank text has no vector, and is no obstacle.
        switch: Whether to search by the new vector once it is filled and checked.
        restart_wait: Seconds to wait for a Weaviate that goes away; 0 does not wait.
        on_wait: Told in a sentence that Weaviate is away, and that it is back.
        on_reject: Told each object that cannot be embedded.
        on_progress: Told the counts after each batch.

    Raises:
        ConfigurationError: If the collection is in that space already, or in another migration.
        InputError: If objects cannot be embedded; nothing is switched.
        BackendError: If Weaviate or the model failed, or a check did.
    """
    calls = Calls(budget=restart_wait, tell=on_wait)
    with translate_errors(f"migrating the collection {collection.name}"):
        config = calls(collection.config.get)
        old, places = _searched(config)
        contract = _contract(calls, collection, config, old.name)
        kind = embedding_type or (contract.embedding_type if contract else "float")
        spec = embedder.spec(embedding_type=kind, dimensions=dimensions, int8_scale=int8_scale)
        if contract is not None and contract.fingerprint == spec.fingerprint:
            raise ConfigurationError(
                f"the collection {config.name} is searched by such vectors already, in {old.name!r}"
            )
        new = vector or places.next or _name_for(spec, embedder)
        if new == old.name:
            raise ConfigurationError(f"the vector {new!r} is searched now; name another one")
        if places.next not in (None, new):
            raise ConfigurationError(
                f"a migration of {config.name} to the vector {places.next!r} is under way; finish "
                f"it, or give it up by a rollback"
            )
        sources = list(source_properties or _sources(config, old))
        ensure_id(calls, collection)
        _note(calls, collection, replace(places, searched=old.name, next=new))
    stored_as: dict[str, Any] = {
        "embedding_type": kind,
        "dimensions": spec.dimensions,
        "int8_scale": spec.int8_scale,
    }
    texts: dict[str, Any] = {"template": template}
    if template is None:
        texts["source_properties"] = sources
    common = {
        **texts,
        "truncate": truncate,
        "restart_wait": restart_wait,
        "on_wait": on_wait,
        "on_progress": on_progress,
    }
    fill = functools.partial(
        backfill, collection, embedder,
        vector=new, index=index, quantizer=quantizer, **stored_as, **common,
    )  # fmt: skip
    report = _filled(fill, on_reject, collection.name)
    findings = _checked(collection, embedder, new, config, **texts)
    if not switch:
        return Migration(
            state="prepared", vector=old.name, spec=contract, report=report, findings=findings
        )
    with translate_errors(f"migrating the collection {collection.name}"):
        _note(calls, collection, Places(searched=new, previous=old.name))
    return Migration(state="switched", vector=new, spec=spec, report=report, findings=findings)


def rollback(
    collection: Collection[Any, Any],
    embedder: Embedder | None = None,
    *,
    truncate: Truncate = "NONE",
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> Migration:
    """Search by the old vector again, or give up the unfinished new one.

    What was stored or changed since is embedded for the old vector first, where nimbed filled it.

    Args:
        collection: The collection; with its tenant, if it has tenants.
        embedder: Makes the old vectors; None loads their model.
        truncate: What happens to a text that is too long.
        on_reject: Told each object that cannot be embedded.
        on_progress: Told the counts after each batch.

    Raises:
        ConfigurationError: If there is nothing to go back to.
        InputError: If objects cannot be embedded; nothing is switched.
        BackendError: If Weaviate or the model failed.
    """
    calls, report = Calls(), JobReport()
    with translate_errors(f"migrating the collection {collection.name}"):
        config = calls(collection.config.get)
        now, places = _searched(config)
        spec = _contract(calls, collection, config, now.name)
        if places.next is not None:
            _note(calls, collection, replace(places, next=None))
            return Migration(
                state="abandoned", vector=now.name, spec=spec, report=report, left=places.next
            )
        if places.previous is None:
            raise ConfigurationError(f"the collection {config.name} was not migrated")
        back = next(each for each in vector_setups(config) if each.name == places.previous)
        spec = _contract(calls, collection, config, back.name)
    if spec is not None and back.module == "none":
        model = embedder or nimbed.load(spec.model, revision=spec.revision)
        fill = functools.partial(
            embed_stored, collection, model, vector=back.name,
            source_properties=_sources(config, back), truncate=truncate, on_progress=on_progress,
        )  # fmt: skip
        report = _filled(fill, on_reject, collection.name)
    with translate_errors(f"migrating the collection {collection.name}"):
        _note(calls, collection, Places(searched=back.name, previous=now.name))
    return Migration(state="rolled back", vector=back.name, spec=spec, report=report)


def finish(collection: Collection[Any, Any]) -> Migration:
    """Forget the old vector, after which there is no way back.

    Weaviate itself keeps it; from 1.37 on ``DELETE /v1/schema/NAME/vectors/OLD/index`` frees its
    memory.

    Raises:
        ConfigurationError: If no migration was switched.
    """
    calls = Calls()
    with translate_errors(f"migrating the collection {collection.name}"):
        config = calls(collection.config.get)
        now, places = _searched(config)
        if places.next is not None or places.previous is None:
            raise ConfigurationError(
                f"no migration of {config.name} is switched; there is nothing to finish"
            )
        _note(calls, collection, replace(places, previous=None))
        spec = _contract(calls, collection, config, now.name)
    return Migration(
        state="finished", vector=now.name, spec=spec, report=JobReport(), left=places.previous
    )


def _searched(config: CollectionConfig) -> tuple[VectorSetup, Places]:
    """Return the vector that is searched, and what a migration has noted."""
    setups = {setup.name: setup for setup in vector_setups(config)}
    places = places_of(config)
    name = places.searched or (next(iter(setups)) if len(setups) == 1 else None)
    if not config.vector_config:
        raise ConfigurationError(
            f"the single vector of the collection {config.name} has no name, and Weaviate adds "
            f"others to named ones alone; make a new collection and import into it"
        )
    if name not in setups:
        raise ConfigurationError(
            f"which vector of the collection {config.name} is searched is not known: it has "
            f"{', '.join(map(repr, setups))}; fill the new one with backfill(...) instead"
        )
    return setups[name], places


def _contract(
    calls: Calls, collection: Collection[Any, Any], config: CollectionConfig, name: str
) -> VectorSpec | None:
    return contract_of(config, digest_properties(calls, collection, config).get(name, ""))


def _sources(config: CollectionConfig, old: VectorSetup) -> Sequence[str]:
    """Return the properties that a vector was made of."""
    texts = [each.name for each in config.properties if each.name == "text"]
    if old.module == "none" or any(each.name == ID for each in config.properties):
        return texts or ["text"]  # the backfill says what there is instead
    if old.source_properties is not None:
        return old.source_properties
    return sorted(each.name for each in config.properties if each.data_type.value == "text")


def _name_for(spec: VectorSpec, embedder: Embedder) -> str:
    """Return a name for the vectors of a spec, the same each time."""
    parts = [re.sub(r"\W", "_", spec.model.rpartition("/")[2], flags=re.ASCII)]
    if spec.embedding_type != "float":
        parts.append(spec.embedding_type)
    if spec.dimensions != embedder.card.dimensions:
        parts.append(str(spec.dimensions))
    name = "_".join(parts)
    return name if name[0].isalpha() else f"v_{name}"


def _filled(
    fill: Callable[..., JobReport], on_reject: Callable[[Reject], None], name: str
) -> JobReport:
    """Fill a vector until nothing is new or changed, and return the counts of all passes.

    Raises:
        InputError: If an object cannot be embedded.
        BackendError: If there is always something new.
    """
    obstacles: list[Reject] = []

    def reject(row: Reject) -> None:
        if row.reason != BLANK:  # which has no vector anywhere
            obstacles.append(row)
        on_reject(row)

    report: JobReport = fill(on_reject=reject)
    for _ in range(_PASSES):
        if obstacles:
            raise InputError(
                f"{len(obstacles):,} objects of {name} cannot be embedded, so nothing is switched; "
                f"the first is {obstacles[0].id}: {obstacles[0].reason}"
            )
        again: JobReport = fill(on_reject=ignore)
        report.loaded += again.loaded
        report.tokens += again.tokens
        report.seconds += again.seconds
        if not again.loaded:
            return report
    raise BackendError(
        f"{name} is written to faster than this machine embeds; what is filled stays: run it again "
        f"while fewer write"
    )


def _checked(
    collection: Collection[Any, Any],
    embedder: Embedder,
    vector: str,
    config: CollectionConfig,
    **texts: Any,
) -> tuple[Finding, ...]:
    found = audit(
        collection, embedder, vector=vector, rows=AUDITED, texts_of=text_of(config, **texts)
    )
    wrong = [each for each in found.findings if each.verdict == "fail"]
    if wrong:
        raise BackendError(
            f"the new vectors are not what they should be, so nothing is switched: "
            f"{wrong[0].name}: {wrong[0].detail}"
        )
    return found.findings


def _note(calls: Calls, collection: Collection[Any, Any], places: Places) -> None:
    noted = {name: value for name, value in asdict(places).items() if value is not None}
    said = f"the row's id {json.dumps(noted)}"
    calls(lambda: collection.config.update(property_descriptions={ID: said}))
