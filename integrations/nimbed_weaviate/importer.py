"""Import of rows into a collection, embedded in this process.

Killed at any moment and run again, nothing is lost, nothing is there twice, and what is there
with the same content is not embedded again.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypedDict, Unpack, cast

from weaviate.classes.query import Filter
from weaviate.collections import Collection, CollectionAsync
from weaviate.outputs.config import CollectionConfig

from nimbed import Embedder, VectorSpec
from nimbed.bulk import (
    InputIds,
    JobReport,
    ignore,
    listing,
    load_batches,
    read_batches,
)
from nimbed.chunks import CHUNK_FIELDS, Splitter, document_of, split_rows
from nimbed.errors import ConfigurationError
from nimbed.load import token_counter
from nimbed.rows import Item, Reject
from nimbed.spec import EmbeddingType, Int8Scale, TokenType, Truncate, check_literal
from nimbed_weaviate.calls import RESTART_WAIT, Calls, in_thread
from nimbed_weaviate.collection_sink import AT_ONCE, CollectionSink
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.filled_vectors import (
    FilledVector,
    SpecOptions,
    embedding_vectors,
    fitting,
    refuse_other_kind,
)
from nimbed_weaviate.indexes import vector_setups
from nimbed_weaviate.properties import (
    ID,
    StoredSpec,
    contract_of,
    digest_properties,
    digest_property,
    object_uuid,
    places_of,
    require_unmoved,
    seal,
    space_of,
)
from nimbed_weaviate.row_objects import Ready, prepare, ready_batches

__all__ = ["BATCH_ROWS", "ImportOptions", "abatch_import", "batch_import", "import_embedded"]

#: Rows that are embedded together and sent in one request, or in several if they are long.
BATCH_ROWS = 256
# Objects that are read at a time, and looked for or deleted by one request.
_PAGE = 1000
# Chunks of a document that are looked for beyond its end at a time, once there is one.
_STEP = 64


class ImportOptions(TypedDict, total=False):
    """What :func:`batch_import` may be told, by name.

    Attributes:
        vector: The vector's name, where there are several; it may be a multi-vector.
        multi_vector: A multi-vector to fill beside it, from the same run of the model.
        text_property: The property that takes the text, ``text`` if not given.
        embedding_type: None, the default, means: as the collection has it, or float.
        dimensions: None, the default, means: as the collection has it, or the model's full size.
        int8_scale: For int8 and uint8.
        token_type: Of a multi-vector, how a token's dimension is stored before Weaviate gets it as
            float; None, the default, means: as the collection has it, or float.
        pool_factor: Of a multi-vector, how many alike tokens share a vector on average; None, the
            default, means: as the collection has it, or 1.
        truncate: What happens to a text that is too long: NONE, the default, rejects it.
        source: Names rows that have no id, ``script`` if not given.
        metadata_fields: Other fields to keep; None, the default, keeps all.
        chunk_rows: Rows that are embedded together and sent in one request, :data:`BATCH_ROWS` if
            not given; long texts make it several requests.
        chunk_tokens: Split each text, a document now, into chunks of so many tokens at most; a
            chunk's id is the document's with ``#`` and its number, and its properties say where
            it lies. A document that changed replaces its chunks, and leaves none behind.
        overlap: Tokens of a chunk's end that the next one begins with, at most; none if not given.
        prune: Remove the objects of earlier imports whose rows are not in this input.
        rejects_file: Where the rows left out are listed, as JSON lines.
        on_reject: Told each row that cannot be stored, and why.
        on_progress: Told the report after each batch.
    """

    vector: str | None
    multi_vector: str | None
    text_property: str
    embedding_type: EmbeddingType | None
    dimensions: int | None
    int8_scale: Int8Scale | None
    token_type: TokenType | None
    pool_factor: int | None
    truncate: Truncate
    source: str
    metadata_fields: Sequence[str] | None
    chunk_rows: int
    chunk_tokens: int | None
    overlap: int
    prune: bool
    rejects_file: str | os.PathLike[str] | None
    on_reject: Callable[[Reject], None]
    on_progress: Callable[[JobReport], None]


def batch_import(
    collection: Collection[Any, Any],
    rows: Iterable[Item],
    embedder: Embedder,
    *,
    restart_wait: float = RESTART_WAIT,
    on_wait: Callable[[str], None] = ignore,
    **options: Unpack[ImportOptions],
) -> JobReport:
    """Embed rows and store them; those that are there with the same content are skipped.

    An object's uuid is made of its row's id (``weaviate.util.generate_uuid5(id)``), so a row
    replaces the object it was before; vectors of other names that no module makes stay, with
    their own digests, and so does the contract of each. The first import writes the contract of
    the vectors into the collection; later ones must keep to it. Two imports into one collection
    at once may undo single objects of each other, which the next run of either mends.

    A vector that belongs to a module may be filled too, by the model that its server has: seeding
    is then as fast as this machine embeds, and questions still go through the module.

    Args:
        collection: A collection made with :func:`nimbed_weaviate.self_provided`, or with
            :func:`nimbed_weaviate.vectorizer` to be seeded; with its tenant, if it has tenants.
        rows: (id, text), (id, text, metadata), or rows of :func:`nimbed.files.read_rows`.
        embedder: Embeds the texts, as passages.
        restart_wait: Seconds to wait for a Weaviate that goes away; 0 does not wait.
        on_wait: Told in a sentence that Weaviate is away, and that it is back.
        **options: Any of those that :class:`ImportOptions` describes.

    Raises:
        SpaceMismatchError: If the collection holds vectors of another space.
        ConfigurationError: If the collection does not fit, or an option is out of range.
        InputError: If ``prune`` cannot tell which rows are gone; nothing is removed then.
        BackendError: If Weaviate or the model failed, or Weaviate refused all that it was sent at
            first; what is stored stays.
    """
    calls = Calls(budget=restart_wait, tell=on_wait)
    return _import(calls, collection, rows, embedder, **options)


async def abatch_import(
    collection: CollectionAsync[Any, Any],
    rows: Iterable[Item],
    embedder: Embedder,
    *,
    restart_wait: float = RESTART_WAIT,
    on_wait: Callable[[str], None] = ignore,
    **options: Unpack[ImportOptions],
) -> JobReport:
    """Do what :func:`batch_import` does, through Weaviate's async client.

    Rows are read and embedded in a thread, and the loop stays free for other work. Cancelled, it
    stops with the next call; what is stored stays.
    """
    calls = Calls(budget=restart_wait, tell=on_wait, loop=asyncio.get_running_loop())
    # The same methods; what they return is awaited where the calls are made.
    same = cast("Collection[Any, Any]", collection)
    job = functools.partial(_import, calls, same, rows, embedder, **options)
    return await in_thread(job, calls)


def _import(
    calls: Calls,
    collection: Collection[Any, Any],
    rows: Iterable[Item],
    embedder: Embedder,
    *,
    vector: str | None = None,
    multi_vector: str | None = None,
    text_property: str = "text",
    embedding_type: EmbeddingType | None = None,
    dimensions: int | None = None,
    int8_scale: Int8Scale | None = None,
    token_type: TokenType | None = None,
    pool_factor: int | None = None,
    truncate: Truncate = "NONE",
    source: str = "script",
    metadata_fields: Sequence[str] | None = None,
    chunk_rows: int = BATCH_ROWS,
    chunk_tokens: int | None = None,
    overlap: int = 0,
    prune: bool = False,
    rejects_file: str | os.PathLike[str] | None = None,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> JobReport:
    check_literal("truncate", truncate, Truncate)
    if overlap and chunk_tokens is None:
        raise ConfigurationError("an overlap is one of chunks; give chunk_tokens too")
    if chunk_rows < 1:
        raise ConfigurationError(f"chunk_rows must be at least 1; got {chunk_rows}")

    asked = SpecOptions(embedding_type, dimensions, int8_scale, token_type, pool_factor)
    with listing(rejects_file, on_reject) as tell, _importing(collection):
        sink = _opened(
            calls, collection, (vector, multi_vector), functools.partial(asked.spec_for, embedder),
            chunked=chunk_tokens is not None,
        )  # fmt: skip
        kept = InputIds() if prune else None
        if kept is not None:
            tell = kept.noting(tell)
        ended: list[tuple[str, int]] = []
        if chunk_tokens is not None:
            splitter = Splitter(token_counter(embedder), tokens=chunk_tokens, overlap=overlap)
            rows = split_rows(rows, splitter, source=source, ended=lambda *each: ended.append(each))
            metadata_fields = metadata_fields and [*metadata_fields, *CHUNK_FIELDS]
        check = functools.partial(
            prepare,
            source=source,
            text_property=text_property,
            metadata_fields=metadata_fields,
            space=space_of(sink.vector.spec),
        )
        seen = None if kept is None else kept.seen
        report = load_batches(
            read_batches(rows, check, rows=chunk_rows, seen=seen),
            sink,
            embedding_vectors(embedder, sink.vector, sink.also, truncate=truncate),
            on_reject=tell,
            on_progress=on_progress,
            at_once=AT_ONCE,
        )
        if not sink.was_empty:
            report.removed += _trim(calls, collection, ended)
        if kept is not None:
            report.removed += _prune(calls, collection, kept)
        require_unmoved(calls(collection.config.get))  # else some rows may have come too late
        return report


def import_embedded(
    collection: Collection[Any, Any],
    parts: Iterable[Ready],
    spec: VectorSpec,
    *,
    vector: str | None = None,
    text_property: str = "text",
    source: str = "script",
    metadata_fields: Sequence[str] | None = None,
    chunk_rows: int = BATCH_ROWS,
    restart_wait: float = RESTART_WAIT,
    on_wait: Callable[[str], None] = ignore,
    rejects_file: str | os.PathLike[str] | None = None,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> JobReport:
    """Store rows whose vectors exist, such as :func:`nimbed.files.open_embedded` gives them.

    Args:
        collection: As for :func:`batch_import`, and so are the other options.
        parts: Rows and their batch of vectors.
        spec: The contract of the vectors that will come.
        vector: The vector's name, where there are several.
        text_property: The property that takes the text.
        source: Names rows that have no id.
        metadata_fields: Other fields to keep; None keeps all.
        chunk_rows: Rows that are sent in one request.
        restart_wait: Seconds to wait for a Weaviate that goes away; 0 does not wait.
        on_wait: Told in a sentence that Weaviate is away, and that it is back.
        rejects_file: Where the rows left out are listed, as JSON lines.
        on_reject: Told each row that cannot be stored, and why.
        on_progress: Told the report after each batch.

    Raises:
        SpaceMismatchError: If the collection, or a part, holds vectors of another space.
        ConfigurationError: If the collection does not fit, or an option is out of range.
        BackendError: If Weaviate failed; what is stored stays.
    """
    calls = Calls(budget=restart_wait, tell=on_wait)
    with listing(rejects_file, on_reject) as tell, _importing(collection):
        sink = _opened(
            calls, collection, (vector, None), lambda contract, multi: spec, chunked=False
        )
        check = functools.partial(
            prepare,
            source=source,
            text_property=text_property,
            metadata_fields=metadata_fields,
            space=space_of(sink.vector.spec),
        )
        return load_batches(
            ready_batches(parts, check, sink.encode, rows=chunk_rows),
            sink,
            None,
            on_reject=tell,
            on_progress=on_progress,
            at_once=AT_ONCE,
        )


def _importing(collection: Collection[Any, Any]) -> AbstractContextManager[None]:
    return translate_errors(
        f"importing into the collection {collection.name} (what is stored stays; run it again "
        f"for the rest)"
    )


def _opened(
    calls: Calls,
    collection: Collection[Any, Any],
    names: tuple[str | None, str | None],
    spec_of: Callable[[StoredSpec | None, bool], StoredSpec],
    *,
    chunked: bool,
) -> CollectionSink:
    """Return a collection as a store, which has the contract of what comes into it then.

    Args:
        calls: Makes the calls.
        collection: The collection.
        names: The vector to fill, None where there is one alone; and a multi-vector beside it.
        spec_of: Makes the contract of what will come, given the one that the vector has, and
            whether it is a multi-vector.
        chunked: Whether chunks of documents will come.

    Raises:
        ConfigurationError: If the collection does not fit.
        SpaceMismatchError: If it holds vectors of another space.
    """
    config = calls(collection.config.get)
    require_unmoved(config)
    known = digest_properties(calls, collection, config)
    setups = vector_setups(config)

    def filled(asked: str | None) -> FilledVector:
        setup, spec = fitting(
            setups, asked, collection.name,
            lambda it: spec_of(contract_of(config, known.get(it.name, "")), it.multi),
        )  # fmt: skip
        return FilledVector(setup.name, spec, known.get(setup.name, digest_property(setup.name)))

    vector = filled(names[0] or places_of(config).searched)
    also = None if names[1] is None else filled(names[1])
    refuse_other_kind(vector, also, collection.name)
    taken = {vector.name, *(() if also is None else (also.name,))}
    others = {
        each.name: known.get(each.name, "")
        for each in setups
        if each.module == "none" and each.name not in taken
    }
    begun = vector.name in known
    sink = CollectionSink(calls, collection, vector, also, others=others, begun=begun)
    if not sink.was_empty:
        _require_kind(config, chunked=chunked)
    for each in (vector, also):
        if each is not None:
            config = seal(calls, collection, config, each.spec, each.digests)
    return sink


def _require_kind(config: CollectionConfig, *, chunked: bool) -> None:
    """Make sure that chunks and whole texts do not meet: their ids are of two kinds."""
    there = {each.name for each in config.properties}
    if ID in there and chunked != (CHUNK_FIELDS[0] in there):
        has, comes = ("whole texts", "chunks") if chunked else ("chunks", "whole texts")
        raise ConfigurationError(
            f"the collection {config.name} holds {has}, and {comes} beside them would be found "
            f"twice; import into another collection"
        )


def _prune(calls: Calls, collection: Any, kept: InputIds) -> int:
    """Delete the objects of imports that the input has not; return how many.

    Raises:
        InputError: If there was no row, or one whose id could not be read.
    """
    kept.require_all()
    return sum(
        _delete(calls, collection, kept.vanished(names)) for names in _imported(calls, collection)
    )


def _trim(calls: Calls, collection: Any, documents: Sequence[tuple[str, int]]) -> int:
    """Delete the chunks that documents have beyond their number of chunks; return how many.

    A document's chunks are numbered from 0 without a gap, ``7#0``, ``7#1``, …: where the first
    one beyond its end is absent, so are all that would follow it.
    """
    beyond, step, removed = dict(documents), 1, 0
    while beyond:
        names = [f"{name}#{n + more}" for name, n in beyond.items() for more in range(step)]
        gone = [
            name
            for start in range(0, len(names), _PAGE)
            for name in _there(calls, collection, names[start : start + _PAGE])
        ]
        removed += _delete(calls, collection, gone)
        left = set(map(document_of, gone))
        beyond = {name: n + step for name, n in beyond.items() if name in left}
        step = _STEP
    return removed


def _imported(calls: Calls, collection: Any) -> Iterator[list[str]]:
    """Yield the ids of the objects that imports made, page by page."""
    after = None
    while True:
        fetch = functools.partial(
            collection.query.fetch_objects, limit=_PAGE, after=after, return_properties=[ID]
        )
        page = calls(fetch).objects
        if not page:
            return
        after = page[-1].uuid
        pairs = [(str(each.properties.get(ID) or ""), str(each.uuid)) for each in page]
        # Only an object whose uuid an import made is its own to remove.
        yield [name for name, uuid in pairs if name and uuid == object_uuid(name)]


def _there(calls: Calls, collection: Any, names: Sequence[str]) -> list[str]:
    by_uuid = {object_uuid(name): name for name in names}
    fetch = functools.partial(
        collection.query.fetch_objects,
        filters=Filter.by_id().contains_any(list(by_uuid)),
        limit=len(by_uuid),
        return_properties=[],
    )
    return [by_uuid[str(each.uuid)] for each in calls(fetch).objects]


def _delete(calls: Calls, collection: Any, names: Sequence[str]) -> int:
    removed = 0
    for start in range(0, len(names), _PAGE):
        uuids = [object_uuid(name) for name in names[start : start + _PAGE]]
        where = Filter.by_id().contains_any(uuids)
        removed += calls(functools.partial(collection.data.delete_many, where=where)).successful
    return removed
