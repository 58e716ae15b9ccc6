"""Objects that an input has no more: rows that vanished, and the last chunks of documents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from weaviate.classes.query import Filter
from weaviate.util import generate_uuid5

from nimbed.bulk import SeenIds
from nimbed.chunks import document_of
from nimbed.errors import InputError
from nimbed.rows import Reject
from nimbed_weaviate.calls import Calls
from nimbed_weaviate.properties import ID

__all__ = ["Kept", "trim"]

# Objects that are read at a time, and looked for or deleted by one request.
_PAGE = 1000
# Chunks of a document that are looked for beyond its end at a time, once there is one.
_STEP = 64


class Kept:
    """The ids of an input, by which objects are known that it has not.

    Rows that were rejected keep what the collection has of them.
    """

    def __init__(self) -> None:
        self.seen = SeenIds()
        self._nameless: Reject | None = None
        self._documents: set[str] = set()

    def noting(self, tell: Callable[[Reject], None]) -> Callable[[Reject], None]:
        """Return a function that remembers a row that was left out, and tells it."""

        def reject(row: Reject) -> None:
            if row.id is None:
                self._nameless = self._nameless or row
            else:
                self.seen.repeated([str(row.id)])
                self._documents.add(document_of(str(row.id)))
            tell(row)

        return reject

    def prune(self, calls: Calls, collection: Any) -> int:
        """Delete the objects of imports that the input has not; return how many.

        Raises:
            InputError: If there was no row, or one whose id could not be read.
        """
        if self._nameless is not None:
            raise InputError(
                f"nothing was pruned, for it is not known which object of the collection is row "
                f"{self._nameless.number}: {self._nameless.reason}; mend it, then load again"
            )
        if not self.seen:
            raise InputError("nothing was pruned: the input holds no row at all")
        removed = 0
        for names in _imported(calls, collection):
            known = self.seen.known(names)
            gone = [
                name
                for place, name in enumerate(names)
                if place not in known and (document_of(name) or name) not in self._documents
            ]
            removed += _delete(calls, collection, gone)
        return removed


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
