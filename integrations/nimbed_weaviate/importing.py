"""A stream of rows in, a filled collection out, embedding while the last chunk is sent.

Killed at any moment and run again, nothing is lost, nothing is there twice, and what is there
with the same content is not embedded again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from weaviate.collections import Collection

from nimbed import Embedder, EmbeddingBatch, VectorSpec, stores
from nimbed.errors import BackendError, ConfigurationError, InputError, SpaceMismatchError
from nimbed.files.items import Item
from nimbed.files.load_report import LoadReport, Reject, ignore
from nimbed.files.refusals import embed_accepted, embedding_passages, refused_rows
from nimbed.files.reject_list import listing
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal
from nimbed_weaviate.contract import contract_of, seal
from nimbed_weaviate.faults import sentences
from nimbed_weaviate.indexing import KINDS, index_fault
from nimbed_weaviate.passages import Layout, Passage, chunks
from nimbed_weaviate.sending import is_empty, known_digests, send
from nimbed_weaviate.setup import VectorSetup, vector_setups

__all__ = ["CHUNK_ROWS", "batch_import"]

#: Rows a request.
CHUNK_ROWS = 256


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
    chunk_rows: int = CHUNK_ROWS,
    rejects_file: str | os.PathLike[str] | None = None,
    on_reject: Callable[[Reject], None] = ignore,
    on_progress: Callable[[LoadReport], None] = ignore,
) -> LoadReport:
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
        chunk_rows: Rows a request, at most; long texts make it fewer.
        rejects_file: Where the rows left out are listed, as JSON lines.
        on_reject: Told each row that cannot be stored, and why.
        on_progress: Told the report after each chunk.

    Raises:
        SpaceMismatchError: If the collection holds vectors of another space.
        ConfigurationError: If the collection does not fit, or an option is out of range.
        BackendError: If Weaviate or the model failed, or Weaviate refused all that it was sent at
            first; what is stored stays.
    """
    check_literal("truncate", truncate, Truncate)
    if chunk_rows < 1:
        raise ConfigurationError(f"chunk_rows must be at least 1; got {chunk_rows}")
    report, start = LoadReport(), time.perf_counter()
    with listing(rejects_file, on_reject) as tell, sentences(_doing(collection.name)):
        config = collection.config.get()
        spec = _spec(embedder, contract_of(config), embedding_type, dimensions, int8_scale)
        setup = _fitting(vector_setups(config), vector, spec, collection.name)
        seal(collection, spec)
        layout = Layout(
            source=source,
            text_property=text_property,
            metadata_fields=metadata_fields,
            fingerprint=spec.fingerprint,
        )
        form = stores.field(spec, "weaviate")
        new = is_empty(collection)

        def finish(sending: Future[list[Reject]] | None, sent: int) -> None:
            if sending is not None:
                refused = sending.result()
                if len(refused) == sent > 1 and not report.loaded + report.unchanged:
                    raise BackendError(
                        f"{collection.name} took none of the first {sent} rows: {refused[0].reason}"
                    )
                report.loaded += sent - len(refused)
                report.reject(refused, tell)
            report.seconds = time.perf_counter() - start
            on_progress(report)

        with ThreadPoolExecutor(1, "nimbed-weaviate") as sender:
            sending: Future[list[Reject]] | None = None
            sent = 0
            for chunk in chunks(rows, layout, rows=chunk_rows):
                report.reject(chunk.rejects, tell)
                known = {} if new else known_digests(collection, chunk.passages)
                todo = [each for each in chunk.passages if known.get(each.uuid) != each.digest]
                report.unchanged += len(chunk.passages) - len(todo)
                kept, batch = todo, None  # what is embedded, if anything is left to do
                if todo:
                    kept, batch, refused = _embedded(embedder, todo, spec, truncate)
                    report.reject(refused, tell)
                finish(sending, sent)
                sending, sent = None, len(kept)
                if batch:
                    vectors = cast("list[list[float]]", form.encode(batch))
                    sending = sender.submit(send, collection, kept, vectors, setup.name)
            finish(sending, sent)
    return report


def _doing(name: str) -> str:
    return f"importing into the collection {name} (what is stored stays; run it again for the rest)"


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
    setups: Sequence[VectorSetup], wanted: str | None, spec: VectorSpec, name: str
) -> VectorSetup:
    """Return the setup of the vector to fill.

    Raises:
        ConfigurationError: If there is no such vector, or it would rank wrongly.
    """
    by_name = {setup.name: setup for setup in setups}
    chosen = by_name.get(wanted) if wanted is not None else setups[0]
    if chosen is None or (wanted is None and len(setups) > 1):
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
    fault = index_fault(KINDS[spec.embedding_type], chosen.metric, chosen.quantizers)
    if fault:
        raise ConfigurationError(
            f"the collection {name} compares {spec.embedding_type} vectors by {chosen.metric}: "
            f"{fault}; make it with nimbed_weaviate.self_provided(spec), or pass embedding_type"
        )
    return chosen


def _embedded(
    embedder: Embedder, passages: Sequence[Passage], spec: VectorSpec, truncate: Truncate
) -> tuple[list[Passage], EmbeddingBatch, list[Reject]]:
    """Return the passages that could be embedded, their vectors, and the refused ones."""
    refused: list[Reject] = []

    def refuse(places: list[int], error: InputError) -> None:
        some = [passages[place] for place in places]
        refused.extend(
            refused_rows(error, [each.number for each in some], [each.id for each in some])
        )

    embed = embedding_passages(embedder, spec, truncate=truncate)
    places, batch = embed_accepted([passage.text for passage in passages], embed, refuse)
    return [passages[place] for place in places], batch, refused
