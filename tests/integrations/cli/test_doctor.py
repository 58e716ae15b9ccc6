from __future__ import annotations

import json

import pytest
import typer
from tests.engine.remote.conftest import no_keys, serve
from tests.engine.remote.players import E5, nim, plain
from typer.testing import CliRunner

from nimbed_cli.doctor import doctor

__all__ = ["no_keys", "serve"]  # fixtures


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(doctor)
    return lambda *words: CliRunner().invoke(app, words)


def test_a_healthy_server_is_described_line_by_line(serve, run):
    url = serve(nim()).url
    result = run("--base-url", url, "--model", E5)
    assert result.exit_code == 0, result.output
    assert "speaks nim" in result.output
    assert "latency of 32" in result.output
    assert f"embed texts.txt -o vectors.npy --input-type passage --base-url {url} --model {E5}" in (
        " ".join(result.output.split())
    )


def test_a_server_that_swallows_roles_fails_the_command(serve, run):
    words = ("--base-url", serve(plain()).url, "--model", E5, "--dialect", "nim", "--json")
    result = run(*words)
    assert result.exit_code == 1
    findings = {each["name"]: each["verdict"] for each in json.loads(result.output)}
    assert findings["roles"] == "fail"
