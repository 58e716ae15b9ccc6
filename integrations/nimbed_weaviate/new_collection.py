"""Migration of a collection into a new one, where no vector can be added to it.

Weaviate before 1.31 adds no vector to a collection, later ones none to a vector without a name. A
new collection takes its place then: the objects are copied, each with its uuid, its properties and
its other vectors, and the texts are embedded anew. An alias is made to lead to it; otherwise the
old collection says in the description of ``nimbed_id`` which one took its place.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from weaviate import WeaviateAsyncClient, WeaviateClient
from weaviate.classes.config import DataType
from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter, MetadataQuery
from weaviate.collections import Collection, CollectionAsync
from weaviate.exceptions import WeaviateInsertManyAllFailedError
from weaviate.outputs.config import CollectionConfig

from nimbed import Embedder, EmbeddingBatch, VectorSpec, stores
from nimbed.bulk import JobReport, PassageBatch, StoreResult, embedding_passages, load_batches
from nimbed.errors import ConfigurationError
from nimbed.rows import BLANK, Reject, text_fault
from nimbed.spec import Truncate
from nimbed_weaviate.calls import Calls, in_thread
from nimbed_weaviate.collection_sink import messages, refused
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.indexes import VectorSetup, index_json, vector_setups
from nimbed_weaviate.properties import (
    ID,
    Digest,
    Places,
    digest,
    digest_properties,
    digest_property,
    note_places,
    places_of,
    seal,
    space_of,
)

__all__ = [
    "CollectionCopy",
    "Home",
    "acurrent_collection",
    "current_collection",
    "find_home",
    "make_collection",
    "new_name",
    "require_copyable",
    "server_version",
    "take_place",
]

# Objects that are copied, looked for or deleted by one request.
_PAGE = 256
_TIME = MetadataQuery(last_update_time=True)
_NOT_COPIED = (DataType.BLOB, DataType.PHONE_NUMBER)


@dataclass(frozen=True, slots=True)
class Home:
    """Where the objects of a name are.

    Attributes:
        collection: The collection.
        alias: The name, if it is an alias of the collection.
    """

    collection: Collection[Any, Any]
    alias: str | None


def current_collection(client: WeaviateClient, name: str) -> Collection[Any, Any]:
    """Return the collection that a name stands for now.

    A name may be an alias (Weaviate 1.32), or that of a collection whose place another one took by
    :func:`nimbed_weaviate.migrate`.

    Args:
        client: A connected client.
        name: The name.

    Raises:
        BackendError: If Weaviate cannot be read.
    """
    with translate_errors(f"looking for the collection {name}"):
        return find_home(Calls(budget=0), client, name).collection


async def acurrent_collection(client: WeaviateAsyncClient, name: str) -> CollectionAsync[Any, Any]:
    """Do what :func:`current_collection` does, through Weaviate's async client."""
    calls = Calls(budget=0, loop=asyncio.get_running_loop())
    # The same methods; what they return is awaited where the calls are made.
    with translate_errors(f"looking for the collection {name}"):
        job = functools.partial(find_home, calls, cast(WeaviateClient, client), name)
        home = await in_thread(job, calls)
    return cast("CollectionAsync[Any, Any]", home.collection)


def find_home(calls: Calls, client: WeaviateClient, name: str) -> Home:
    """Return where the objects of a name are, by its alias and by what migrations have noted."""
    alias = None
    if server_version(calls, client) >= (1, 32):
        found = calls(lambda: client.alias.get(alias_name=name))
        if found is not None:
            alias, name = name, found.collection
    seen: set[str] = set()
    while name not in seen and calls(functools.partial(client.collections.exists, name)):
        seen.add(name)
        config = calls(client.collections.get(name).config.get)
        name = places_of(config).collection or name
    return Home(client.collections.get(name), alias)


def server_version(calls: Calls, client: WeaviateClient) -> tuple[int, int]:
    """Return the first two numbers of Weaviate's version."""
    parts = re.findall(r"\d+", str(calls(client.get_meta)["version"]))
    return int(parts[0]), int(parts[1])


