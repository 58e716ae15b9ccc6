"""Which parts make up a folder, and in which order: written when all of them are there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from nimbed.errors import ConfigurationError
from nimbed_ray.folder import Folder
from nimbed_ray.parts import Part, copy_name, is_part
from nimbed_ray.tries import Tries

__all__ = ["COMPLETE", "OnStale", "complete", "parts_of", "reopen"]

#: Name of the file that is there when every part is; lists them in the dataset's order.
COMPLETE = "_complete.json"
#: ``raise``, or ``delete``: what becomes of parts whose rows the dataset has no more.
OnStale = Literal["raise", "delete"]


def reopen(folder: Folder) -> None:
    """Say that a folder is not complete, and forget how an earlier run ended."""
    folder.delete(COMPLETE)
    Tries(folder).forget()


def complete(folder: Folder, parts: Sequence[Part], on_stale: OnStale) -> int:
    """Make a folder hold the given parts and nothing else, and list them.

    Args:
        folder: Holds each of the parts at least once.
        parts: In the order of the dataset; the same one may occur several times.
        on_stale: What becomes of other parts.

    Returns:
        How many parts were deleted.

    Raises:
        ConfigurationError: If there are others, and ``on_stale`` is ``raise``.
    """
    names = _names(parts)
    for part, name in zip(parts, names, strict=True):
        content = folder.read(part.name) if name != part.name else None
        if content is not None:
            folder.write(name, content)
    folder.sweep()
    stale = sorted({name for name in folder.names() if is_part(name)} - set(names))
    if stale and on_stale == "raise":
        raise ConfigurationError(
            f"{folder.address} holds {len(stale)} parts whose rows the dataset does not have "
            f"({stale[0]}, …): its rows or their order changed. Every part of the dataset is "
            f"there too; call again with on_stale='delete', or give another folder"
        )
    for name in stale:
        folder.delete(name)
    facts = {"rows": sum(part.rows for part in parts), "parts": names}
    folder.write(COMPLETE, json.dumps(facts, indent=1).encode() + b"\n")
    return len(stale)


def parts_of(output: str) -> list[str]:
    """Return the addresses of a complete folder's parts, in the order of the dataset.

    Raises:
        ConfigurationError: If the folder is not complete.
    """
    folder = Folder.at(output)
    found = folder.read(COMPLETE)
    if found is None:
        raise ConfigurationError(
            f"{output} is not complete; call embed_into_parts again, it makes what is missing"
        )
    return [folder.address_of(name) for name in json.loads(found)["parts"]]


def _names(parts: Sequence[Part]) -> list[str]:
    """Return a name for every part; the second of two with the same rows gets its own."""
    met: Counter[str] = Counter()
    names: list[str] = []
    for part in parts:
        met[part.name] += 1
        names.append(copy_name(part.name, met[part.name]))
    return names
