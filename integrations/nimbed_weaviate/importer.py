"""Import of rows into a collection, embedded in this process.

Killed at any moment and run again, nothing is lost, nothing is there twice, and what is there
with the same content is not embedded again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter
from weaviate.collections import Collection
from weaviate.exceptions import WeaviateInsertManyAllFailedError
from weaviate.util import generate_uuid5

from nimbed import Embedder, EmbeddingBatch, VectorSpec, stores
from nimbed.bulk import (
    JobReport,
    PassageBatch,
    StoreResult,
    embedding_passages,
    ignore,
    listing,
    load_batches,
    read_batches,
)
from nimbed.errors import BackendError, ConfigurationError, SpaceMismatchError
from nimbed.rows import Item, Reject, Row, id_fault, row_id, text_fault
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.indexes import VectorSetup, spec_fault, vector_setups
from nimbed_weaviate.properties import (
    DIGEST,
    ID,
    UnfitError,
    contract_of,
    properties_of,
    seal,
)

__all__ = ["BATCH_ROWS", "batch_import"]

#: Rows that are embedded together and sent in one request, or in several if they are long.
BATCH_ROWS = 256
# Older servers take 10 MB a message; vectors and the wire's own bytes come on top.
_MESSAGE_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class _Content:
    """What is stored of a row beside its vector, and about how many bytes that takes."""

    properties: Mapping[str, Any]
    size: int


_Passages = PassageBatch[_Content, list[float]]


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
    rejects_file: str | os.PathLike[str] | None = None,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[JobReport], None] = ignore,
) -> JobReport:
    """Embed rows and store them; those that are there with the same content are skipped.

    An object's uuid is made of its row's id (``weaviate.util.generate_uuid5(id)``), so a row
    replaces the object it was before. The first import writes the contract of the vectors into
    the collection; later ones must keep to it.

    Args:
        collection: A collection made with :func:`nimbed_weaviate.self_provided`; with its tenant,
            if it has tenants.
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
        rejects_file: Where the rows left out are listed, as JSON lines.
        on_reject: Told each row that cannot be stored, and why.
        on_progress: Told the report after each batch.

    Raises:
        SpaceMismatchError: If the collection holds vectors of another space.
        ConfigurationError: If the collection does not fit, or an option is out of range.
        BackendError: If Weaviate or the model failed, or Weaviate refused all that it was sent at
            first; what is stored stays.
    """
    check_literal("truncate", truncate, Truncate)
    if chunk_rows < 1:
        raise ConfigurationError(f"chunk_rows must be at least 1; got {chunk_rows}")
    doing = (
        f"importing into the collection {collection.name} (what is stored stays; run it again "
        f"for the rest)"
    )
    with listing(rejects_file, on_reject) as tell, translate_errors(doing):
        config = collection.config.get()
        spec = _spec(embedder, contract_of(config), embedding_type, dimensions, int8_scale)
        setup = _fitting(vector_setups(config), vector, spec, collection.name)
        seal(collection, spec)
        check = functools.partial(
            _prepared,
            source=source,
            text_property=text_property,
            metadata_fields=metadata_fields,
            space=hashlib.blake2b(spec.fingerprint.encode(), digest_size=16).digest(),
        )
        return load_batches(
            read_batches(rows, check, rows=chunk_rows),
            _CollectionSink(collection, spec, setup.name),
            embedding_passages(embedder, spec, truncate=truncate),
            on_reject=tell,
            on_progress=on_progress,
        )


def _spec(
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


def _fitting(
    setups: Sequence[VectorSetup], asked: str | None, spec: VectorSpec, name: str
) -> VectorSetup:
    """Return the setup of the vector to fill.

    Raises:
        ConfigurationError: If there is no such vector, or it would rank wrongly.
    """
    by_name = {setup.name: setup for setup in setups}
    chosen = by_name.get(asked) if asked is not None else setups[0]
    if chosen is None or (asked is None and len(setups) > 1):
        listed = ", ".join(map(repr, by_name))
        raise ConfigurationError(
            f"say which vector of the collection {name} to fill, with vector=...: it has {listed}"
        )
    others = [each.name for each in setups if each is not chosen and each.module == "none"]
    if others:
        raise ConfigurationError(
            f"the collection {name} has other vectors without a module ({', '.join(others)}), and "
            f"an object that is stored anew loses those; use a collection for each"
        )
    fault = spec_fault(spec, chosen.metric, chosen.quantizers)
    if fault:
        raise ConfigurationError(
            f"the collection {name} compares {spec.embedding_type} vectors by {chosen.metric}: "
            f"{fault}; make it with nimbed_weaviate.self_provided(spec), or pass embedding_type"
        )
    return chosen


class _CollectionSink:
    """A collection as the store of a bulk job.

    One object carries its text, its vector and its digest, so nothing can be half there.

    Args:
        collection: The collection.
        spec: The contract of the vectors.
        vector: The vector's name; empty for the single one of older collections.
    """

    def __init__(self, collection: Collection[Any, Any], spec: VectorSpec, vector: str) -> None:
        self._collection = collection
        self._field = stores.field(spec, "weaviate")
        self._vector = vector
        # An empty collection needs no look-up.
        self._empty = not collection.query.fetch_objects(limit=1, return_properties=[]).objects
        self._took_any = False

    def encode(self, batch: EmbeddingBatch) -> list[list[float]]:
        """Return the vectors in the form that Weaviate compares."""
        return cast("list[list[float]]", self._field.encode(batch))

    def look_up(self, passages: _Passages) -> Mapping[str, bytes]:
        """Return the digests of those passages whose objects the collection holds."""
        if self._empty or not passages:
            return {}
        names = {generate_uuid5(name): name for name in passages.ids}
        found = self._collection.query.fetch_objects(
            filters=Filter.by_id().contains_any(list(names)),
            limit=len(names),
            return_properties=[DIGEST],
        )
        known = {names[str(each.uuid)]: _digest(each.properties) for each in found.objects}
        self._took_any |= any(
            known.get(name) == digest
            for name, digest in zip(passages.ids, passages.digests, strict=True)
        )
        return known

    def storing(self, passages: _Passages, *, replace: bool) -> Callable[[], StoreResult]:
        """Return a function that stores passages, replacing those that are there."""
        del replace  # an object of the same uuid is replaced anyway
        return functools.partial(self._store, passages)

    def finish(self) -> None:
        """Do nothing: what Weaviate took, it keeps."""

    def _store(self, passages: _Passages) -> StoreResult:
        """Store passages in messages of a few megabytes.

        Raises:
            BackendError: If nothing was ever stored, and nothing of the first message was.
            weaviate.exceptions.WeaviateBaseError: If Weaviate was not reached; any part may be
                there.
        """
        refused: list[Reject] = []
        for message in _messages(passages):
            left_out = self._sent(message)
            if len(left_out) == len(message) > 1 and not self._took_any:
                raise BackendError(
                    f"{self._collection.name} took none of the first {len(message)} rows: "
                    f"{left_out[0].reason}"
                )
            self._took_any |= len(left_out) < len(message)
            refused += left_out
        return StoreResult(stored=len(passages) - len(refused), refused=refused)

    def _sent(self, passages: _Passages) -> list[Reject]:
        """Send one message, and return what Weaviate refused."""
        vectors = cast("list[list[float]]", passages.vectors)
        rows = zip(passages.ids, passages.metadata, passages.digests, vectors, strict=True)
        objects = [
            DataObject(
                uuid=generate_uuid5(name),
                properties={**content.properties, ID: name, DIGEST: digest.hex()},
                vector={self._vector: vector} if self._vector else vector,
            )
            for name, content, digest, vector in rows
        ]
        try:
            with _quiet_client():
                errors = self._collection.data.insert_many(objects).errors
        except WeaviateInsertManyAllFailedError as error:
            # The client tells which reasons there are, not which is whose.
            said = dict.fromkeys(range(len(passages)), error.message)
        else:
            said = {place: error.message for place, error in sorted(errors.items())}
        return [
            Reject(
                passages.numbers[place],
                passages.ids[place],
                f"Weaviate refused it: {' '.join(reason.split())}",
            )
            for place, reason in said.items()
        ]


def _digest(properties: Mapping[str, Any]) -> bytes:
    try:
        return bytes.fromhex(str(properties.get(DIGEST) or ""))
    except ValueError:  # something else wrote it
        return b""


def _messages(passages: _Passages) -> Iterator[_Passages]:
    """Yield passages in as few parts as a message's size allows."""
    start = size = 0
    for place, content in enumerate(passages.metadata):
        if size + content.size > _MESSAGE_BYTES and place > start:
            yield passages.select(range(start, place))
            start, size = place, 0
        size += content.size
    yield passages if start == 0 else passages.select(range(start, len(passages)))


