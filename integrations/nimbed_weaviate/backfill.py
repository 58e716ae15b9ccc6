"""Vectors for objects that already lie in a collection, whoever stored them.

Each object is changed by a PATCH, which leaves its uuid, its properties and its other vectors as
they are. What a vector was made from is noted beside it, so that a second run embeds what is new
or changed, and nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from weaviate.classes.config import Configure, DataType
from weaviate.collections import Collection, CollectionAsync
from weaviate.exceptions import UnexpectedStatusCodeError
from weaviate.outputs.config import CollectionConfig

from nimbed import Embedder, EmbeddingBatch, stores
from nimbed.bulk import (
    JobReport,
    PassageBatch,
    StoreResult,
    ignore,
    listing,
    load_batches,
)
from nimbed.errors import ConfigurationError
from nimbed.kinds import EmbeddingKinds
from nimbed.rows import Reject, TextFields, text_fault
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal
from nimbed_weaviate.calls import RESTART_WAIT, Calls, in_thread
from nimbed_weaviate.collection_sink import refused
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.filled_vectors import (
    FilledVector,
    SpecOptions,
    embedding_vectors,
    fitting,
)
from nimbed_weaviate.importer import BATCH_ROWS
from nimbed_weaviate.indexes import index_for, vector_setups
from nimbed_weaviate.properties import (
    Digest,
    contract_of,
    digest,
    digest_properties,
    digest_property,
    seal,
    space_of,
)

if TYPE_CHECKING:
    from nimbed_weaviate.indexes import Index, Quantizer

__all__ = [
    "BackfillOptions",
    "abackfill",
    "add_vector",
    "aembed_stored",
    "backfill",
    "embed_stored",
    "fill_stored",
    "text_of",
]

# A PATCH changes one object; Weaviate takes so many beside each other.
_AT_ONCE = 16

_Stored = PassageBatch[bytes, Any]


class BackfillOptions(TypedDict, total=False):
    """What :func:`embed_stored` may be told, by name."""

    source_properties: Sequence[str]
    template: str | None
    embedding_type: EmbeddingType | None
    dimensions: int | None
    int8_scale: Int8Scale | None
    truncate: Truncate
    chunk_rows: int
    restart_wait: float
    on_wait: Callable[[str], None]
    rejects_file: str | os.PathLike[str] | None
    on_reject: Callable[[Reject], None]
    on_progress: Callable[[JobReport], None]


def embed_stored(
    collection: Collection[Any, Any],
    embedder: Embedder,
    *,
    vector: str,
    **options: Unpack[BackfillOptions],
) -> JobReport:
    r"""Embed the texts that objects of a collection hold, and store the vectors with them.

    Run again, it embeds objects that are new or whose text was changed. Objects whose text is
    blank are rejected, as Weaviate's modules leave them out.

    Args:
        collection: The collection; with its tenant, if it has tenants.
        embedder: Embeds the texts, as passages.
        vector: The name of the vector to fill, which may be a multi-vector; :func:`backfill` adds
            one of a vector a text first.
        **options: ``source_properties``: the properties whose texts are embedded, by default
            ``text``; several are joined as Weaviate's modules do, in the order of their names
            with a blank between. ``template``: joins them otherwise, such as
            ``"{title}\n\n{body}"``; a property that an object lacks is empty there. The others
            are those of :func:`nimbed_weaviate.batch_import`.

    Raises:
        SpaceMismatchError: If the vector holds those of another space.
        ConfigurationError: If the collection does not fit, or an option is out of range.
        BackendError: If Weaviate or the model failed; what is stored stays.
    """
    calls = _calls(options)
    return fill_stored(calls, collection, embedder, vector=vector, **options)


async def aembed_stored(
    collection: CollectionAsync[Any, Any],
    embedder: Embedder,
    *,
    vector: str,
    **options: Unpack[BackfillOptions],
) -> JobReport:
    """Do what :func:`embed_stored` does, through Weaviate's async client."""
    calls = _calls(options, asyncio.get_running_loop())
    same = cast("Collection[Any, Any]", collection)
    job = functools.partial(fill_stored, calls, same, embedder, vector=vector, **options)
    return await in_thread(job, calls)


def backfill(
    collection: Collection[Any, Any],
    embedder: Embedder,
    *,
    vector: str,
    index: Index = "hnsw",
    quantizer: Quantizer | None = None,
    **options: Unpack[BackfillOptions],
) -> JobReport:
    """Add a vector to a filled collection, and do what :func:`embed_stored` does.

    Needs Weaviate 1.31 or later, and a collection whose vectors have names. A vector of this name
    that is there already is filled as it is.

    Args:
        collection: The collection; with its tenant, if it has tenants.
        embedder: Embeds the texts, as passages.
        vector: The name of the new vector.
        index: Its index, as for :func:`nimbed_weaviate.self_provided`.
        quantizer: What compresses it, as for :func:`nimbed_weaviate.self_provided`.
        **options: Those of :func:`embed_stored`.

    Raises:
        ConfigurationError: If the server cannot add a vector; see also :func:`embed_stored`.
    """
    calls = _calls(options)
    add_vector(calls, collection, embedder, vector, index, quantizer, options)
    return fill_stored(calls, collection, embedder, vector=vector, **options)


