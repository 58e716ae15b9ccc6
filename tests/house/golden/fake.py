"""Vectors of the embedder without a model, in every type, role and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nimbed import FakeEmbedder

TEXTS = ["a cat", "東京 café", "word " * 600]


def record(folder: Path) -> Any:
    found: dict[str, Any] = {}
    for role in ("query", "passage"):
        for kind, scale in (
            ("float", None),
            ("int8", "even"),
            ("int8", "nim"),
            ("uint8", "even"),
            ("uint8", "nim"),
            ("binary", None),
            ("ubinary", None),
        ):
            for dimensions in (16, 64):
                batch = FakeEmbedder().embed(
                    TEXTS,
                    input_type=role,
                    embedding_type=kind,
                    dimensions=dimensions,
                    int8_scale=scale,
                    truncate="END" if role == "passage" else "START",
                )
                found[" ".join(filter(None, (role, kind, scale, str(dimensions))))] = {
                    "fingerprint": batch.spec.fingerprint,
                    "tokens": batch.token_counts.tolist(),
                    "truncated": list(batch.truncated),
                    "vectors": [[_short(value) for value in row] for row in batch.vectors.tolist()],
                }
    return found


def _short(value: float) -> float:
    # Sums of squares end on another last bit where the processor adds in another order.
    return value if isinstance(value, int) else round(value, 7)
