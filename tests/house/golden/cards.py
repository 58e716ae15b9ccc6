"""Fingerprints of every card in the catalogue, in every form that the model offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nimbed import cards

REVISION = "0123456789abcdef0123456789abcdef01234567"


def record(folder: Path) -> Any:
    return {card.id: _forms(card) for card in cards.catalogue() if "dense" in card.kinds}


def _forms(card: cards.ModelCard) -> dict[str, str]:
    forms: dict[str, str] = {}
    for dimensions in {card.sizes[0], card.dimensions}:
        for kind, scale in (
            ("float", None),
            ("int8", "even"),
            ("int8", "nim"),
            ("uint8", "even"),
            ("uint8", "nim"),
            ("binary", None),
            ("ubinary", None),
        ):
            if kind.endswith("binary") and dimensions % 8:
                continue
            if kind != "float" and card.metric != "cosine":
                continue  # no other type keeps the length of vectors
            spec = card.spec(embedding_type=kind, dimensions=dimensions, int8_scale=scale)
            forms[f"{kind} {scale or ''} {dimensions}".replace("  ", " ")] = spec.fingerprint
    forms["float, pinned"] = card.spec(revision=REVISION).fingerprint
    return dict(sorted(forms.items()))
