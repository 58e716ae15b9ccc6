"""The linters, type checkers and layer contracts, run as tests so that one command is enough."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKS = (
    "ruff check .",
    "ruff format --check .",
    "mypy",
    f"pyright --pythonpath {sys.executable}",
    "lint-imports --no-cache",
)


@pytest.mark.parametrize("command", CHECKS, ids=lambda command: " ".join(command.split()[:2]))
def test_the_house_rules_hold(command):
    program, *arguments = command.split()
    beside = Path(sys.executable).parent / program
    done = subprocess.run([beside, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