async def abackfill(
    collection: CollectionAsync[Any, Any],
    embedder: Embedder,
    *,
    vector: str,
    index: Index = "hnsw",
    quantizer: Quantizer | None = None,
    **options: Unpack[BackfillOptions],
) -> JobReport:
    """Do what :func:`backfill` does, through Weaviate's async client."""
    calls = _calls(options, asyncio.get_running_loop())
    same = cast("Collection[Any, Any]", collection)

    def job() -> JobReport:
        add_vector(calls, same, embedder, vector, index, quantizer, options)
        return fill_stored(calls, same, embedder, vector=vector, **options)

    return await in_thread(job, calls)


def _calls(options: BackfillOptions, loop: asyncio.AbstractEventLoop | None = None) -> Calls:
    budget, tell = options.get("restart_wait", RESTART_WAIT), options.get("on_wait", ignore)
    return Calls(budget=budget, tell=tell, loop=loop)


def add_vector(
    calls: Calls,
    collection: Collection[Any, Any],
    embedder: Embedder,
    vector: str,
    index: Index,
    quantizer: Quantizer | None,
    options: BackfillOptions,
) -> None:
    """Add a vector to a collection, unless it has one of this name; see :func:`backfill`."""
    with translate_errors(f"adding the vector {vector!r} to the collection {collection.name}"):
        config = calls(collection.config.get)
        if vector in (config.vector_config or {}):
            return
        if not config.vector_config:
            raise ConfigurationError(
                f"the single vector of the collection {collection.name} has no name, and Weaviate "
                f"adds others to named ones alone; make a new collection and copy the objects"
            )
        spec = embedder.spec(
            embedding_type=options.get("embedding_type") or "float",
            dimensions=options.get("dimensions"),
            int8_scale=options.get("int8_scale"),
        )
        chosen = index_for(spec, index=index, quantizer=quantizer)
        made = Configure.Vectors.self_provided(name=vector, vector_index_config=chosen)
        try:
            calls(lambda: collection.config.add_vector(vector_config=made))
        except UnexpectedStatusCodeError as error:
            if error.status_code != 422 or "CONFIG_NOT_ALLOWED" in error.message:
                raise
            raise ConfigurationError(
                f"Weaviate does not add the vector {vector!r} to {collection.name}, which takes "
                f"1.31 or later; make a new collection with both vectors and import into it "
                f"({error.message})"
            ) from error


