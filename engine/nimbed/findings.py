"""Findings of a check: what was examined, how it stands, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Verdict"]

#: ``ok``; ``note``: works, because nimbed does a part of the work; ``fail``: must be mended.
Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined.

    Attributes:
        name: What was examined.
        verdict: How it stands.
        detail: What was seen, with numbers.
    """

    name: str
    verdict: Verdict
    detail: str
