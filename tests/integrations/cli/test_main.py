import os
import signal
import subprocess
import sys
import time

import pytest

from nimbed import cards
from nimbed.errors import (
    BackendError,
    ConfigurationError,
    InputError,
    install_line,
    missing_extra,
)
from nimbed.version import __version__
from nimbed_cli import main as command_line


def test_the_version_is_that_of_the_package(nimbed_command):
    outcome = nimbed_command("--version")
    assert (outcome.code, outcome.out) == (0, f"{__version__}\n")


def test_help_names_every_command_in_80_columns(nimbed_command):
    outcome = nimbed_command("--help")
    assert outcome.code == 0
    for command in ("quickstart", "embed", "models", "--version", "--debug"):
        assert command in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_help_imports_neither_the_engine_nor_what_it_stands_on():
    code = (
        "import sys\n"
        "from nimbed_cli.main import main\n"
        "try:\n"
        "    main(['embed', '--help'])\n"
        "except SystemExit:\n"
        "    print(sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Usage: nimbed embed" in result.stdout
    loaded = result.stdout.splitlines()[-1]
    for heavy in ("'nimbed'", "'numpy'", "'rich'", "'torch'", "'pyarrow'", "'httpx'"):
        assert heavy not in loaded


@pytest.mark.parametrize(("words", "code"), [(["models"], 0), (["models", "nobody's/model"], 2)])
def test_a_process_ends_with_its_command_and_waits_for_no_library(words, code):
    program = (
        "import atexit, sys; from nimbed_cli.main import main\n"
        "atexit.register(print, 'taken down')\n"
        f"sys.argv = ['nimbed', *{words!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code
    assert "taken down" not in done.stdout
    if code:
        assert done.stderr.startswith("Error: ")
    else:  # all of it
        assert {line.split()[0] for line in done.stdout.splitlines()} >= {
            card.id for card in cards.catalogue()
        }


@pytest.mark.parametrize("said", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_share_the_cores_unless_somebody_has_said_how(nimbed_command, said, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, said.get(name, ""))
        if name not in said:
            monkeypatch.delenv(name)
    nimbed_command("--version")
    spins = os.environ.get("GOMP_SPINCOUNT")
    assert spins == said.get("GOMP_SPINCOUNT", None if said else spins)
    assert said or int(spins or 0) < 300_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embd"], "No such command 'embd'"),
        (["embed"], "Missing argument"),
        (["embed", "in.txt", "-o", "out.npy"], "Missing option '--input-type'"),
        (["models", "--dimensions", "many"], "Invalid value for '--dimensions'"),
    ],
)
def test_what_cannot_be_parsed_is_misuse(nimbed_command, arguments, message):
    outcome = nimbed_command(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigurationError("ask for less"), 2, "Error: ask for less\n"),
        (InputError("line 3 is blank", rows=[3]), 2, "Error: line 3 is blank\n"),
        (BackendError("the model failed"), 1, "Error: the model failed\n"),
        (missing_extra("parquet", needs="pyarrow"), 1, install_line("parquet") + "\n"),
        (OSError(28, "No space left on device", "x.npy"), 1, "No space left on device: x.npy\n"),
        (MemoryError(), 1, "no memory left"),
        (KeyError("oops"), 1, "KeyError: 'oops'\nrun the command again with --debug"),
    ],
)
def test_an_error_is_a_sentence_and_a_code_never_a_traceback(
    nimbed_command, monkeypatch, error, code, message
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("nimbed.cards.catalogue", fail)
    outcome = nimbed_command("models")
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.err.startswith("Error: ")
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(place):
    arguments = ["models", "no such model"]
    arguments.insert(place, "--debug")
    with pytest.raises(ConfigurationError, match="no such model"):
        command_line.main(arguments)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_job_says_how_to_go_on_and_leaves_nothing_behind(
    nimbed_process, tmp_path, number, code
):
    (tmp_path / "in.txt").write_text("text\n" * 10_000)
    output = tmp_path / "out.parquet"
    process = nimbed_process(
        "embed", tmp_path / "in.txt", "-o", output, "--input-type", "query", pause=0.2
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".out.parquet.*.partial")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    hint = f"stopped; {output} is as it was, and the same command begins anew; `nimbed load` "
    assert err.startswith(hint) if number == signal.SIGINT else err == ""
    assert err.count("\n") == (number == signal.SIGINT)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_reader_that_has_gone_is_no_error(nimbed_process):
    process = nimbed_process("models", "--json")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=30)
    assert err == ""
    assert process.returncode in (0, 1)
