"""The files of golden values, and what it means to be equal to them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Each is a module here with a function ``record(folder)``, and a JSON file of what it returned.
PARTS = ("cards", "fake", "minilm", "families", "stores", "remote", "server", "command", "postgres")


def record(name: str, folder: Path) -> Any:
    """Return today's values of a part, as JSON would give them back."""
    values = importlib.import_module(f"tests.house.golden.{name}").record(folder)
    return json.loads(json.dumps(values))


def read(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text("utf-8"))


def write(name: str, folder: Path) -> int:
    text = json.dumps(record(name, folder), ensure_ascii=False, indent=1) + "\n"
    (HERE / f"{name}.json").write_text(_flat(text), "utf-8")
    return len(_flat(text).encode())


def differences(
    old: Any, new: Any, *, within: float = 0.0, may_grow: bool = False, at: str = ""
) -> list[str]:
    """Return where two trees of JSON differ.

    Args:
        old: What was written down.
        new: What is there now.
        within: By how much floats may differ.
        may_grow: Whether the new tree may have more names.
        at: Where in the tree this is.
    """
    how: Any = {"within": within, "may_grow": may_grow}
    if isinstance(old, float) or isinstance(new, float):
        alike = isinstance(old, int | float) and isinstance(new, int | float)
        return [] if alike and abs(old - new) <= within else [f"{at}: {old} became {new}"]
    if type(old) is not type(new):
        return [f"{at}: {old!r} became {new!r}"]
    if isinstance(old, dict):
        found = [f"{at}/{key} is gone" for key in old.keys() - new.keys()]
        if not may_grow:
            found += [f"{at}/{key} is new" for key in new.keys() - old.keys()]
        for key in old.keys() & new.keys():
            found += differences(old[key], new[key], **how, at=f"{at}/{key}")
        return sorted(found)
    if isinstance(old, list):
        if len(old) != len(new):
            return [f"{at}: {len(old)} became {len(new)}: {old!r:.600} became {new!r:.600}"]
        return [
            line
            for row, (one, other) in enumerate(zip(old, new, strict=True))
            for line in differences(one, other, **how, at=f"{at}/{row}")
        ]
    return [] if old == new else [f"{at}:\n  {old!r}\nbecame\n  {new!r}"]


def _flat(text: str) -> str:
    """Put every innermost list on one line: a vector is a line, not sixty-four."""
    lines: list[str] = []
    inside: list[str] | None = None
    for line in text.splitlines():
        bare = line.strip()
        if inside is not None:
            inside.append(bare)
            if bare.startswith("]"):
                lines.append(_joined(inside))
                inside = None
            elif bare.endswith(("[", "{")) and bare not in ("[],", "{},"):
                lines.extend(inside[:-1])
                inside = [line] if bare.endswith("[") else None
                if inside is None:
                    lines.append(line)
        elif bare.endswith("["):
            inside = [line]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _joined(parts: list[str]) -> str:
    return parts[0] + " ".join(parts[1:-1]) + parts[-1]
