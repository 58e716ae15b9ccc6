"""What every part of a folder has in common, written before the first part.

A folder is for one space, one role and one way of cutting: a run that promises anything else is
refused before it embeds a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nimbed.errors import ConfigurationError, InputError
from nimbed.files.arrow import FileContract as Label
from nimbed.spec import require_same_space
from nimbed_ray.folder import Folder

__all__ = ["PROMISE", "Promise", "keep_promise", "read_promise"]

#: Name of the file.
PROMISE = "_nimbed.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What every part of a folder has in common.

    Attributes:
        label: The contract of the vectors, and the columns of text and id.
        truncate: What happened to texts that were too long.
        nulls: Whether rows without a vector are kept, with a null and a reason.
        rows_per_part: Rows of the dataset that became one part.
    """

    label: Label
    truncate: str
    nulls: bool
    rows_per_part: int

    def shown(self) -> dict[str, object]:
        """Return everything but the spec, as JSON types."""
        return {
            "input_type": self.label.input_type,
            "text_field": self.label.text_field,
            "id_field": self.label.id_field,
            "truncate": self.truncate,
            "nulls": self.nulls,
            "rows_per_part": self.rows_per_part,
        }


def read_promise(folder: Folder) -> Promise | None:
    """Return what a folder was begun with, or None if it was not begun.

    Raises:
        InputError: If the file was damaged.
    """
    found = folder.read(PROMISE)
    if found is None:
        return None
    try:
        facts: dict[str, Any] = json.loads(found)
        label = {key.encode(): value.encode() for key, value in facts["label"].items()}
        return Promise(
            label=Label.from_metadata(label, source=PROMISE),
            truncate=facts["truncate"],
            nulls=bool(facts["nulls"]),
            rows_per_part=int(facts["rows_per_part"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.address_of(PROMISE)} is damaged: {error}") from None


def keep_promise(folder: Folder, promise: Promise, begun: Promise | None) -> None:
    """Write the promise into a folder that was not begun, or check that it is the same.

    Raises:
        SpaceMismatchError: If the folder holds vectors of another space.
        ConfigurationError: If it holds another role or was made with other options, or files
            that are not nimbed's.
    """
    if begun is None:
        _begin(folder, promise)
        return
    require_same_space(begun.label.spec, promise.label.spec, doing=f"put into {folder.address}")
    had = begun.shown()
    for name, value in promise.shown().items():
        if had[name] != value:
            raise ConfigurationError(
                f"{folder.address} was begun with {name} {had[name]!r}; got {value!r}; give the "
                f"same, or another folder"
            )


def _begin(folder: Folder, promise: Promise) -> None:
    stranger = next((name for name in folder.names() if name.endswith(".parquet")), None)
    if stranger is not None:
        raise ConfigurationError(
            f"{folder.address} holds {stranger!r}, which nimbed did not write there; give an empty "
            f"folder"
        )
    label = promise.label.to_metadata()
    facts = {
        "label": {key.decode(): value.decode() for key, value in label.items()},
        "truncate": promise.truncate,
        "nulls": promise.nulls,
        "rows_per_part": promise.rows_per_part,
    }
    folder.make()
    folder.write(PROMISE, json.dumps(facts, ensure_ascii=False, indent=2).encode() + b"\n")
