"""The ways out of a migration: back to the old vectors, or to an end without them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from weaviate import WeaviateAsyncClient, WeaviateClient
from weaviate.collections import Collection, CollectionAsync

import nimbed
from nimbed import Embedder
from nimbed.bulk import JobReport, ignore
from nimbed.errors import ConfigurationError
from nimbed.rows import Reject
from nimbed.spec import Truncate
from nimbed_weaviate.backfill import fill_stored, text_of
from nimbed_weaviate.calls import Calls, in_thread
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.migrate import (
    Migration,
    contract_in,
    filled,
    home_of,
    same_methods,
    searched_vector,
    sources_of,
)
from nimbed_weaviate.new_collection import CollectionCopy, take_place
from nimbed_weaviate.properties import Places, note_places, places_of

__all__ = ["afinish", "arollback", "finish", "rollback"]


def rollback(
    collection: Collection[Any, Any],
    embedder: Embedder | None = None,
    *,
    client: WeaviateClient | None = None,
    truncate: Truncate = "NONE",
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> Migration:
    """Search by the old vector again, or give up the unfinished new one.

    What was stored or changed since is embedded for the old vector first, where nimbed filled it.
    Of two collections the old one gets what the new one has; objects that others stored in the old
    one since, and the new one has not, stay.

    Args:
        collection: The collection, old or new; with its tenant, if it has tenants.
        embedder: Makes the old vectors; None loads their model.
        client: The connected client, if there is a new collection.
        truncate: What happens to a text that is too long.
        on_reject: Told each object that cannot be embedded.
        on_progress: Told the counts after each batch.

    Raises:
        ConfigurationError: If there is nothing to go back to.
        InputError: If objects cannot be embedded; nothing is switched.
        BackendError: If Weaviate or the model failed.
    """
    return _rollback(Calls(), collection, embedder, client, truncate, on_reject, on_progress)


async def arollback(
    collection: CollectionAsync[Any, Any],
    embedder: Embedder | None = None,
    *,
    client: WeaviateAsyncClient | None = None,
    truncate: Truncate = "NONE",
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> Migration:
    """Do what :func:`rollback` does, through Weaviate's async client."""
    calls = Calls(loop=asyncio.get_running_loop())
    same = same_methods(collection, embedder, client)
    job = functools.partial(_rollback, calls, *same, truncate, on_reject, on_progress)
    return await in_thread(job, calls)


def _rollback(
    calls: Calls,
    collection: Collection[Any, Any],
    embedder: Embedder | None,
    client: WeaviateClient | None,
    truncate: Truncate,
    on_reject: Callable[[Reject], None],
    on_progress: Callable[[JobReport], None],
) -> Migration:
    report = JobReport()
    with translate_errors(f"migrating the collection {collection.name}"):
        home, config = home_of(calls, client, collection)
        there = home.collection
        now, places = searched_vector(config)
        spec = contract_in(calls, there, config, now.name)
        at: dict[str, Any] = {"collection": there.name, "alias": home.alias}
        if places.next is not None or places.next_collection is not None:
            note_places(calls, there, replace(places, next=None, next_collection=None))
            return Migration(
                state="abandoned", vector=now.name, spec=spec, report=report, left=places.next,
                left_collection=places.next_collection, **at,
            )  # fmt: skip
        if places.previous is None and places.previous_collection is None:
            raise ConfigurationError(f"the collection {config.name} was not migrated")
        target, back_config = there, config
        if places.previous is None:
            target = _opened(client, str(places.previous_collection))
            back_config = calls(target.config.get)
        name = places.previous or places_of(back_config).searched
        back, _ = searched_vector(back_config, asked=name)
        spec = contract_in(calls, target, back_config, back.name)
        ours = spec is not None and back.module == "none"
        model = embedder
        if model is None and spec is not None and ours:
            model = nimbed.load(spec.model, revision=spec.revision)
        told: dict[str, Any] = {"truncate": truncate, "on_progress": on_progress}
        sources = sources_of(back_config, back, ours=spec is not None)
        if target is not there and client is not None:
            copy = CollectionCopy(
                calls, there, target, vector=back, spec=spec if ours else None, without=now,
                text=text_of(config, source_properties=sources),
            )  # fmt: skip
            fill: Callable[..., JobReport] = functools.partial(copy.copy, model, **told)
            report = filled(calls, fill, on_reject, there.name)
            report.removed, since = copy.remove_vanished(places.since)
            take_place(calls, client, home, target, vector=None, since=since)
        else:
            if model is not None and ours:
                fill = functools.partial(
                    fill_stored, calls, there, model,
                    vector=back.name, source_properties=sources, **told,
                )  # fmt: skip
                report = filled(calls, fill, on_reject, there.name)
            switched = replace(places, searched=back.name, previous=now.name)
            note_places(calls, there, switched)
    at["collection"] = target.name
    return Migration(state="rolled back", vector=back.name, spec=spec, report=report, **at)


def finish(collection: Collection[Any, Any], *, client: WeaviateClient | None = None) -> Migration:
    """Forget the old vector, or the old collection, after which there is no way back.

    Weaviate itself keeps it; from 1.37 on ``DELETE /v1/schema/NAME/vectors/OLD/index`` frees a
    vector's memory, and ``client.collections.delete(OLD)`` deletes a collection.

    Args:
        collection: The collection, old or new.
        client: The connected client, if there is a new collection.

    Raises:
        ConfigurationError: If no migration was switched.
    """
    return _finish(Calls(), collection, client)


async def afinish(
    collection: CollectionAsync[Any, Any], *, client: WeaviateAsyncClient | None = None
) -> Migration:
    """Do what :func:`finish` does, through Weaviate's async client."""
    calls = Calls(loop=asyncio.get_running_loop())
    same, _, known = same_methods(collection, None, client)
    return await in_thread(functools.partial(_finish, calls, same, known), calls)


def _finish(
    calls: Calls, collection: Collection[Any, Any], client: WeaviateClient | None
) -> Migration:
    with translate_errors(f"migrating the collection {collection.name}"):
        home, config = home_of(calls, client, collection)
        now, places = searched_vector(config)
        old = places.previous or places.previous_collection
        if places.next or places.next_collection or old is None:
            raise ConfigurationError(
                f"no migration of {config.name} is switched; there is nothing to finish"
            )
        kept = Places(searched=places.searched)
        if places.previous is not None:  # of a vector; what came before it is another matter
            kept = replace(places, previous=None)
        note_places(calls, home.collection, kept)
        spec = contract_in(calls, home.collection, config, now.name)
    return Migration(
        state="finished", collection=config.name, vector=now.name, spec=spec, report=JobReport(),
        left=places.previous, alias=home.alias,
        left_collection=None if places.previous else places.previous_collection,
    )  # fmt: skip


def _opened(client: WeaviateClient | None, name: str) -> Collection[Any, Any]:
    if client is None:
        raise ConfigurationError(
            f"the way back leads to the collection {name}; pass the client too: client=..."
        )
    return client.collections.get(name)