def fill_stored(
    calls: Calls,
    collection: Collection[Any, Any],
    embedder: Embedder,
    *,
    vector: str,
    source_properties: Sequence[str] = ("text",),
    template: str | None = None,
    embedding_type: EmbeddingType | None = None,
    dimensions: int | None = None,
    int8_scale: Int8Scale | None = None,
    truncate: Truncate = "NONE",
    chunk_rows: int = BATCH_ROWS,
    restart_wait: float = RESTART_WAIT,
    on_wait: Callable[[str], None] = ignore,
    rejects_file: str | os.PathLike[str] | None = None,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> JobReport:
    """Do what :func:`embed_stored` does, by calls of either client."""
    del restart_wait, on_wait  # the calls have them
    check_literal("truncate", truncate, Truncate)
    if chunk_rows < 1:
        raise ConfigurationError(f"chunk_rows must be at least 1; got {chunk_rows}")
    doing = (
        f"embedding the objects of {collection.name} (what is stored stays; run it again for "
        f"the rest)"
    )
    with listing(rejects_file, on_reject) as tell, translate_errors(doing):
        config = calls(collection.config.get)
        known = digest_properties(calls, collection, config)
        text = _fields_of(config, source_properties, template)
        asked = SpecOptions(embedding_type, dimensions, int8_scale)
        setup, spec = fitting(
            vector_setups(config), vector, collection.name,
            lambda it: asked.spec_for(
                embedder, contract_of(config, known.get(it.name, "")), it.multi
            ),
        )  # fmt: skip
        own = known.get(setup.name, digest_property(setup.name))
        seal(calls, collection, config, spec, own)
        others = [name for name in known.values() if name != own]
        filled = FilledVector(setup.name, spec, own)
        sink = _StoredSink(calls, collection, filled)
        embed = embedding_vectors(embedder, filled, None, truncate=truncate)
        before = calls.interruptions
        report = load_batches(
            sink.read(text, others, chunk_rows),
            sink,
            embed,
            on_reject=tell,
            on_progress=on_progress,
        )
        while calls.interruptions > before:
            # A server that was killed may have lost the last of what it had acknowledged.
            before = calls.interruptions
            load_batches(sink.read(text, others, chunk_rows), sink, embed)
        return report


def _text_of(fields: TextFields, properties: Mapping[str, Any]) -> str:
    """Return the text of an object's properties, lists joined by blanks."""
    values = {name: _values(properties.get(name)) for name in fields.names}
    if fields.template is None:
        # As text2vec-* does: a module's vectors and these are then of the same texts.
        return " ".join(itertools.chain.from_iterable(values[name] for name in sorted(values)))
    return str(fields.text({name: " ".join(each) for name, each in values.items()}))


def _values(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _fields_of(config: CollectionConfig, names: Sequence[str], template: str | None) -> TextFields:
    """Return what texts are made of, once it is clear that the collection has it.

    Raises:
        ConfigurationError: If a property is unknown or no text, or the template is none.
    """
    if isinstance(names, str) or not names:
        raise ConfigurationError("source_properties must be a list of at least one property's name")
    fields = TextFields.of(names, template)
    if template is not None and list(names) != ["text"] and set(fields.names) != set(names):
        raise ConfigurationError(
            f"the template names {', '.join(fields.names)}, and source_properties "
            f"{', '.join(names)}; leave source_properties out"
        )
    kinds = {each.name: each.data_type for each in config.properties}
    texts = [name for name, kind in kinds.items() if kind in (DataType.TEXT, DataType.TEXT_ARRAY)]
    for name in fields.names:
        if name not in texts:
            what = "is no text" if name in kinds else "is unknown"
            raise ConfigurationError(
                f"the property {name!r} of the collection {config.name} {what}; its texts are "
                f"{', '.join(map(repr, texts)) or 'none'}"
            )
    return fields


def text_of(
    config: CollectionConfig,
    *,
    source_properties: Sequence[str] = ("text",),
    template: str | None = None,
) -> Callable[[Mapping[str, Any]], str]:
    """Return a function from an object's properties to the text that :func:`embed_stored` embeds.

    Raises:
        ConfigurationError: If a property is unknown or no text, or the template is none.
    """
    return functools.partial(_text_of, _fields_of(config, source_properties, template))


class _StoredSink:
    """Objects of a collection, read page by page, as the store of their own vectors."""

    def __init__(
        self,
        calls: Calls,
        collection: Collection[Any, Any],
        vector: FilledVector,
    ) -> None:
        self._calls = calls
        self._collection = collection
        self._field = stores.field(vector.spec, "weaviate")
        self._space = space_of(vector.spec)
        self._vector = vector.name
        self._digests = vector.digests
        self._known: dict[str, bytes] = {}

    def read(
        self, text: TextFields, others: Sequence[str], rows: int
    ) -> Iterator[tuple[_Stored, list[Reject]]]:
        """Yield the objects in the order of their uuids."""
        names = [*text.names, self._digests, *others]
        after, numbers = None, itertools.count(1)
        while True:
            fetch = functools.partial(
                self._collection.query.fetch_objects,
                limit=rows,
                after=after,
                return_properties=names,
            )
            page = self._calls(fetch).objects
            if not page:
                return
            after = page[-1].uuid
            made: _Stored = PassageBatch()
            rejects: list[Reject] = []
            for each in page:
                number, uuid = next(numbers), str(each.uuid)
                found = _text_of(text, each.properties)
                fault = text_fault(found)
                if fault:
                    rejects.append(Reject(number, uuid, fault))
                    continue
                there = Digest.parse(each.properties.get(self._digests))
                rest = (Digest.parse(each.properties.get(name)).row for name in others)
                made.numbers.append(number)
                made.ids.append(uuid)
                made.texts.append(found)
                # Which row an import made the object of stays known, as long as its text does.
                made.metadata.append(there.row or next(filter(None, rest), b""))
                made.digests.append(digest(found.encode(), self._space))
                if there.text:
                    self._known[uuid] = there.text
            yield made, rejects

    def encode(self, batch: EmbeddingBatch | EmbeddingKinds) -> list[Any]:
        """Return the vectors in the form that Weaviate compares."""
        given = batch if isinstance(batch, EmbeddingBatch) else batch.multi
        assert given is not None
        return cast("list[Any]", self._field.encode(given))

    def look_up(self, passages: _Stored) -> Mapping[str, bytes]:
        """Return the digests that came with the objects."""
        found = {name: self._known.pop(name, None) for name in passages.ids}
        return {name: value for name, value in found.items() if value is not None}

    def storing(self, passages: _Stored, *, replace: bool) -> Callable[[], StoreResult]:
        """Return a function that stores the vectors of passages."""
        del replace  # a PATCH does either
        return functools.partial(self._store, passages)

    def finish(self) -> None:
        """Do nothing: what Weaviate took, it keeps."""

    def _store(self, passages: _Stored) -> StoreResult:
        vectors = cast("list[Any]", passages.vectors)
        parts = zip(passages.ids, passages.metadata, passages.digests, vectors, strict=True)
        patches = [
            functools.partial(
                self._collection.data.update,
                name,
                properties={self._digests: Digest(text, row).value.hex()},
                vector={self._vector: vector} if self._vector else vector,
            )
            for name, row, text, vector in parts
        ]
        faults = self._calls.together(patches, _AT_ONCE, UnexpectedStatusCodeError)
        said = {
            place: "it was deleted meanwhile" if fault.status_code == 404 else str(fault)
            for place, fault in faults.items()
        }
        return StoreResult(stored=len(passages) - len(said), refused=refused(passages, said))
