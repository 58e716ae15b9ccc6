"""Import of rows into a collection, embedded in this process.

Killed at any moment and run again, nothing is lost, nothing is there twice, and what is there
with the same content is not embedded again.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, Unpack, cast

from weaviate.classes.query import Filter
from weaviate.collections import Collection, CollectionAsync
from weaviate.util import generate_uuid5

from nimbed import Embedder, VectorSpec
from nimbed.bulk import (
    JobReport,
    PassageBatch,
    SeenIds,
    embedding_passages,
    ignore,
    listing,
    load_batches,
    read_batches,
)
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed.rows import Item, Reject, Row, id_fault, row_id, text_fault
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal
from nimbed_weaviate.calls import RESTART_WAIT, Calls, in_thread
from nimbed_weaviate.collection_sink import MESSAGE_BYTES, CollectionSink, Content, Passages
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.indexes import KINDS, VectorSetup, index_fault, vector_setups
from nimbed_weaviate.properties import (
    DIGEST,
    ID,
    Digest,
    UnfitError,
    contract_of,
    digest,
    digest_properties,
    digest_property,
    properties_of,
    seal,
    space_of,
)

__all__ = ["BATCH_ROWS", "ImportOptions", "abatch_import", "batch_import", "fitting", "spec_for"]

#: Rows that are embedded together and sent in one request, or in several if they are long.
BATCH_ROWS = 256
_PAGE = 1000


class ImportOptions(TypedDict, total=False):
    """What :func:`batch_import` may be told, by name."""

    vector: str | None
    text_property: str
    embedding_type: EmbeddingType | None
    dimensions: int | None
    int8_scale: Int8Scale | None
    truncate: Truncate
    source: str
    metadata_fields: Sequence[str] | None
    chunk_rows: int
    prune: bool
    rejects_file: str | os.PathLike[str] | None
    on_reject: Callable[[Reject], None]
    on_progress: Callable[[JobReport], None]


def batch_import(
    collection: Collection[Any, Any],
    rows: Iterable[Item],
    embedder: Embedder,
    *,
    vector: str | None = None,
    text_property: str = "text",
    embedding_type: EmbeddingType | None = None,
    dimensions: int | None = None,
    int8_scale: Int8Scale | None = None,
    truncate: Truncate = "NONE",
    source: str = "script",
    metadata_fields: Sequence[str] | None = None,
    chunk_rows: int = BATCH_ROWS,
    prune: bool = False,
    restart_wait: float = RESTART_WAIT,
    on_wait: Callable[[str], None] = ignore,
    rejects_file: str | os.PathLike[str] | None = None,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
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
        vector: The vector's name, where there are several.
        text_property: The property that takes the text.
        embedding_type: None means: as the collection has it, or float.
        dimensions: None means: as the collection has it, or the model's full size.
        int8_scale: For int8 and uint8.
        truncate: What happens to a text that is too long: NONE rejects it.
        source: Names rows that have no id.
        metadata_fields: Other fields to keep; None keeps all.
        chunk_rows: Rows that are embedded together and sent in one request; long texts make it
            several requests.
        prune: Remove the objects of earlier imports whose rows are not in this input.
        restart_wait: Seconds to wait for a Weaviate that goes away; 0 does not wait.
        on_wait: Told in a sentence that Weaviate is away, and that it is back.
        rejects_file: Where the rows left out are listed, as JSON lines.
        on_reject: Told each row that cannot be stored, and why.
        on_progress: Told the report after each batch.

    Raises:
        SpaceMismatchError: If the collection holds vectors of another space.
        ConfigurationError: If the collection does not fit, or an option is out of range.
        InputError: If ``prune`` cannot tell which rows are gone; nothing is removed then.
        BackendError: If Weaviate or the model failed, or Weaviate refused all that it was sent at
            first; what is stored stays.
    """
    return _import(
        Calls(collection.exists, budget=restart_wait, tell=on_wait),
        collection,
        rows,
        embedder,
        vector=vector,
        text_property=text_property,
        embedding_type=embedding_type,
        dimensions=dimensions,
        int8_scale=int8_scale,
        truncate=truncate,
        source=source,
        metadata_fields=metadata_fields,
        chunk_rows=chunk_rows,
        prune=prune,
        rejects_file=rejects_file,
        on_reject=on_reject,
        on_progress=on_progress,
    )


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
    calls = Calls(
        collection.exists, budget=restart_wait, tell=on_wait, loop=asyncio.get_running_loop()
    )
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
    text_property: str = "text",
    embedding_type: EmbeddingType | None = None,
    dimensions: int | None = None,
    int8_scale: Int8Scale | None = None,
    truncate: Truncate = "NONE",
    source: str = "script",
    metadata_fields: Sequence[str] | None = None,
    chunk_rows: int = BATCH_ROWS,
    prune: bool = False,
    rejects_file: str | os.PathLike[str] | None = None,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> JobReport:
    check_literal("truncate", truncate, Truncate)
    if chunk_rows < 1:
        raise ConfigurationError(f"chunk_rows must be at least 1; got {chunk_rows}")
    doing = (
        f"importing into the collection {collection.name} (what is stored stays; run it again "
        f"for the rest)"
    )
    with listing(rejects_file, on_reject) as tell, translate_errors(doing):
        config = calls(collection.config.get)
        known = digest_properties(calls, collection, config)
        setup, spec = fitting(
            vector_setups(config), vector, collection.name,
            lambda name: spec_for(
                embedder, contract_of(config, known.get(name, "")),
                embedding_type, dimensions, int8_scale
            ),
        )  # fmt: skip
        digests = known.get(setup.name, digest_property(setup.name))
        seal(calls, collection, spec, digests)
        seen = _Seen()
        check = functools.partial(
            _prepared,
            source=source,
            text_property=text_property,
            metadata_fields=metadata_fields,
            space=space_of(spec),
            seen=seen if prune else None,
        )
        sink = CollectionSink(
            calls,
            collection,
            spec,
            setup.name,
            digests=digests,
            others={
                each.name: known.get(each.name, "")
                for each in vector_setups(config)
                if each.module == "none" and each.name != setup.name
            },
        )
        report = load_batches(
            read_batches(rows, check, rows=chunk_rows),
            sink,
            embedding_passages(embedder, spec, truncate=truncate),
            on_reject=tell,
            on_progress=on_progress,
        )
        if prune:
            seen.require_all(report)
            report.removed = _pruned(calls, collection, seen)
        return report


