"""A collection as the store of a bulk import: objects looked up, sent, and sent again if lost."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter
from weaviate.collections import Collection
from weaviate.exceptions import WeaviateInsertManyAllFailedError

from nimbed import EmbeddingBatch, stores
from nimbed.bulk import PassageBatch, StoreResult
from nimbed.errors import BackendError
from nimbed.kinds import EmbeddingKinds
from nimbed.rows import Reject
from nimbed_weaviate.calls import Calls
from nimbed_weaviate.filled_vectors import FilledVector
from nimbed_weaviate.properties import ID, Digest, digest, encoded_row, object_uuid, space_of

__all__ = [
    "AT_ONCE",
    "MESSAGE_BYTES",
    "CollectionSink",
    "Content",
    "Passages",
    "messages",
    "refused",
]

#: Batches that are stored beside each other: the client makes one while Weaviate stores another.
AT_ONCE = 2
#: Older servers take 10 MB a message; vectors and the wire's own bytes come on top.
MESSAGE_BYTES = 4 * 2**20
# A server that is killed loses about a second of what it had acknowledged.
_REMEMBERED_NUMBERS = 4 * 2**20


class Sized(Protocol):
    """What has a size in bytes."""

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        ...


# The digests of an object's other vectors, by property, and these vectors.
_Kept = tuple[Mapping[str, Any], Mapping[str, Any]]
_NOTHING: _Kept = MappingProxyType({}), MappingProxyType({})

C = TypeVar("C", bound=Sized)
V = TypeVar("V")


class Content(NamedTuple):
    """What is stored of a row beside its vector.

    Attributes:
        properties: The properties, without those that nimbed adds.
        size: About how many bytes they take.
    """

    properties: Mapping[str, Any]
    size: int


#: Rows with what Weaviate compares: a list of numbers, lists of a multi-vector, or a pair.
Passages = PassageBatch[Content, Any]


class CollectionSink:
    """A collection as the store of a bulk job.

    One object carries its text, its vector and its digest, so nothing can be half there. An
    object that is stored again is a new one to Weaviate, so its other vectors and their digests
    are read before, and sent along.

    Args:
        calls: Makes the calls.
        collection: The collection, of either client.
        vector: The vector to fill.
        also: A multi-vector to fill beside it; None for none.
        others: The other vectors that no module makes, and the properties with their digests;
            empty for a vector that has none.
        begun: Whether an object may have the vector already. Where none has, all have to be
            stored, and what is there of an object is read once, before it is.

    Attributes:
        vector: The vector to fill.
        also: A multi-vector that is filled beside it.
        was_empty: Whether the collection held nothing at first.
    """

    def __init__(
        self,
        calls: Calls,
        collection: Collection[Any, Any],
        vector: FilledVector,
        also: FilledVector | None = None,
        *,
        others: Mapping[str, str] = MappingProxyType({}),
        begun: bool = True,
    ) -> None:
        self._calls = calls
        self._collection = collection
        self.vector, self.also = vector, also
        self._field = stores.field(vector.spec, "weaviate")
        self._space = space_of(vector.spec)
        self._vector = vector.name
        self._digests = vector.digests
        self._also_field = None if also is None else stores.field(also.spec, "weaviate")
        self._also_space = b"" if also is None else space_of(also.spec)
        self._others = others
        # An empty collection needs no look-up.
        fetch = functools.partial(collection.query.fetch_objects, limit=1, return_properties=[])
        self.was_empty = not calls(fetch).objects
        self._looks_up = not self.was_empty and (begun or not others)
        self._took_any = False
        # Ids of objects that have other vectors, from the look-up until they are stored.
        self._there: set[str] = set()
        self._recent: deque[Passages] = deque()
        self._interruptions = calls.interruptions
        self._lock = threading.Lock()  # of what two batches at once remember

    def encode(self, batch: EmbeddingBatch | EmbeddingKinds) -> list[Any]:
        """Return the vectors in the form that Weaviate compares, pairs where there are two."""
        if isinstance(batch, EmbeddingBatch):
            return cast("list[Any]", self._field.encode(batch))
        assert batch.multi is not None
        if batch.dense is None or self._also_field is None:
            return cast("list[Any]", self._field.encode(batch.multi))
        pair: Any = (self._field.encode(batch.dense), self._also_field.encode(batch.multi))
        return list(zip(*pair, strict=True))

    def _also_digest(self, text: str, row: bytes) -> str:
        return Digest(digest(text.encode(), self._also_space), row).value.hex()

    def look_up(self, passages: Passages) -> Mapping[str, bytes]:
        """Return the digests of those passages whose objects the collection holds."""
        return self._digests_of(passages) if self._looks_up and passages else {}

    def _digests_of(self, passages: Passages) -> dict[str, bytes]:
        places = {object_uuid(name): place for place, name in enumerate(passages.ids)}
        others = [name for name in self._others.values() if name]
        also = [] if self.also is None else [self.also.digests]
        known: dict[str, bytes] = {}
        for each in self._fetched(list(places), [self._digests, *also, *others]):
            place = places[str(each.uuid)]
            name, wanted = passages.ids[place], passages.digests[place]
            stored = Digest.parse(each.properties.get(self._digests))
            same = stored.value == wanted
            if stored.text and not stored.row:  # earlier versions made one digest of the row
                encoded = encoded_row(passages.metadata[place].properties)
                same = same or stored.text == digest(encoded, self._space)
            row = Digest.of(wanted).row
            if same and self.also is not None:
                same = each.properties.get(self.also.digests) == self._also_digest(
                    passages.texts[place], row
                )
                if not same:
                    continue  # the same row, which has only to get the second vector
            self._took_any |= same
            if self._others and not same:
                self._there.add(name)
            rows = (Digest.parse(each.properties.get(other)).row for other in others)
            if not stored.text and row in rows:
                continue  # the same row, which only has to get this vector
            known[name] = wanted if same else stored.value
        return known

    def storing(self, passages: Passages, *, replace: bool) -> Callable[[], StoreResult]:
        """Return a function that stores passages, replacing those that are there."""
        del replace  # an object of the same uuid is replaced anyway
        return functools.partial(self._store, passages)

    def finish(self) -> None:
        """Do nothing: what Weaviate took, it keeps."""

    def _store(self, passages: Passages) -> StoreResult:
        """Store passages in messages of a few megabytes.

        Raises:
            BackendError: If nothing was ever stored, and nothing of the first message was.
            weaviate.exceptions.WeaviateBaseError: If Weaviate was not reached; any part may be
                there.
        """
        refused_rows: list[Reject] = []
        replaced = 0
        for message in messages(passages):
            # Before it is sent: else it would be missed if Weaviate went away with it.
            self._remember(message)
            left_out, changed = self._sent(message, told=self._looks_up or self.was_empty)
            replaced += changed
            if len(left_out) == len(message) > 1 and not self._took_any:
                raise BackendError(
                    f"{self._collection.name} took none of the first {len(message)} rows: "
                    f"{left_out[0].reason}"
                )
            self._took_any |= len(left_out) < len(message)
            refused_rows += left_out
        self._restore()
        return StoreResult(
            stored=len(passages) - len(refused_rows), replaced=replaced, refused=refused_rows
        )

    def _remember(self, passages: Passages) -> None:
        with self._lock:
            self._recent.append(passages)
            numbers = [len(each) * _numbers((each.vectors or [[]])[0]) for each in self._recent]
            while len(numbers) > AT_ONCE and sum(numbers) > _REMEMBERED_NUMBERS:
                del numbers[0]
                self._recent.popleft()

    def _restore(self) -> None:
        """Store again what Weaviate had acknowledged and lost, if it went away."""
        with self._lock:
            if self._calls.interruptions == self._interruptions:
                return
            self._interruptions = self._calls.interruptions
            recent = list(self._recent)
        for passages in recent:
            known = self._digests_of(passages)
            pairs = enumerate(zip(passages.ids, passages.digests, strict=True))
            lost = [place for place, (name, digest) in pairs if known.get(name) != digest]
            if lost:
                # What the look-up told may be used up by the batch itself, if it is under way.
                self._sent(passages.select(lost), told=False)

    def _sent(self, passages: Passages, *, told: bool) -> tuple[list[Reject], int]:
        """Send one message.

        Args:
            passages: What it holds.
            told: Whether a look-up told which objects have other vectors; else all are looked at.

        Returns:
            What Weaviate refused, and how many objects had other content that no look-up told.
        """
        uuids = list(map(object_uuid, passages.ids))
        kept, replaced = self._kept(passages, uuids, told=told)
        objects = self._objects(passages, uuids, kept)
        try:
            errors = self._calls(lambda: self._collection.data.insert_many(objects)).errors
            said = {place: error.message for place, error in sorted(errors.items())}
        except WeaviateInsertManyAllFailedError as error:
            # The client tells which reasons there are, not which is whose.
            said = dict.fromkeys(range(len(passages)), error.message)
        return refused(passages, said), replaced

    def _objects(
        self, passages: Passages, uuids: Sequence[str], kept: Mapping[str, _Kept]
    ) -> list[DataObject[Any, Any]]:
        vectors = cast("list[Any]", passages.vectors)
        rows = zip(uuids, passages.ids, passages.metadata, passages.digests, vectors, strict=True)
        texts = iter(passages.texts)
        objects: list[DataObject[Any, Any]] = []
        for uuid, name, content, made, vector in rows:
            said, others = kept.get(uuid, _NOTHING)
            properties = {**said, **content.properties, ID: name, self._digests: made.hex()}
            if self.also is not None:
                vector, tokens = vector
                others = {**others, self.also.name: tokens}
                row = Digest.of(made).row
                properties[self.also.digests] = self._also_digest(next(texts), row)
            if self._vector:
                vector = {**others, self._vector: vector}
            objects.append(DataObject(uuid=uuid, properties=properties, vector=vector))
        return objects

    def _kept(
        self, passages: Passages, uuids: Sequence[str], *, told: bool
    ) -> tuple[dict[str, _Kept], int]:
        """Return what objects keep, by uuid, and how many have other content, if none was told."""
        if told:
            there = self._there.intersection(passages.ids)
            self._there.difference_update(there)
            names = zip(passages.ids, uuids, strict=True)
            uuids = [uuid for name, uuid in names if name in there]
        if not uuids or not self._others:
            return {}, 0
        digests = [self._digests, *filter(None, self._others.values())]
        kept: dict[str, _Kept] = {
            str(each.uuid): (
                {name: value for name, value in each.properties.items() if value is not None},
                {name: each.vector[name] for name in self._others if each.vector.get(name)},
            )
            for each in self._fetched(uuids, digests, vectors=list(self._others))
        }
        if told:
            return kept, 0
        rows = zip(uuids, passages.digests, strict=True)
        found = ((kept[uuid][0], Digest.of(made).row) for uuid, made in rows if uuid in kept)
        return kept, sum(
            all(Digest.parse(value).row != row for value in said.values()) for said, row in found
        )

    def _fetched(
        self, uuids: Sequence[str], properties: Sequence[str], vectors: Sequence[str] = ()
    ) -> list[Any]:
        return self._calls(
            lambda: self._collection.query.fetch_objects(
                filters=Filter.by_id().contains_any(list(uuids)),
                limit=len(uuids),
                return_properties=list(properties),
                include_vector=list(vectors) or False,
            )
        ).objects


def refused(passages: PassageBatch[Any, Any], said: Mapping[int, str]) -> list[Reject]:
    """Return what Weaviate refused, with its words."""
    return [
        Reject(
            passages.numbers[place],
            passages.ids[place],
            f"Weaviate refused it: {' '.join(reason.split())}",
        )
        for place, reason in said.items()
    ]


def _numbers(vector: Any) -> int:
    """Return how many numbers a row's vectors have."""
    if isinstance(vector, tuple):
        return sum(map(_numbers, vector))
    return sum(map(len, vector)) if vector and isinstance(vector[0], list) else len(vector or ())


def messages(passages: PassageBatch[C, V]) -> Iterator[PassageBatch[C, V]]:
    """Yield passages in as few parts as a message's size allows.

    A vector a text comes on top; multi-vectors, often larger than their text, are counted.
    """
    start = size = 0
    vectors = passages.vectors or []
    first: Any = vectors[0] if vectors else None
    counted = bool(first) and isinstance(first[0], list)
    for place, content in enumerate(passages.metadata):
        more = content.size + (4 * _numbers(vectors[place]) if counted else 0)
        if size + more > MESSAGE_BYTES and place > start:
            yield passages.select(range(start, place))
            start, size = place, 0
        size += more
    yield passages if start == 0 else passages.select(range(start, len(passages)))
