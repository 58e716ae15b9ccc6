"""The compose file and the settings in examples/ say what the command understands."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from pathlib import Path

import yaml
from typer.testing import CliRunner

from nimbed_cli.main import app
from nimbed_server import Settings

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


def test_the_sample_of_settings_is_read_and_names_them_rightly(monkeypatch):
    file = FOLDER.parent / "nimbed_server" / "nimbed.toml"
    for name in [name for name in os.environ if name.startswith(("NIMBED_", "NIM_"))]:
        monkeypatch.delenv(name)
    done = CliRunner().invoke(app, ["serve", "--config", str(file), "--check"])
    assert done.exit_code == 0, done.output
    settings = json.loads(done.output)
    assert settings["served_names"] == ["minilm"]
    assert len(settings["aliases"]) == 3
    # What it says of a setting that it leaves alone is the default, and every comment a setting.
    defaults = json.loads(json.dumps(Settings().shown()))
    for name in tomllib.loads(file.read_text("utf-8")).keys() - {
        "models",
        "served_names",
        "aliases",
    }:
        assert settings[name] == defaults[name]
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("# ") and " = " in line:
            tomllib.loads(line.removeprefix("# "))
            assert line.split()[1] in defaults