class _Seen:
    """The ids of an input, in eight bytes each; one id in 10^12 is taken for another and kept."""

    def __init__(self) -> None:
        self._ids = SeenIds()
        self._rows = 0

    def add(self, name: str) -> None:
        """Note the id of a row, stored or not."""
        self._ids.repeated([name])
        self._rows += 1

    def gone(self, names: Sequence[str]) -> list[str]:
        """Return those ids that the input did not have."""
        there = self._ids.repeated(names)
        return [name for place, name in enumerate(names) if place not in there]

    def require_all(self, report: JobReport) -> None:
        """Make sure that the id of every row is known.

        Raises:
            InputError: If some rows could not be read, or there were none.
        """
        if not report.read:
            raise InputError("the input is empty, so nothing was removed; delete the collection")
        if self._rows < report.read:
            raise InputError(
                f"{report.read - self._rows:,} rows could not be read, so that which objects have "
                f"lost theirs is not known: nothing was removed; mend them and run it again"
            )


def _pruned(calls: Calls, collection: Any, seen: _Seen) -> int:
    """Remove the objects of imports whose rows are gone, and return how many that were."""
    removed, after = 0, None
    while True:
        page = calls(
            functools.partial(
                collection.query.fetch_objects, limit=_PAGE, after=after, return_properties=[ID]
            )
        ).objects
        if not page:
            return removed
        after = page[-1].uuid
        made = {str(each.properties.get(ID) or ""): str(each.uuid) for each in page}
        # Only objects whose uuid an import made are its own to remove.
        own = [name for name, uuid in made.items() if name and uuid == generate_uuid5(name)]
        gone = [made[name] for name in seen.gone(own)]
        if gone:
            where = Filter.by_id().contains_any(gone)
            removed += calls(functools.partial(collection.data.delete_many, where=where)).successful


