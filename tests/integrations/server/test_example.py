"""The compose file in examples/ says what the command understands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from nimbed_cli.main import app

FOLDER = Path(__file__).parents[3] / "examples" / "weaviate_server"


def test_the_compose_files_flags_are_those_of_the_command(monkeypatch):
    compose = yaml.safe_load((FOLDER / "compose.yml").read_text("utf-8"))
    service = compose["services"]["nimbed"]
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    entry = (FOLDER / "Dockerfile").read_text("utf-8").split("ENTRYPOINT ")[1].split("\n")[0]
    words = json.loads(entry)[1:] + [str(word) for word in service["command"]]
    done = CliRunner().invoke(app, [*words, "--check"])
    assert done.exit_code == 0, (shlex.join(words), done.output)
    settings = json.loads(done.output)
    assert settings["host"] == "0.0.0.0"
    assert settings["truncate"] == "END"
    assert settings["log_format"] == "json"
    assert [alias["name"] for alias in settings["aliases"]] == ["minilm-bits"]


def test_the_build_copies_what_there_is():
    root = FOLDER.parents[1]
    for line in (FOLDER / "Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("COPY "):
            for name in line.split()[1:-1]:
                assert (root / name).exists(), name
