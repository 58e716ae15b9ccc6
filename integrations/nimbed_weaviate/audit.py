"""Audit of a collection: a sample of its objects is embedded again, and its vectors are judged.

What a module sends to its server for an object is made here by Weaviate's own rules, read from its
sources (usecases/modulecomponents/text2vecbase, object_texts.go).
"""

from __future__ import annotations

import asyncio
import functools
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from weaviate.classes.config import DataType
from weaviate.classes.query import MetadataQuery
from weaviate.collections import Collection, CollectionAsync
from weaviate.outputs.config import CollectionConfig

import nimbed
from nimbed import Embedder, VectorSpec
from nimbed.audit import AUDITED, Audit, StoredSample, field_variants
from nimbed.audit import audit as audit_sample
from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType
from nimbed_weaviate.calls import Calls, in_thread
from nimbed_weaviate.connection import NVIDIA, translate_errors
from nimbed_weaviate.indexes import VectorSetup, kind_of, vector_setups
from nimbed_weaviate.properties import (
    DIGEST,
    ID,
    dense_contract,
    digest_properties,
    module_options,
    places_of,
)

__all__ = ["aaudit", "audit", "audit_by"]

_TEXTS = (DataType.TEXT, DataType.TEXT_ARRAY)
_TYPES: dict[str, EmbeddingType] = {
    "floats": "float",
    "codes": "int8",
    "codes from 0": "uint8",
    "signs": "ubinary",
    "zeros and ones": "ubinary",
}


def audit(
    collection: Collection[Any, Any],
    embedder: Embedder | None = None,
    *,
    vector: str | None = None,
    text_property: str | None = None,
    rows: int = AUDITED,
    others: Mapping[str, Callable[[], Embedder]] | None = None,
    texts_of: Callable[[Mapping[str, Any]], str] | None = None,
) -> Audit:
    """Say what the vectors of a collection are, by embedding a sample of its texts again.

    Args:
        collection: The collection; with its tenant, if it has tenants.
        embedder: Makes the vectors; None loads the model of the collection's contract, or asks
            the server that its module names.
        vector: The vector's name, where there are several.
        text_property: The property that :func:`nimbed_weaviate.batch_import` put the texts in;
            None takes ``text``, or the only one of type text.
        rows: How many objects to look at, from a place chosen by chance.
        others: Models that may have made the vectors instead, and how each is loaded.
        texts_of: Makes the text of an object's properties, where it is not one of them.

    Raises:
        ConfigurationError: If there is no such collection, vector or property.
        SpaceMismatchError: If the embedder cannot make the vectors that the collection promises.
        BackendError: If Weaviate or the model failed.
    """
    return audit_by(
        Calls(budget=0), collection, embedder,
        vector=vector, text_property=text_property, rows=rows, others=others, texts_of=texts_of,
    )  # fmt: skip


async def aaudit(
    collection: CollectionAsync[Any, Any],
    embedder: Embedder | None = None,
    *,
    vector: str | None = None,
    text_property: str | None = None,
    rows: int = AUDITED,
    others: Mapping[str, Callable[[], Embedder]] | None = None,
    texts_of: Callable[[Mapping[str, Any]], str] | None = None,
) -> Audit:
    """Do what :func:`audit` does, through Weaviate's async client."""
    calls = Calls(budget=0, loop=asyncio.get_running_loop())
    # The same methods; what they return is awaited where the calls are made.
    same = cast("Collection[Any, Any]", collection)
    job = functools.partial(
        audit_by, calls, same, embedder,
        vector=vector, text_property=text_property, rows=rows, others=others, texts_of=texts_of,
    )  # fmt: skip
    return await in_thread(job, calls)


def audit_by(
    calls: Calls,
    collection: Collection[Any, Any],
    embedder: Embedder | None,
    *,
    vector: str | None = None,
    text_property: str | None = None,
    rows: int = AUDITED,
    others: Mapping[str, Callable[[], Embedder]] | None = None,
    texts_of: Callable[[Mapping[str, Any]], str] | None = None,
) -> Audit:
    """Do what :func:`audit` does, by calls of either client."""
    if rows < 1:
        raise ConfigurationError(f"an audit looks at 1 object or more; got {rows}")
    with translate_errors(f"auditing the collection {collection.name}"):
        config = calls(collection.config.get)
        setup = _chosen(vector_setups(config), vector or places_of(config).searched, config.name)
        known = digest_properties(calls, collection, config)
        contract = dense_contract(config, known.get(setup.name, ""), doing="an audit")
        if texts_of is None:
            texts_of = _texts_of(config, setup, contract is not None, text_property)
        objects = _sample(calls, collection, rows)
    # An object without a text has no vector, of a module's or of ours.
    objects = [
        each
        for each in objects
        if texts_of(_texts_in(each.properties)).strip() or each.vector.get(setup.name or "default")
    ]
    vectors: list[Any] = [each.vector.get(setup.name or "default") for each in objects]
    fields = [_texts_in(each.properties) for each in objects]
    if embedder is None:
        embedder = _named_embedder(setup, contract)
    spec = contract or _judged(embedder, vectors)
    if spec.packed:
        vectors = [_signs(each) for each in vectors]
    texts = [texts_of(each) for each in fields]
    sample = StoredSample(
        spec=spec,
        ids=[each.properties.get(ID) or str(each.uuid) for each in objects],
        texts=texts,
        vectors=vectors,
        variants=_variants(config.name, texts, fields),
        times=[str(each.metadata.last_update_time) for each in objects],
    )
    return audit_sample(sample, embedder, others=others)


