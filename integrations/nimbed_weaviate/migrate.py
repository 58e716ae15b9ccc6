"""Migration of a collection to another vector space, while it is read and written.

A named vector is added, or a new collection is made where that cannot be; it is filled from the
stored texts, checked by an audit, and from then on searched instead of the old one. Which one that
is stands in the description of the property ``nimbed_id``: imports and searches of nimbed that name
no vector follow it, other programs are told the line, or follow an alias.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from weaviate import WeaviateAsyncClient, WeaviateClient
from weaviate.collections import Collection, CollectionAsync
from weaviate.outputs.config import CollectionConfig

from nimbed import Embedder, VectorSpec
from nimbed.audit import AUDITED
from nimbed.bulk import JobReport, ignore
from nimbed.errors import BackendError, ConfigurationError, InputError
from nimbed.reports import Finding
from nimbed.rows import BLANK, Reject
from nimbed.spec import EmbeddingType, Int8Scale, Truncate
from nimbed_weaviate.audit import audit_by
from nimbed_weaviate.backfill import BackfillOptions, add_vector, fill_stored, text_of
from nimbed_weaviate.calls import RESTART_WAIT, Calls, in_thread
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.indexes import VectorSetup, index_for, vector_setups
from nimbed_weaviate.new_collection import (
    CollectionCopy,
    Home,
    find_home,
    make_collection,
    new_name,
    require_copyable,
    server_version,
    take_place,
)
from nimbed_weaviate.properties import (
    DIGEST,
    ID,
    Places,
    dense_contract,
    digest_properties,
    ensure_id,
    note_places,
    places_of,
    require_unmoved,
)

if TYPE_CHECKING:
    from nimbed_weaviate.indexes import Index, Quantizer

__all__ = [
    "MigrateOptions",
    "Migration",
    "amigrate",
    "contract_in",
    "filled",
    "home_of",
    "migrate",
    "same_methods",
    "searched_vector",
    "sources_of",
]

# Objects that are stored or changed meanwhile need another look; writers that never rest are told.
_PASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What a migration has done.

    Attributes:
        state: ``prepared``: the new vector is filled; ``switched``: it is searched; ``rolled
            back``: the old one is again; ``abandoned``: the new one is given up; ``finished``: the
            old one is.
        collection: The collection that is searched now.
        vector: The name of the vector that is searched now; empty where it has none.
        spec: Its contract; None for a module's that nimbed never filled.
        report: Counts of the objects that were embedded.
        findings: What was checked before the switch.
        left: A vector that nothing asks for any more; Weaviate keeps it.
        left_collection: A collection that nothing asks for any more; Weaviate keeps it.
        alias: The alias that leads to the collection, where it was asked for by one.
    """

    state: str
    collection: str
    vector: str
    spec: VectorSpec | None
    report: JobReport
    findings: tuple[Finding, ...] = ()
    left: str | None = None
    left_collection: str | None = None
    alias: str | None = None


class MigrateOptions(TypedDict, total=False):
    """What :func:`migrate` may be told, by name.

    Attributes:
        vector: The name of the new vector; None, the default, makes one of the model's.
        into: The name of a new collection, to which the objects are copied with the new vector,
            whether or not the old one could take it. Needs a client.
        embedding_type: How a dimension is stored; None, the default, means as now.
        dimensions: None, the default, means the new model's full size.
        int8_scale: Scale of int8 and uint8.
        index: Its index, as for :func:`nimbed_weaviate.self_provided`.
        quantizer: What compresses it, likewise.
        source_properties: The properties whose texts are embedded; None, the default, takes those
            of the old vector: ``text`` of an import, or what its module embeds.
        template: Joins them, as for :func:`nimbed_weaviate.embed_stored`.
        truncate: What happens to a text that is too long: NONE, the default, rejects it, and a
            collection with rejected objects is not switched. A blank text has no vector, and is no
            obstacle.
        switch: Whether to search by the new vector once it is filled and checked, as by default.
        restart_wait: Seconds to wait for a Weaviate that goes away; 0 does not wait.
        on_wait: Told in a sentence that Weaviate is away, and that it is back.
        on_reject: Told each object that cannot be embedded.
        on_progress: Told the counts after each batch.
    """

    vector: str | None
    into: str | None
    embedding_type: EmbeddingType | None
    dimensions: int | None
    int8_scale: Int8Scale | None
    index: Index
    quantizer: Quantizer | None
    source_properties: Sequence[str] | None
    template: str | None
    truncate: Truncate
    switch: bool
    restart_wait: float
    on_wait: Callable[[str], None]
    on_reject: Callable[[Reject], None]
    on_progress: Callable[[JobReport], None]


