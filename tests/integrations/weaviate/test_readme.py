"""The Python of the package's page runs, against a Weaviate's double."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from nimbed import FakeEmbedder
from nimbed.fake import FAKE_CARD

from .double import Double

PAGE = Path(__file__).parents[3] / "integrations" / "nimbed_weaviate" / "README.md"


def test_the_pages_python_runs_and_does_what_it_says(double: Double, client: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    large = FakeEmbedder(dataclasses.replace(FAKE_CARD, id="nimbed/large"))
    named: dict[str, Any] = {
        "client": client,
        "rows": [(n, f"passage number {n}") for n in range(20)],
        "small": FakeEmbedder(),
        "large": large,
    }
    exec(code, named)
    assert len(named["hits"]) == 10
    assert sum(len(inputs) for role, inputs in large.calls if role == "passage") == 20
    assert all(set(vectors) == {"small", "large"} for _, vectors in double.objects["Docs"].values())