def new_name(calls: Calls, client: WeaviateClient, name: str) -> str:
    """Return a name that no collection has, made of another: ``Docs_2`` for ``Docs``."""
    base = re.sub(r"_\d+$", "", name)
    taken = set(calls(client.collections.list_all))
    number = 2
    while f"{base}_{number}" in taken:
        number += 1
    return f"{base}_{number}"


def make_collection(
    calls: Calls,
    client: WeaviateClient,
    config: CollectionConfig,
    name: str,
    *,
    without: VectorSetup,
    vector: str,
    index: Any,
) -> Collection[Any, Any]:
    """Make a collection like another one, with one vector instead of one of its own.

    One that an earlier run made is taken as it is.

    Args:
        calls: Makes the calls.
        client: A connected client.
        config: That of the other collection.
        name: The new collection's name.
        without: The vector that it does not get.
        vector: The vector that it gets.
        index: That vector's index, as :func:`nimbed_weaviate.indexes.index_for` gives it.
    """
    if calls(lambda: client.collections.exists(name)):
        return client.collections.get(name)
    given = config.to_dict()
    for key in ("vectorizer", "vectorIndexType", "vectorIndexConfig"):
        given.pop(key, None)
    given["class"] = name
    given["vectorConfig"] = {
        **{each: it for each, it in given.get("vectorConfig", {}).items() if each != without.name},
        vector: {
            "vectorizer": {"none": {}},
            "vectorIndexType": index.vector_index_type().value,
            "vectorIndexConfig": index_json(index),
        },
    }
    modules = {next(iter(each["vectorizer"])) for each in given["vectorConfig"].values()} - {"none"}
    settings = given.get("moduleConfig", {})
    given["moduleConfig"] = {each: it for each, it in settings.items() if each != without.module}
    digests = digest_properties(calls, client.collections.get(config.name), config)
    kept: list[dict[str, Any]] = []
    for each in given["properties"]:
        if each["name"] == digests.get(without.name):
            continue
        options = {key: it for key, it in each.pop("moduleConfig", {}).items() if key in modules}
        if each["name"] == ID:
            each["description"] = Places(
                searched=vector, previous_collection=config.name
            ).description
        kept.append({**each, "moduleConfig": options} if options else each)
    given["properties"] = kept
    calls(lambda: client.collections.create_from_dict(given))
    return client.collections.get(name)


def require_copyable(
    calls: Calls, client: WeaviateClient, config: CollectionConfig, name: str
) -> None:
    """Raise a ConfigurationError if a collection cannot be copied into one of a name."""
    cure = "add a named vector instead (Weaviate 1.31), or copy the objects yourself"
    if config.multi_tenancy_config.enabled:
        raise ConfigurationError(f"{config.name} has tenants, which are not copied; {cure}")
    names = [each.name for each in config.properties if each.data_type in _NOT_COPIED]
    names += [each.name for each in config.references]
    if names:
        raise ConfigurationError(
            f"{config.name} has properties that are not copied, references, blobs or telephone "
            f"numbers: {', '.join(names)}; {cure}"
        )
    if calls(lambda: client.collections.exists(name)):
        raise ConfigurationError(
            f"there is a collection {name} already; name another one for the new vectors"
        )