def _chosen(setups: Sequence[VectorSetup], asked: str | None, name: str) -> VectorSetup:
    by_name = {setup.name: setup for setup in setups}
    if asked is None and len(setups) == 1:
        return setups[0]
    if asked not in by_name:
        listed = ", ".join(map(repr, by_name))
        raise ConfigurationError(
            f"say which vector of the collection {name} to audit: it has {listed}"
        )
    return by_name[asked]


def _sample(calls: Calls, collection: Collection[Any, Any], rows: int) -> list[Any]:
    """Return objects in the order of their uuids, from one chosen by chance, then from the first.

    A uuid is made by chance, or of a hash, so that neighbours have nothing in common.
    """
    found: dict[Any, Any] = {}
    for after in (uuid.uuid4(), None):
        if len(found) < rows:
            fetch = functools.partial(
                collection.query.fetch_objects,
                limit=rows,
                after=after,
                include_vector=True,
                return_metadata=MetadataQuery(last_update_time=True),
            )
            objects = calls(fetch).objects
            found |= {each.uuid: each for each in objects if each.uuid not in found}
    return list(found.values())[:rows]


def _texts_of(
    config: CollectionConfig, setup: VectorSetup, imported: bool, asked: str | None
) -> Callable[[Mapping[str, str]], str]:
    """Return a function from an object's texts to the text that was embedded.

    Raises:
        ConfigurationError: If it cannot be told which property that was.
    """
    names = sorted(each.name for each in config.properties if each.data_type in _TEXTS)
    names = [name for name in names if name != ID and not name.startswith(DIGEST)]
    if imported or setup.module == "none":
        chosen = asked or ("text" if "text" in names else names[0] if len(names) == 1 else None)
        if chosen not in names:
            raise ConfigurationError(
                f"say which property of the collection {config.name} was embedded, with "
                f"text_property: it has {', '.join(names) or 'none of type text'}"
            )
        return lambda texts: texts.get(chosen, "")
    if asked is not None:
        raise ConfigurationError(
            f"{setup.module} says itself what it embeds; name no text_property"
        )
    given = setup.source_properties
    put_before = {
        each.name
        for each in config.properties
        for module, options in module_options(each)
        if module == setup.module and options.vectorize_property_name
    }
    skipped = {
        each.name
        for each in config.properties
        for module, options in module_options(each)
        if module == setup.module and options.skip
    }
    sources = [
        name for name in names if (name in given if given is not None else name not in skipped)
    ]

    def joined(texts: Mapping[str, str]) -> str:
        parts = [_spaced(config.name)] if setup.settings.get("vectorizeClassName") else []
        for name in sources:
            if name in texts:
                parts += [_spaced(name)] if name in put_before else []
                parts.append(texts[name])
        return " ".join(parts)

    return joined


def _texts_in(properties: Mapping[str, Any]) -> dict[str, str]:
    """Return the properties of type text, lists joined as Weaviate joins them."""
    found: dict[str, str] = {}
    for name, value in properties.items():
        if name == ID or name.startswith(DIGEST):
            continue
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            found[name] = " ".join(value)
    return found


def _variants(
    name: str, texts: Sequence[str], fields: Sequence[Mapping[str, str]]
) -> dict[str, list[str]]:
    """Return what may have been embedded instead: names in front, other properties, all of them."""
    spaced = _spaced(name)
    found = {
        "the text with the collection's name in front": [f"{spaced} {text}" for text in texts],
        "the text with the collection's name in small letters in front": [
            f"{spaced.lower()} {text}" for text in texts
        ],
        "the text without the collection's name": [
            text.removeprefix(f"{spaced} ") for text in texts
        ],
    }
    every = sorted({each for texts_of in fields for each in texts_of})
    for said, lead in (("", False), (" with their names in front", True)):
        found[f"all properties of type text{said}"] = [
            " ".join(
                f"{_spaced(each)} {texts_of[each]}" if lead else texts_of[each]
                for each in every
                if each in texts_of
            )
            for texts_of in fields
        ]
    return found | field_variants(texts, fields)


def _spaced(name: str) -> str:
    """Return a name divided where its letters change case, as Weaviate divides it."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^A-Za-z0-9]+", name))


def _named_embedder(setup: VectorSetup, contract: VectorSpec | None) -> Embedder:
    if contract is not None:
        return nimbed.load(contract.model, revision=contract.revision)
    model, settings = setup.settings.get("model"), setup.settings
    if setup.module in ("none", "text2vec-transformers") or not isinstance(model, str):
        raise ConfigurationError(
            f"nothing says which model made these vectors (module {setup.module}); name it with "
            f"--model, or pass an embedder"
        )
    return nimbed.load(model, base_url=str(settings.get("baseURL") or NVIDIA))


def _judged(embedder: Embedder, vectors: Sequence[Any]) -> VectorSpec:
    """Return the contract that an embedder's vectors would have in the form of those stored."""
    there = [each for each in vectors if each and any(each)]
    if not there:
        return embedder.spec()
    widths = [len(each) for each in there]
    width = max(set(widths), key=widths.count)
    kind = _TYPES[kind_of(np.array([each for each in there if len(each) == width]))]
    offered = width in embedder.card.sizes
    return embedder.spec(embedding_type=kind, dimensions=width if offered else None)


def _signs(vector: Any) -> Any:
    """Return bits as +1 and -1, whichever way they are stored."""
    if not vector or -1 in vector or not any(vector):
        return vector
    return [1.0 if each > 0 else -1.0 for each in vector]
