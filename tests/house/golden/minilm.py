"""Ten vectors of the real MiniLM, in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nimbed

TEXTS = [
    "What is NVIDIA?",
    "gzip compresses a file.",
    "naïve café ½ 東京 🙂",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "tabs\tand\nlines",
    "SELECT id FROM passages WHERE id = 1;",
    "Ein Satz auf Deutsch, der von Vektoren handelt.",
    "word " * 300,
    "It stands on page 7 of a book that nobody has written yet.",
]


def record(folder: Path) -> Any:
    with nimbed.load(device="cpu", dtype="float32", backend="torch") as embedder:
        batch = embedder.embed(TEXTS, input_type="passage", truncate="END")
    return {
        "fingerprint": batch.spec.fingerprint,
        "tokens": batch.token_counts.tolist(),
        "truncated": list(batch.truncated),
        "vectors": [[round(value, 7) for value in row] for row in batch.vectors.tolist()],
    }