def spec_for(
    embedder: Embedder,
    contract: VectorSpec | None,
    kind: EmbeddingType | None,
    dimensions: int | None,
    scale: Int8Scale | None,
) -> VectorSpec:
    """Return the contract of the vectors to come: as asked, else as the collection has it.

    Raises:
        SpaceMismatchError: If the embedder cannot give what the collection has.
    """
    if contract is None:
        return embedder.spec(
            embedding_type=kind or "float", dimensions=dimensions, int8_scale=scale
        )
    try:
        return embedder.spec(
            embedding_type=kind or contract.embedding_type,
            dimensions=dimensions or contract.dimensions,
            int8_scale=contract.int8_scale if scale is None and kind is None else scale,
        )
    except ValueError as error:
        raise SpaceMismatchError(
            f"the collection holds {contract.embedding_type} vectors of {contract.model}, "
            f"{contract.dimensions} dimensions; {embedder.card.id} cannot give such: {error}"
        ) from error


def fitting(
    setups: Sequence[VectorSetup],
    asked: str | None,
    collection: str,
    spec_of: Callable[[str], VectorSpec],
) -> tuple[VectorSetup, VectorSpec]:
    """Return the setup of the vector to fill, and the contract of what comes into it.

    Args:
        setups: The collection's vectors.
        asked: The name that was asked for; None where there must be one alone.
        collection: The collection's name.
        spec_of: Makes the contract for a vector.

    Raises:
        ConfigurationError: If there is no such vector, or it would rank wrongly.
    """
    by_name = {setup.name: setup for setup in setups}
    chosen = by_name.get(asked) if asked is not None else setups[0]
    if chosen is None or (asked is None and len(setups) > 1):
        listed = ", ".join(map(repr, by_name))
        raise ConfigurationError(
            f"say which vector of the collection {collection} to fill, with vector=...: it has "
            f"{listed}"
        )
    spec = spec_of(chosen.name)
    fault = index_fault(KINDS[spec.embedding_type], chosen.metric, chosen.quantizers)
    if fault:
        raise ConfigurationError(
            f"the collection {collection} compares {spec.embedding_type} vectors by "
            f"{chosen.metric}: {fault}; make it with nimbed_weaviate.self_provided(spec), or pass "
            f"embedding_type"
        )
    return chosen, spec


def _prepared(
    rows: Sequence[Row],
    *,
    source: str,
    text_property: str,
    metadata_fields: Sequence[str] | None,
    space: bytes,
    seen: _Seen | None = None,
) -> tuple[Passages, list[Reject]]:
    """Return the rows that can be stored, and the others.

    Args:
        rows: The rows.
        source: Names the input; a row without an id is called ``source:number``.
        text_property: Where the text goes.
        metadata_fields: Fields to keep, where a row has them; None keeps all.
        space: Names the space of the vectors: in another one, another digest is made.
        seen: Told the id of every row.
    """
    made: Passages = PassageBatch()
    rejects: list[Reject] = []
    for row in rows:
        key = row_id(row, source)
        fault = id_fault(key)
        if fault:
            rejects.append(Reject(row.number, None, fault))
            continue
        if seen is not None:
            seen.add(str(key))
        content = _content(row, text_property, metadata_fields)
        if isinstance(content, str):
            rejects.append(Reject(row.number, str(key), content))
            continue
        properties, encoded = content
        made.numbers.append(row.number)
        made.ids.append(str(key))
        made.texts.append(row.text)
        made.metadata.append(Content(properties, len(encoded), digest(encoded, space)))
        made.digests.append(Digest(digest(row.text.encode(), space), digest(encoded)).value)
    return made, rejects


def _content(
    row: Row, text_property: str, fields: Sequence[str] | None
) -> tuple[dict[str, Any], bytes] | str:
    """Return what is stored of a row and the bytes that name it, or why it cannot be stored."""
    fault = text_fault(row.text)
    if fault:
        return fault
    try:
        properties = properties_of(row.columns, fields)
    except UnfitError as error:
        return str(error)
    taken = {name for name in properties if name in (text_property, ID) or name.startswith(DIGEST)}
    if taken:
        return f"its field {min(taken)!r} would replace nimbed's own"
    properties[text_property] = row.text
    encoded = json.dumps(properties, sort_keys=True).encode()
    if len(encoded) > MESSAGE_BYTES:
        return f"it is {len(encoded):,} bytes long; a message holds {MESSAGE_BYTES:,}"
    return properties, encoded