@contextmanager
def _quiet_client() -> Generator[None]:
    """Keep the client from logging whole objects, texts and vectors, that a batch left out."""
    own = threading.get_ident()
    logger = logging.getLogger("weaviate-client")

    def others(record: logging.LogRecord) -> bool:
        return record.thread != own

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def _prepared(
    rows: Sequence[Row],
    *,
    source: str,
    text_property: str,
    metadata_fields: Sequence[str] | None,
    space: bytes,
) -> tuple[_Passages, list[Reject]]:
    """Return the rows that can be stored, and the others.

    Args:
        rows: The rows.
        source: Names the input; a row without an id is called ``source:number``.
        text_property: Where the text goes.
        metadata_fields: Fields to keep, where a row has them; None keeps all.
        space: Names the space of the vectors: in another one, another digest is made.
    """
    made: _Passages = PassageBatch()
    rejects: list[Reject] = []
    for row in rows:
        key = row_id(row, source)
        fault = id_fault(key)
        if fault:
            rejects.append(Reject(row.number, None, fault))
            continue
        content = _content(row, text_property, metadata_fields)
        if isinstance(content, str):
            rejects.append(Reject(row.number, str(key), content))
            continue
        properties, encoded = content
        made.numbers.append(row.number)
        made.ids.append(str(key))
        made.texts.append(row.text)
        made.metadata.append(_Content(properties, len(encoded)))
        made.digests.append(hashlib.blake2b(encoded, digest_size=16, key=space).digest())
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
    taken = {text_property, ID, DIGEST} & set(properties)
    if taken:
        return f"its field {min(taken)!r} would replace nimbed's own"
    properties[text_property] = row.text
    encoded = json.dumps(properties, sort_keys=True).encode()
    if len(encoded) > _MESSAGE_BYTES:
        return f"it is {len(encoded):,} bytes long; a message holds {_MESSAGE_BYTES:,}"
    return properties, encoded
