"""What CONTRIBUTING.md and the pre-commit hooks say to run is what the tests run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.house.test_checks import CHECKS
from tests.house.test_readme import blocks

ROOT = Path(__file__).parents[2]
SET_UP, *REST = (code for _, code in blocks("bash", ROOT / "CONTRIBUTING.md"))
COMMANDS = [line for code in REST for line in code.splitlines()]
HOOKS = [
    hook["entry"]
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
]


def here(command: str) -> str:
    """Return a command as this environment has it."""
    return command.replace(".venv/bin/python", sys.executable).removeprefix(".venv/bin/")


def test_the_set_up_is_the_one_of_the_ci():
    ((_, ci),) = [block for block in blocks("bash") if block[0] == "ci: test"]
    steps = [step.replace(" -q ", " ").strip() for step in ci.split("&&")]
    assert SET_UP.splitlines() == steps[1:3]  # behind the check of the version


@pytest.mark.parametrize("command", [each for each in COMMANDS if " -m pytest" not in each])
def test_every_check_is_one_that_the_tests_run(command):
    assert here(command) in CHECKS


def test_every_check_that_the_tests_run_is_there():
    assert set(CHECKS) <= set(map(here, COMMANDS))


@pytest.mark.parametrize("command", [each for each in COMMANDS if " -m pytest" in each])
def test_every_pytest_command_finds_tests(command):
    # Options alone stand for the whole suite, which takes half a minute to collect.
    folder = [] if "tests/" in command else ["tests/house"]
    words = [*shlex.split(here(command)), *folder, "--collect-only", "-qq"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("entry", HOOKS)
def test_every_hook_is_a_check(entry):
    assert here(entry) in CHECKS
