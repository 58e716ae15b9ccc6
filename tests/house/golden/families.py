"""Fingerprint and vectors of every tiny family, in float32 on the CPU.

The builders have fixed seeds, so their files, and what names these files in the fingerprint, are
the same on every machine with the pinned versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.local.families import FAMILIES, TEXTS

import nimbed


def record(folder: Path) -> Any:
    found: dict[str, Any] = {}
    for name, build in FAMILIES.items():
        path = build(folder / name)
        with nimbed.load(str(path), device="cpu", dtype="float32", backend="torch") as embedder:
            found[name] = {"fingerprint": embedder.spec().fingerprint}
            for role in ("query", "passage"):
                batch = embedder.embed(TEXTS, input_type=role)
                found[name][role] = {
                    "tokens": batch.token_counts.tolist(),
                    "vectors": [
                        [round(value, 7) for value in row] for row in batch.vectors.tolist()
                    ],
                }
    return found
