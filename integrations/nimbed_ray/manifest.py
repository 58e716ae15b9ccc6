"""The manifest of a folder of parts: how its parts are made, and which ones complete it.

``_nimbed.json`` is written before the first part: a folder is for one vector space, one role and
one size of part, and a run that asks for anything else is refused before it embeds a text.
``_complete.json`` is written when every part is there, and lists them in the dataset's order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nimbed.errors import ConfigurationError, InputError
from nimbed.files.arrow import FileContract
from nimbed.spec import require_same_space
from nimbed_ray.folder import Folder
from nimbed_ray.parts import Attempts, Part, copy_name, is_part

__all__ = [
    "COMPLETE",
    "SETTINGS",
    "FolderSettings",
    "OnStale",
    "begin",
    "complete",
    "parts_of",
    "read_settings",
]

#: Names of the two files.
SETTINGS, COMPLETE = "_nimbed.json", "_complete.json"
#: ``raise``, or ``delete``: what happens to parts whose rows the dataset no longer has.
OnStale = Literal["raise", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSettings:
    """What every part of a folder has in common.

    Attributes:
        label: The contract of the vectors, and the columns of text and id.
        truncate: What happened to texts that were too long.
        nulls: Whether rows without a vector are kept, with a null and a reason.
        rows_per_part: Rows of the dataset that became one part.
    """

    label: FileContract
    truncate: str
    nulls: bool
    rows_per_part: int

    def facts(self) -> dict[str, object]:
        """Return everything but the spec, as JSON types."""
        return {
            "input_type": self.label.input_type,
            "text_field": self.label.text_field,
            "id_field": self.label.id_field,
            "truncate": self.truncate,
            "nulls": self.nulls,
            "rows_per_part": self.rows_per_part,
        }


def read_settings(folder: Folder) -> FolderSettings | None:
    """Return the settings that a folder was started with, or None if it was not started.

    Raises:
        InputError: If the file was damaged.
    """
    found = folder.read(SETTINGS)
    if found is None:
        return None
    try:
        facts: dict[str, Any] = json.loads(found)
        label = {key.encode(): value.encode() for key, value in facts["label"].items()}
        return FolderSettings(
            label=FileContract.from_metadata(label, source=SETTINGS),
            truncate=facts["truncate"],
            nulls=bool(facts["nulls"]),
            rows_per_part=int(facts["rows_per_part"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.address_of(SETTINGS)} is damaged: {error}") from None


def begin(folder: Folder, asked: FolderSettings) -> None:
    """Prepare a folder for a run: write its settings, or check that they are those asked for.

    From now on the folder is incomplete, and what an earlier run attempted is forgotten.

    Raises:
        SpaceMismatchError: If the folder holds vectors of another space.
        ConfigurationError: If it was started with another role or other options, or has parquet
            files that are not nimbed's.
        InputError: If its settings were damaged.
    """
    settings = read_settings(folder)
    if settings is None:
        _write_settings(folder, asked)
    else:
        ours, theirs = settings.label.spec, asked.label.spec
        require_same_space(ours, theirs, doing=f"put into {folder.address}")
        existing = settings.facts()
        for name, value in asked.facts().items():
            if existing[name] != value:
                raise ConfigurationError(
                    f"{folder.address} was started with {name} {existing[name]!r}; got {value!r}; "
                    f"ask for the same, or use another folder"
                )
    folder.delete(COMPLETE)
    Attempts(folder).clear()


def _write_settings(folder: Folder, settings: FolderSettings) -> None:
    foreign = next((name for name in folder.names() if name.endswith(".parquet")), None)
    if foreign is not None:
        raise ConfigurationError(
            f"{folder.address} holds {foreign!r}, which nimbed did not write there; use an empty "
            f"folder"
        )
    label = settings.label.to_metadata()
    facts = {
        "label": {key.decode(): value.decode() for key, value in label.items()},
        "truncate": settings.truncate,
        "nulls": settings.nulls,
        "rows_per_part": settings.rows_per_part,
    }
    folder.make()
    folder.write(SETTINGS, json.dumps(facts, ensure_ascii=False, indent=2).encode() + b"\n")


def complete(folder: Folder, parts: Sequence[Part], on_stale: OnStale) -> int:
    """Make a folder hold the given parts and nothing else, and list them.

    Args:
        folder: Holds each of the parts at least once.
        parts: In the order of the dataset; the same one may occur several times.
        on_stale: What happens to other parts.

    Returns:
        How many parts were deleted.

    Raises:
        ConfigurationError: If there are others, and ``on_stale`` is ``raise``.
    """
    names: list[str] = []
    seen: Counter[str] = Counter()
    for part in parts:
        # The second of two parts with the same rows gets a file of its own.
        seen[part.name] += 1
        name = copy_name(part.name, seen[part.name])
        content = folder.read(part.name) if name != part.name else None
        if content is not None:
            folder.write(name, content)
        names.append(name)
    folder.sweep()
    stale = sorted({name for name in folder.names() if is_part(name)} - set(names))
    if stale and on_stale == "raise":
        raise ConfigurationError(
            f"{folder.address} holds {len(stale)} parts whose rows the dataset does not have "
            f"({stale[0]}, …): its rows or their order changed. Every part of the dataset is "
            f"there too; call again with on_stale='delete', or use another folder"
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
            f"{output} is not complete; call embed_into_parts again, which makes what is missing"
        )
    return [folder.address_of(name) for name in json.loads(found)["parts"]]
