"""Search of a collection by a question's meaning, which is embedded as a query."""

from __future__ import annotations

import asyncio
import datetime
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from weaviate.classes.config import DataType
from weaviate.classes.query import Filter, MetadataQuery
from weaviate.collections import Collection, CollectionAsync
from weaviate.outputs.config import CollectionConfig

from nimbed import Embedder, VectorSpec, stores
from nimbed.chunks import CHUNK_FIELDS
from nimbed.embedder import giving
from nimbed.errors import ConfigurationError
from nimbed.kinds import require_comparable
from nimbed.spec import MultiVectorSpec, require_same_space
from nimbed_weaviate.calls import Calls, in_thread
from nimbed_weaviate.connection import translate_errors
from nimbed_weaviate.indexes import VectorSetup, vector_setups
from nimbed_weaviate.properties import (
    DIGEST,
    ID,
    StoredSpec,
    contract_of,
    digest_properties,
    places_of,
    require_unmoved,
)

__all__ = ["Hit", "asearch", "find_contract", "parse_filter", "search"]

# Chunks that are looked for to find a document, at first; Weaviate gives 10,000 objects at most.
_CHUNKS_A_DOCUMENT, _MOST = 4, 10_000
_CONDITION = re.compile(
    r"\s*(?P<name>[_A-Za-z]\w*)\s*(?P<how>!=|<=|>=|=|<|>|\blike\b)\s*(?P<value>.+?)\s*", re.ASCII
)
_HOW = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less_than",
    "<=": "less_or_equal",
    ">": "greater_than",
    ">=": "greater_or_equal",
    "like": "like",
}


@dataclass(frozen=True, slots=True)
class Hit:
    """An object that was found.

    Attributes:
        id: The row's id; the object's uuid where no import of nimbed made it.
        text: Its text.
        metadata: Its other properties.
        distance: Weaviate's, by the metric of the vector's index; smaller is closer.
    """

    id: str
    text: str
    metadata: Mapping[str, Any]
    distance: float


def search(
    collection: Collection[Any, Any],
    question: str,
    k: int = 10,
    *,
    embedder: Embedder | None = None,
    vector: str | None = None,
    text_property: str = "text",
    filters: Any = None,
    group: bool = False,
) -> list[Hit]:
    """Return the objects nearest to a question, nearest first.

    Args:
        collection: The collection; with its tenant, if it has tenants.
        question: What is asked.
        k: How many to find.
        embedder: Embeds the question as a query; it must be of the vectors' space. None leaves it
            to the vector's module.
        vector: The vector's name, where there are several.
        text_property: The property with the text.
        filters: Weaviate's own filter.
        group: One object a document, where the collection holds chunks.

    Raises:
        SpaceMismatchError: If the embedder's vectors are of another space than the collection's.
        ConfigurationError: If nothing can embed the question, or there is no such vector.
        BackendError: If Weaviate or the model failed.
    """
    return _search(
        Calls(budget=0), collection, question, k,
        embedder=embedder, vector=vector, text_property=text_property, filters=filters, group=group,
    )  # fmt: skip


async def asearch(
    collection: CollectionAsync[Any, Any],
    question: str,
    k: int = 10,
    *,
    embedder: Embedder | None = None,
    vector: str | None = None,
    text_property: str = "text",
    filters: Any = None,
    group: bool = False,
) -> list[Hit]:
    """Do what :func:`search` does, through Weaviate's async client."""
    calls = Calls(budget=0, loop=asyncio.get_running_loop())
    # The same methods; what they return is awaited where the calls are made.
    same = cast("Collection[Any, Any]", collection)
    job = functools.partial(
        _search, calls, same, question, k,
        embedder=embedder, vector=vector, text_property=text_property, filters=filters, group=group,
    )  # fmt: skip
    return await in_thread(job, calls)


def _search(
    calls: Calls,
    collection: Collection[Any, Any],
    question: str,
    k: int,
    *,
    embedder: Embedder | None,
    vector: str | None,
    text_property: str,
    filters: Any,
    group: bool,
) -> list[Hit]:
    if k < 1:
        raise ConfigurationError(f"k must be at least 1; got {k}")
    if not question or question.isspace():
        raise ConfigurationError("the question is blank")
    with translate_errors(f"searching the collection {collection.name}"):
        config = calls(collection.config.get)
        setup, contract = _asked(calls, collection, config, vector)
        asked: dict[str, Any] = {
            "target_vector": setup.name or None,
            "filters": filters,
            "return_metadata": MetadataQuery(distance=True),
        }
        if embedder is None:
            if setup.module == "none":
                raise ConfigurationError(
                    f"no module embeds questions for the collection {collection.name}; pass the "
                    f"embedder that made its vectors"
                )
            near: Callable[..., Any] = functools.partial(
                collection.query.near_text, question, **asked
            )
        else:
            numbers = _question(embedder, question, contract, collection.name)
            near = functools.partial(collection.query.near_vector, numbers, **asked)
        if not group:
            return [
                _hit(each, text_property)
                for each in calls(functools.partial(near, limit=k)).objects
            ]
        if all(each.name != CHUNK_FIELDS[0] for each in config.properties):
            raise ConfigurationError(
                f"the collection {collection.name} holds no chunks; search it without group"
            )
        limit = k
        while True:  # a few documents may have all of the nearest chunks
            limit = min(limit * _CHUNKS_A_DOCUMENT, _MOST)
            found = calls(functools.partial(near, limit=limit)).objects
            first: dict[str, Hit] = {}
            for each in found:
                hit = _hit(each, text_property)
                first.setdefault(str(hit.metadata.get(CHUNK_FIELDS[0], hit.id)), hit)
            if len(first) >= k or len(found) < limit or limit == _MOST:
                return list(first.values())[:k]


