import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

import nimbed
from nimbed_cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def nimbed_command(capsys):
    """Run the command in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(left.value.code, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def fake_model(monkeypatch):
    """Let every model name stand for the fake embedder; gives what load was asked for."""
    asked = []

    def load(model=None, **options):
        asked.append((model, options))
        return nimbed.FakeEmbedder()

    monkeypatch.setattr(nimbed, "load", load)
    return asked


@pytest.fixture
def narrow_terminal(monkeypatch):
    """Let rich take the captured output for a terminal of 80 columns without colours."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "dumb"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)


FAKE = """
import time, nimbed
from nimbed_cli.main import main

class Slow(nimbed.FakeEmbedder):
    def embed(self, inputs, **options):
        time.sleep({pause})
        return super().embed(inputs, **options)

nimbed.load = lambda *_, **__: Slow()
main()
"""


@pytest.fixture
def nimbed_process():
    """Start the command in a process of its own, with the fake embedder."""
    started = []

    def start(*arguments, pause=0, **options):
        command = [sys.executable, "-c", FAKE.format(pause=pause), *map(str, arguments)]
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        environment = {**os.environ, "COLUMNS": "80"}
        process = subprocess.Popen(command, env=environment, text=True, **{**pipes, **options})
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
