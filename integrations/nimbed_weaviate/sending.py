"""A chunk of passages and vectors in, what Weaviate refused out.

One object carries its text, its vector and its digest, so nothing can be half there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter
from weaviate.collections import Collection
from weaviate.exceptions import WeaviateInsertManyAllFailedError

from nimbed.files.load_report import Reject
from nimbed_weaviate.contract import DIGEST
from nimbed_weaviate.faults import quiet_client
from nimbed_weaviate.passages import Passage

__all__ = ["is_empty", "known_digests", "send"]


def is_empty(collection: Collection[Any, Any]) -> bool:
    """Whether a collection holds no object."""
    return not collection.query.fetch_objects(limit=1, return_properties=[]).objects


def known_digests(
    collection: Collection[Any, Any], passages: Sequence[Passage]
) -> Mapping[str, str]:
    """Return the digests of those passages that the collection holds, by their uuid."""
    if not passages:
        return {}
    found = collection.query.fetch_objects(
        filters=Filter.by_id().contains_any([passage.uuid for passage in passages]),
        limit=len(passages),
        return_properties=[DIGEST],
    )
    return {str(each.uuid): str(each.properties.get(DIGEST) or "") for each in found.objects}


def send(
    collection: Collection[Any, Any],
    passages: Sequence[Passage],
    vectors: Sequence[Sequence[float]],
    vector_name: str,
) -> list[Reject]:
    """Store passages, replacing those that are there; return what Weaviate refused.

    Args:
        collection: Where to.
        passages: The passages.
        vectors: One a passage, in the form that Weaviate compares.
        vector_name: The vector's name; empty for the single one of older collections.

    Raises:
        weaviate.exceptions.WeaviateBaseError: If Weaviate was not reached; any part may be there.
    """
    objects = [
        DataObject(
            uuid=passage.uuid,
            properties=dict(passage.properties),
            vector={vector_name: vector} if vector_name else vector,
        )
        for passage, vector in zip(passages, vectors, strict=True)
    ]
    try:
        with quiet_client():
            errors = collection.data.insert_many(objects).errors
    except WeaviateInsertManyAllFailedError as error:
        # The client tells which reasons there are, not which is whose.
        return [Reject(each.number, each.id, _reason(error.message)) for each in passages]
    return [
        Reject(passages[place].number, passages[place].id, _reason(error.message))
        for place, error in sorted(errors.items())
    ]


def _reason(said: str) -> str:
    return f"Weaviate refused it: {' '.join(said.split())}"