def find_contract(
    collection: Collection[Any, Any], vector: str | None = None
) -> VectorSpec | MultiVectorSpec | None:
    """Return the contract of a collection's vector, or None if no import of nimbed made it.

    Raises:
        ConfigurationError: If there is no such collection or vector.
    """
    with translate_errors(f"reading the collection {collection.name}"):
        return _asked(Calls(budget=0), collection, collection.config.get(), vector)[1]


def parse_filter(conditions: Sequence[str], config: CollectionConfig) -> Any:
    """Return Weaviate's filter for conditions such as ``page >= 3``, which must all hold.

    Args:
        conditions: A property, one of ``= != < <= > >= like``, and a value; a text may be quoted.
        config: The collection's, for the types of its properties.

    Raises:
        ConfigurationError: If a condition is none, or its property is unknown.
    """
    kinds = {each.name: each.data_type for each in config.properties}
    made: list[Any] = []
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None:
            raise ConfigurationError(
                f"a filter is a property, one of = != < <= > >= like, and a value, such as "
                f"'page >= 3'; got {condition!r}"
            )
        name = found["name"]
        if name not in kinds:
            known = ", ".join(repr(each) for each in kinds if not each.startswith(DIGEST))
            raise ConfigurationError(
                f"the collection {config.name} has no property {name!r}; it has {known}"
            )
        value = _typed(name, found["value"], kinds[name])
        made.append(getattr(Filter.by_property(name), _HOW[found["how"]])(value))
    return Filter.all_of(made) if len(made) > 1 else made[0] if made else None


def _typed(name: str, word: str, kind: DataType) -> Any:
    """Return a word as the type of its property, which Weaviate compares with nothing else."""
    plain = word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word
    try:
        if kind in (DataType.INT, DataType.INT_ARRAY):
            return int(plain)
        if kind in (DataType.NUMBER, DataType.NUMBER_ARRAY):
            return float(plain)
        if kind in (DataType.BOOL, DataType.BOOL_ARRAY):
            return {"true": True, "false": False}[plain.lower()]
        if kind in (DataType.DATE, DataType.DATE_ARRAY):
            when = datetime.datetime.fromisoformat(plain)
            return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    except (ValueError, KeyError) as error:
        raise ConfigurationError(f"{name} is of type {kind.value}; got {word!r}") from error
    return plain


def _asked(
    calls: Calls, collection: Collection[Any, Any], config: CollectionConfig, vector: str | None
) -> tuple[VectorSetup, StoredSpec | None]:
    require_unmoved(config)
    setups = {setup.name: setup for setup in vector_setups(config)}
    vector = vector or places_of(config).searched
    name = next(iter(setups)) if vector is None and len(setups) == 1 else vector
    if name is None or name not in setups:
        raise ConfigurationError(
            f"say which vector of the collection {collection.name} to search, with vector=...: it "
            f"has {', '.join(map(repr, setups))}"
        )
    known = digest_properties(calls, collection, config)
    return setups[name], contract_of(config, known.get(name, ""))


def _question(
    embedder: Embedder, question: str, contract: StoredSpec | None, name: str
) -> list[Any]:
    """Return a question's vector, or its tokens' vectors, as Weaviate takes it."""
    if isinstance(contract, MultiVectorSpec):
        asked = (
            giving(embedder, "multi")
            .embed_kinds([question], kinds=("multi",), input_type="query")
            .multi
        )
        assert asked is not None
        require_comparable(asked.spec, contract)
        tokens: Any = stores.field(asked.spec, "weaviate").encode(asked)
        return list(tokens[0])
    if contract is None:
        batch = embedder.embed([question], input_type="query")
    else:
        batch = embedder.embed(
            [question],
            input_type="query",
            embedding_type=contract.embedding_type,
            dimensions=contract.dimensions,
            int8_scale=contract.int8_scale,
        )
        require_same_space(contract, batch.spec, doing=f"search the collection {name}")
    encoded: Any = stores.field(batch.spec, "weaviate").encode(batch)
    return list(encoded[0])


def _hit(found: Any, text_property: str) -> Hit:
    properties = {
        name: value
        for name, value in found.properties.items()
        if value is not None and not name.startswith(DIGEST)
    }
    name = properties.pop(ID, None) or str(found.uuid)
    text = properties.pop(text_property, None)
    if text is None:  # of an object that somebody else made: what a module would embed
        texts = [value for _, value in sorted(properties.items()) if isinstance(value, str)]
        text = " ".join(texts)
    return Hit(str(name), str(text), properties, float(found.metadata.distance or 0.0))
