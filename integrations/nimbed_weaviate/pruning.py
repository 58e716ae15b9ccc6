"""Objects that an input has no more: rows that vanished, and the last chunks of documents."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from weaviate.classes.query import Filter
from weaviate.util import generate_uuid5

from nimbed.bulk import InputIds
from nimbed.chunks import document_of
from nimbed_weaviate.calls import Calls
from nimbed_weaviate.properties import ID

__all__ = ["prune", "trim"]

# Objects that are read at a time, and looked for or deleted by one request.
_PAGE = 1000
# Chunks of a document that are looked for beyond its end at a time, once there is one.
_STEP = 64


def prune(calls: Calls, collection: Any, kept: InputIds) -> int:
    """Delete the objects of imports that the input has not; return how many.

    Raises:
        InputError: If there was no row, or one whose id could not be read.
    """
    kept.require_all()
    return sum(
        _delete(calls, collection, kept.vanished(names)) for names in _imported(calls, collection)
    )


def trim(calls: Calls, collection: Any, documents: Sequence[tuple[str, int]]) -> int:
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
        yield [name for name, uuid in pairs if name and uuid == generate_uuid5(name)]


def _there(calls: Calls, collection: Any, names: Sequence[str]) -> list[str]:
    by_uuid = {generate_uuid5(name): name for name in names}
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
        uuids = [generate_uuid5(name) for name in names[start : start + _PAGE]]
        where = Filter.by_id().contains_any(uuids)
        removed += calls(functools.partial(collection.data.delete_many, where=where)).successful
    return removed
