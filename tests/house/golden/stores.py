"""How every database of ``nimbed.stores`` takes every type: its field, and two vectors encoded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from nimbed import FakeEmbedder, VectorSpec, stores
from nimbed.errors import ConfigurationError

KINDS = ("float", "int8", "uint8", "binary", "ubinary")


def record(folder: Path) -> Any:
    found: dict[str, Any] = {}
    for kind in KINDS:
        batch = FakeEmbedder().embed(
            ["a cat", "a dog"], input_type="passage", embedding_type=kind, dimensions=16
        )
        for name in stores.names():
            field = stores.field(batch.spec, name, emulate=True)
            found[f"{name} {kind}"] = {
                # The wording of the note is an editor's; that there is one is a fact.
                **{key: value for key, value in field.to_dict().items() if key != "note"},
                "emulated": bool(field.note),
                "encoded": [_plain(vector) for vector in field.encode(batch)],
            }
    for dimensions in (1536, 2000, 2048, 4000, 4096, 65536):
        for kind in KINDS:
            spec = VectorSpec.of(model="m", dimensions=dimensions, embedding_type=kind)
            found[f"{kind} of {dimensions}"] = {name: _type(spec, name) for name in stores.names()}
    return found


def _type(spec: VectorSpec, name: str) -> str:
    try:
        return stores.field(spec, name, emulate=True).type
    except ConfigurationError:
        return "refused"


def _plain(vector: Any) -> Any:
    if isinstance(vector, bytes):
        return f"bytes {vector.hex()}"
    if isinstance(vector, np.ndarray):
        return [str(vector.dtype), *(round(value, 6) for value in vector.tolist())]
    if isinstance(vector, list):
        return [round(value, 6) if isinstance(value, float) else value for value in vector]
    return vector if isinstance(vector, str) else f"{type(vector).__name__} {_digest(vector)}"


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
