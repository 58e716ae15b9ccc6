"""What the tests of check() share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HOME = "http://nimbed:8000"
#: Settings of text2vec-nvidia that are in no trap.
GOOD: dict[str, Any] = {"baseURL": HOME, "model": "m", "truncate": "END"}

#: Verdict and detail by the finding's name.
Check = Callable[..., dict[str, tuple[str, str]]]