def migrate(
    collection: Collection[Any, Any],
    embedder: Embedder,
    *,
    client: WeaviateClient | None = None,
    **options: Unpack[MigrateOptions],
) -> Migration:
    """Fill a new vector with another model's or type's, and search by it.

    Imports and searches go on. Killed at any moment and run again, it goes on where it was. What
    is old is kept for :func:`nimbed_weaviate.rollback`.

    The vector is added to the collection; Weaviate before 1.31 cannot do that, nor any to a vector
    without a name, and a collection that is asked for by an alias should not need it. There a new
    collection is made, like the old one: the objects are copied with their uuids, properties and
    other vectors, and the alias is switched (Weaviate 1.32). Where there is none, other programs
    are to open the new one; :func:`nimbed_weaviate.current_collection` finds it. Imports that run
    at the very moment of that switch must be run again; they say so.

    Args:
        collection: The collection; with its tenant, if it has tenants.
        embedder: Makes the new vectors.
        client: The connected client, where a new collection may have to be made.
        **options: Any of those that :class:`MigrateOptions` describes.

    Raises:
        ConfigurationError: If the collection is in that space already, or in another migration, or
            cannot take the vector.
        InputError: If objects cannot be embedded; nothing is switched.
        BackendError: If Weaviate or the model failed, or a check did.
    """
    return _migrate(_calls(options), collection, embedder, client, **options)


async def amigrate(
    collection: CollectionAsync[Any, Any],
    embedder: Embedder,
    *,
    client: WeaviateAsyncClient | None = None,
    **options: Unpack[MigrateOptions],
) -> Migration:
    """Do what :func:`migrate` does, through Weaviate's async client."""
    calls = _calls(options, asyncio.get_running_loop())
    job = functools.partial(_migrate, calls, *same_methods(collection, embedder, client), **options)
    return await in_thread(job, calls)


def _calls(options: MigrateOptions, loop: asyncio.AbstractEventLoop | None = None) -> Calls:
    budget, tell = options.get("restart_wait", RESTART_WAIT), options.get("on_wait", ignore)
    return Calls(budget=budget, tell=tell, loop=loop)


def same_methods(
    collection: CollectionAsync[Any, Any],
    embedder: Any,
    client: WeaviateAsyncClient | None,
) -> tuple[Collection[Any, Any], Any, WeaviateClient | None]:
    """Return what has the same methods; what they return is awaited where the calls are made."""
    return cast("Collection[Any, Any]", collection), embedder, cast("WeaviateClient | None", client)