def take_place(
    calls: Calls,
    client: WeaviateClient,
    home: Home,
    new: Collection[Any, Any],
    *,
    vector: str | None,
    since: int | None,
) -> None:
    """Let a collection take another one's place, which may take it back later.

    Args:
        calls: Makes the calls.
        client: A connected client.
        home: The collection whose place is taken, and the alias that leads to it.
        new: The collection that takes it.
        vector: The vector that is searched there; None as it has it.
        since: When its last object was stored; see :class:`Places`.
    """
    old = home.collection
    now = places_of(calls(new.config.get))
    note_places(calls, new, replace(
        now, searched=vector or now.searched, collection=None, previous_collection=old.name,
        since=since,
    ))  # fmt: skip
    if home.alias is not None:
        name = home.alias
        calls(lambda: client.alias.update(alias_name=name, new_target_collection=new.name))
    places = places_of(calls(old.config.get))
    note_places(calls, old, replace(
        places, collection=new.name, next_collection=None, previous_collection=None, since=None
    ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Content:
    """What is stored of an object beside the new vector."""

    properties: Mapping[str, Any]
    vectors: Mapping[str, Any]
    row: bytes
    size: int


_Copies = PassageBatch[_Content, list[float] | None]


class CollectionCopy:
    """Objects of a collection, copied into another one that has another vector.

    Args:
        calls: Makes the calls.
        source: Where they are.
        target: Where they go.
        vector: The target's vector that the source has not.
        spec: Its contract; None where a module makes it, or nobody knows.
        without: The source's vector that the target has not.
        text: Makes the text of an object's properties.
    """

    def __init__(
        self,
        calls: Calls,
        source: Collection[Any, Any],
        target: Collection[Any, Any],
        *,
        vector: VectorSetup,
        spec: VectorSpec | None,
        without: VectorSetup,
        text: Callable[[Mapping[str, Any]], str],
    ) -> None:
        self._calls, self._source, self._target = calls, source, target
        self._vector, self._text, self._spec = vector.name, text, spec
        self._module = vector.module
        self._field = None if spec is None else stores.field(spec, "weaviate")
        self._space = b"" if spec is None else space_of(spec)
        from_config, to_config = calls(source.config.get), calls(target.config.get)
        self._digests = digest_property(vector.name)
        if spec is not None:
            known = digest_properties(calls, target, to_config)
            self._digests = known.get(vector.name, self._digests)
            seal(calls, target, to_config, spec, self._digests)
        self._rows = list(digest_properties(calls, source, from_config).values())
        self._own = {self._digests, digest_properties(calls, source, from_config).get(without.name)}
        there = {each.name for each in vector_setups(from_config)} - {without.name}
        self._others = sorted(there)

    def copy(
        self,
        embedder: Embedder | None,
        *,
        truncate: Truncate,
        on_reject: Callable[[Reject], None],
        on_progress: Callable[[JobReport], None],
    ) -> JobReport:
        """Copy what is new or changed.

        Raises:
            BackendError: If Weaviate or the model failed; what is copied stays.
        """
        embed: Callable[[Sequence[str]], EmbeddingBatch] = _unknown
        if self._spec is not None and embedder is not None:
            embed = embedding_passages(embedder, self._spec, truncate=truncate)
        return load_batches(self._read(), self, embed, on_reject=on_reject, on_progress=on_progress)

    def remove_vanished(self, since: int | None) -> tuple[int, int]:
        """Delete objects of the target that the source has not.

        Args:
            since: Leave those alone that were stored later, which the source never had; None for
                none.

        Returns:
            How many, and when the last of the others was stored.
        """
        removed, last = 0, 0
        for page in _pages(self._calls, self._target, return_properties=[], return_metadata=_TIME):
            uuids = [each.uuid for each in page]
            found = self._fetched(self._source, uuids, return_properties=[])
            there = {each.uuid for each in found}
            times = {
                each.uuid: int(each.metadata.last_update_time.timestamp() * 1000) for each in page
            }
            gone = [
                each for each in uuids
                if each not in there and (since is None or times[each] <= since)
            ]  # fmt: skip
            if gone:
                delete = functools.partial(
                    self._target.data.delete_many, where=Filter.by_id().contains_any(gone)
                )
                removed += self._calls(delete).successful
            last = max([last, *(times[each] for each in uuids if each not in gone)])
        return removed, last

    def _read(self) -> Iterator[tuple[_Copies, list[Reject]]]:
        """Yield the objects page by page; those whose text is blank get no vector of ours."""
        number = 0
        for page in _pages(self._calls, self._source, include_vector=self._others or False):
            embedded: _Copies = PassageBatch()
            others: _Copies = PassageBatch(vectors=[])
            rejects: list[Reject] = []
            for each in page:
                number += 1
                uuid, text = str(each.uuid), self._text(each.properties)
                fault = text_fault(text)
                if fault not in (None, BLANK):
                    rejects.append(Reject(number, uuid, fault))
                    continue
                made = others if fault or self._module != "none" else embedded
                rows = (Digest.parse(each.properties.get(name)).row for name in self._rows)
                properties = self._kept(each.properties)
                made.numbers.append(number)
                made.ids.append(uuid)
                made.texts.append(text)
                made.metadata.append(
                    _Content(
                        properties,
                        {name: each.vector[name] for name in self._others if each.vector.get(name)},
                        next(filter(None, rows), b""),
                        len(json.dumps(properties, default=str)),
                    )
                )
                made.digests.append(digest(text.encode(), self._space))
                if made.vectors is not None:
                    made.vectors.append(None)
            yield embedded, rejects
            yield others, []

    def _kept(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in properties.items()
            if value is not None and name not in self._own
        }

    def encode(self, batch: EmbeddingBatch) -> list[list[float] | None]:
        """Return the vectors in the form that Weaviate compares."""
        assert self._field is not None
        return cast("list[list[float] | None]", self._field.encode(batch))

    def look_up(self, passages: _Copies) -> Mapping[str, bytes]:
        """Return the digests of the objects that are there; another one where they differ."""
        if not passages:
            return {}
        places = {name: place for place, name in enumerate(passages.ids)}
        known: dict[str, bytes] = {}
        for each in self._fetched(self._target, list(places)):
            name = str(each.uuid)
            place = places[name]
            same = self._kept(each.properties) == passages.metadata[place].properties
            if passages.vectors is None and self._spec is not None:  # its text is noted with it
                text = Digest.parse(each.properties.get(self._digests)).text
                same = same and text == passages.digests[place]
            known[name] = passages.digests[place] if same else b""
        return known

    def storing(self, passages: _Copies, *, replace: bool) -> Callable[[], StoreResult]:
        """Return a function that stores objects, replacing those that are there."""
        del replace  # an object of the same uuid is replaced anyway
        return functools.partial(self._store, passages)

    def finish(self) -> None:
        """Do nothing: what Weaviate took, it keeps."""

    def _store(self, passages: _Copies) -> StoreResult:
        left_out: list[Reject] = []
        for message in messages(passages):
            vectors = message.vectors or [None] * len(message)
            rows = zip(message.ids, message.metadata, message.digests, vectors, strict=True)
            objects: list[DataObject[Any, Any]] = []
            for uuid, content, text, vector in rows:
                properties, given = dict(content.properties), dict(content.vectors)
                if vector is not None:
                    properties[self._digests] = Digest(text, content.row).value.hex()
                    given[self._vector or "default"] = vector
                one = given.get("default") if not self._vector else given or None
                objects.append(DataObject(uuid=uuid, properties=properties, vector=one))
            insert = functools.partial(self._target.data.insert_many, objects)
            try:
                errors = self._calls(insert).errors
                said = {place: error.message for place, error in sorted(errors.items())}
            except WeaviateInsertManyAllFailedError as error:
                said = dict.fromkeys(range(len(message)), error.message)
            left_out += refused(message, said)
        return StoreResult(stored=len(passages) - len(left_out), refused=left_out)

    def _fetched(
        self, collection: Collection[Any, Any], uuids: Sequence[Any], **wanted: Any
    ) -> list[Any]:
        fetch = functools.partial(
            collection.query.fetch_objects,
            filters=Filter.by_id().contains_any(list(uuids)),
            limit=len(uuids),
            **wanted,
        )
        return self._calls(fetch).objects


def _pages(calls: Calls, collection: Collection[Any, Any], **wanted: Any) -> Iterator[list[Any]]:
    """Yield the objects of a collection in the order of their uuids."""
    after = None
    while True:
        fetch = functools.partial(
            collection.query.fetch_objects, limit=_PAGE, after=after, **wanted
        )
        page = calls(fetch).objects
        if not page:
            return
        after = page[-1].uuid
        yield page


def _unknown(texts: Sequence[str]) -> EmbeddingBatch:
    raise ConfigurationError(
        f"nobody wrote down which model made the old vectors, so that {len(texts)} objects that "
        f"were stored since cannot be embedded for them; delete these, or keep the new collection"
    )
