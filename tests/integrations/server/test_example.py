"""The compose file and the settings in examples/ say what the command understands."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml
from typer.testing import CliRunner

from nimbed_cli.main import app
from nimbed_server import Settings
from nimbed_weaviate import headers
from nimbed_weaviate.connection import Module

FOLDER = Path(__file__).parents[3] / "examples" / "weaviate"


@pytest.fixture
def services():
    """The services, with the variables of the sample put in as an engine would."""
    given = dict(
        line.split("=", 1)
        for line in (FOLDER / ".env.example").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    )
    text = (FOLDER / "compose.yaml").read_text("utf-8")
    used = set()

    def value(found):
        used.add(found["name"])
        return given.get(found["name"], found["default"] if found["how"] == ":-" else None)

    pattern = r"\$\{(?P<name>\w+)(?P<how>:-|:\?)(?P<default>[^}]*)\}"
    filled = re.sub(pattern, value, text)
    assert "$" not in filled
    assert given.keys() <= used
    compose = yaml.safe_load(filled)
    named = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
    }
    assert named == set(compose["volumes"])
    return compose["services"]


def test_the_compose_files_flags_are_those_of_the_command(services, monkeypatch):
    service = services["nimbed"]
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
    assert "change-me" not in done.output


def test_weaviate_starts_behind_a_healthy_server_and_sends_its_key(services):
    weaviate, server = services["weaviate"], services["nimbed"]
    assert weaviate["depends_on"] == {"nimbed": {"condition": "service_healthy"}}
    assert "HEALTHCHECK" in (FOLDER / server["build"]["dockerfile"].split("/")[-1]).read_text()
    assert (FOLDER / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    environment = weaviate["environment"]
    modules = environment["ENABLE_MODULES"].split(",")
    assert set(modules) <= set(get_args(Module))
    # text2vec-transformers sends none.
    assert "text2vec-transformers" not in modules
    for module in modules:
        (sent,) = (
            value
            for name, value in headers("http://nimbed:8000", api_key="k", module=module).items()
            if name.endswith("Api-Key")
        )
        assert sent == "k"
        variable = f"{module.split('-')[1].upper()}_APIKEY"
        assert environment[variable] == server["environment"]["NIMBED_API_KEYS"]
    assert "MODULES_VALIDATE_BASE_URL" not in environment
    # Nobody beyond this machine reaches what is published.
    assert all(port.startswith("127.0.0.1:") for port in weaviate["ports"])
    assert "ports" not in server


def test_the_build_copies_what_there_is():
    root = FOLDER.parents[1]
    for line in (FOLDER / "Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("COPY "):
            for name in line.split()[1:-1]:
                assert (root / name).exists(), name


def test_the_dashboard_and_prometheus_read_what_the_server_writes(plain):
    plain.embed()
    written = set(re.findall(r"^# TYPE (\w+) ", plain.client.get("/metrics").text, re.MULTILINE))
    dashboard = json.loads((FOLDER.parent / "nimbed_server" / "grafana.json").read_text("utf-8"))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"nimbed_\w+", target["expr"]):
                family = re.sub(r"_(bucket|sum|count)$", "", name)
                assert family in written, name
    page = (FOLDER.parent / "serving.md").read_text("utf-8")
    (scraped,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (job,) = yaml.safe_load(scraped)["scrape_configs"]
    # What is not said there is Prometheus's default, and that is where the metrics are.
    assert job.keys() == {"job_name", "static_configs"}
    assert job["static_configs"] == [{"targets": ["localhost:8000"]}]


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