def _migrate(
    calls: Calls,
    collection: Collection[Any, Any],
    embedder: Embedder,
    client: WeaviateClient | None,
    *,
    vector: str | None = None,
    into: str | None = None,
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
    del restart_wait, on_wait  # the calls have them
    with translate_errors(f"migrating the collection {collection.name}"):
        home, config = home_of(calls, client, collection)
        moved = _into(calls, client, home, config, into)
        old, places = searched_vector(config, named=moved is None)
        contract = contract_in(calls, home.collection, config, old.name)
        kind = embedding_type or (contract.embedding_type if contract else "float")
        spec = embedder.spec(embedding_type=kind, dimensions=dimensions, int8_scale=int8_scale)
        if contract is not None and contract.fingerprint == spec.fingerprint:
            raise ConfigurationError(
                f"the collection {config.name} is searched by such vectors already, in {old.name!r}"
            )
        new = vector or places.next or _name_for(spec, embedder)
        if new == old.name and moved is None:
            raise ConfigurationError(f"the vector {new!r} is searched now; name another one")
        if places.next not in (None, new) or (places.next and moved):
            raise ConfigurationError(
                f"a migration of {config.name} to the vector {places.next!r} is under way; finish "
                f"it, or give it up by a rollback"
            )
        sources = list(source_properties or sources_of(config, old, ours=contract is not None))
        ensure_id(calls, home.collection, config)
        now = replace(places, searched=old.name or None, next=None if moved else new)
        note_places(calls, home.collection, replace(now, next_collection=moved))
    texts: dict[str, Any] = {"template": template}
    if template is None:
        texts["source_properties"] = sources
    told: dict[str, Any] = {"truncate": truncate, "on_progress": on_progress}
    doing = f"migrating the collection {home.collection.name}"
    target = home.collection
    with translate_errors(doing):
        if moved is not None and client is not None:
            target = make_collection(
                calls, client, calls(home.collection.config.get), moved,
                without=old, vector=new, index=index_for(spec, index=index, quantizer=quantizer),
            )  # fmt: skip
            setup = next(
                each for each in vector_setups(calls(target.config.get)) if each.name == new
            )
            copy = CollectionCopy(
                calls, home.collection, target,
                vector=setup, spec=spec, without=old, text=text_of(config, **texts),
            )  # fmt: skip
            report = filled(
                calls, functools.partial(copy.copy, embedder, **told), on_reject, config.name
            )
            report.removed, since = copy.remove_vanished(None)
        else:
            stored: BackfillOptions = {
                "embedding_type": kind, "dimensions": spec.dimensions,
                "int8_scale": spec.int8_scale,
            }  # fmt: skip
            add_vector(calls, target, embedder, new, index, quantizer, stored)
            fill = functools.partial(
                fill_stored, calls, target, embedder, vector=new, **stored, **texts, **told
            )
            report, since = filled(calls, fill, on_reject, config.name), None
    findings = _checked(calls, target, embedder, new, config, **texts)
    done = Migration(
        state="prepared", collection=home.collection.name, vector=old.name, spec=contract,
        report=report, findings=findings, alias=home.alias,
    )  # fmt: skip
    if not switch:
        return done
    with translate_errors(doing):
        if moved is not None and client is not None:
            take_place(calls, client, home, target, vector=new, since=since)
        else:
            now = places_of(calls(target.config.get))
            note_places(calls, target, replace(now, searched=new, previous=old.name, next=None))
    return replace(done, state="switched", collection=target.name, vector=new, spec=spec)


def home_of(
    calls: Calls, client: WeaviateClient | None, collection: Collection[Any, Any]
) -> tuple[Home, CollectionConfig]:
    """Return where the objects of a collection are now, and the configuration there."""
    home = Home(collection, None)
    if client is not None:
        home = find_home(calls, client, collection.name)
        if home.collection.name == collection.name:
            home = Home(collection, home.alias)  # with its tenant
    config = calls(home.collection.config.get)
    require_unmoved(config)
    return home, config


def _into(
    calls: Calls, client: WeaviateClient | None, home: Home, config: CollectionConfig,
    asked: str | None,
) -> str | None:  # fmt: skip
    """Return the name of the new collection, or None where a vector is added."""
    places = places_of(config)
    if places.next_collection is not None:
        if asked not in (None, places.next_collection):
            raise ConfigurationError(
                f"a migration of {config.name} into {places.next_collection} is under way; finish "
                f"it, or give it up by a rollback"
            )
        return places.next_collection
    if client is None:
        if asked is not None:
            raise ConfigurationError("to make a new collection, pass the client too: client=...")
        return None
    if places.next is not None and asked is None:
        return None
    named = bool(config.vector_config) and server_version(calls, client) >= (1, 31)
    if asked is None and named and home.alias is None:
        return None
    chosen = asked or new_name(calls, client, config.name)
    require_copyable(calls, client, config, chosen)
    return chosen


def searched_vector(
    config: CollectionConfig, *, named: bool = False, asked: str | None = None
) -> tuple[VectorSetup, Places]:
    """Return the vector that is searched, and what a migration has noted."""
    setups = {setup.name: setup for setup in vector_setups(config)}
    places = places_of(config)
    name = asked or places.searched or (next(iter(setups)) if len(setups) == 1 else None)
    if named and not config.vector_config:
        raise ConfigurationError(
            f"the single vector of the collection {config.name} has no name, and Weaviate adds "
            f"others to named ones alone; pass client=..., and a new collection is made"
        )
    if name not in setups:
        raise ConfigurationError(
            f"which vector of the collection {config.name} is searched is not known: it has "
            f"{', '.join(map(repr, setups))}; fill the new one with backfill(...) instead"
        )
    return setups[name], places


def contract_in(
    calls: Calls, collection: Collection[Any, Any], config: CollectionConfig, name: str
) -> VectorSpec | None:
    """Return the contract of a collection's vector, by its name."""
    known = digest_properties(calls, collection, config)
    return dense_contract(config, known.get(name, ""), doing="a migration")


def sources_of(config: CollectionConfig, old: VectorSetup, *, ours: bool) -> Sequence[str]:
    """Return the properties that a vector was made of.

    Args:
        config: The collection's.
        old: The vector.
        ours: Whether nimbed filled it, though it may belong to a module.
    """
    texts = [each.name for each in config.properties if each.name == "text"]
    if old.module == "none" or ours:
        return texts or ["text"]  # the backfill says what there is instead
    if old.source_properties is not None:
        return old.source_properties
    return sorted(
        each.name
        for each in config.properties
        if each.data_type.value == "text" and each.name != ID and not each.name.startswith(DIGEST)
    )


def _name_for(spec: VectorSpec, embedder: Embedder) -> str:
    """Return a name for the vectors of a spec, the same each time."""
    parts = [re.sub(r"\W", "_", spec.model.rpartition("/")[2], flags=re.ASCII)]
    if spec.embedding_type != "float":
        parts.append(spec.embedding_type)
    if spec.dimensions != embedder.card.dimensions:
        parts.append(str(spec.dimensions))
    name = "_".join(parts)
    return name if name[0].isalpha() else f"v_{name}"


def filled(
    calls: Calls,
    fill: Callable[..., JobReport],
    on_reject: Callable[[Reject], None],
    name: str,
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
        before = calls.interruptions
        again: JobReport = fill(on_reject=ignore)
        report.loaded += again.loaded
        report.tokens += again.tokens
        report.seconds += again.seconds
        # A server that was killed may have lost the last of what it had acknowledged.
        if not again.loaded and calls.interruptions == before:
            return report
    raise BackendError(
        f"{name} is written to faster than this machine embeds; what is filled stays: run it again "
        f"while fewer write"
    )


def _checked(
    calls: Calls,
    collection: Collection[Any, Any],
    embedder: Embedder,
    vector: str,
    config: CollectionConfig,
    **texts: Any,
) -> tuple[Finding, ...]:
    found = audit_by(
        calls, collection, embedder,
        vector=vector, rows=AUDITED, texts_of=text_of(config, **texts),
    )  # fmt: skip
    wrong = [each for each in found.findings if each.verdict == "fail"]
    if wrong:
        raise BackendError(
            f"the new vectors are not what they should be, so nothing is switched: "
            f"{wrong[0].name}: {wrong[0].detail}"
        )
    return found.findings
