"""The ``nimbed`` command: registers every subcommand, and turns errors into exit codes.

A command is one file beside this one and one line below. Engine, numpy and rich are imported
inside the commands, so that ``nimbed --help`` is immediate.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from nimbed_cli.audit import audit
from nimbed_cli.doctor import doctor
from nimbed_cli.embed import embed
from nimbed_cli.load import load
from nimbed_cli.migrate import migrate
from nimbed_cli.models import models
from nimbed_cli.quickstart import quickstart
from nimbed_cli.search import search
from nimbed_cli.serve import SERVE_OPTIONS, serve
from nimbed_cli.sync import sync
from nimbed_cli.tradeoff import tradeoff

__all__ = ["app", "main"]

# Turns for which OpenMP's threads wait busily for each other; its own default is 300,000. Beside
# another busy process a batch then takes seconds, since they spin for a thread that does not run.
_SPINS = "3000"

# How a text that is too long is mended, in the engine's words and in a command's.
_IN_PYTHON = "split the text, or pass truncate='END' or 'START'"
_TYPED = "split the texts by --chunk TOKENS, or pass --truncate END or START"

app = typer.Typer(
    name="nimbed",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the boxes leave half of 80 columns for the words
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart)
app.command()(embed)
app.command(short_help="Serve models to clients of NVIDIA's NIM and of OpenAI.", **SERVE_OPTIONS)(
    serve
)
app.command(short_help="Load a file into a table of PostgreSQL, and index it.")(load)
app.command()(search)
app.command(short_help="Embed a table that exists, and follow its changes.")(sync)
app.command(short_help="Take a table to another model or type, while it is used.")(migrate)
app.command(short_help="Say what the vectors of a table or a collection are.")(audit)
app.command()(tradeoff)
app.command()(models)
app.command(short_help="Check what a server or a Weaviate can be trusted with.")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        from nimbed.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")
    ] = False,
) -> None:
    """Embeddings that carry their contract: texts to vectors for vector databases."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: What was typed after ``nimbed``; None takes it from the process, which then ends
            here, without what Python does at its end.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in typed
    if debug:
        typed = ["--debug", *(word for word in typed if word != "--debug")]
    # Like Ctrl-C, a request to stop must unwind, or temporary files stay behind.
    signal.signal(signal.SIGTERM, _stop)
    _share_cores()
    try:
        app(args=typed, prog_name="nimbed")
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 0
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if debug:
            raise
        sentence, code = _describe(error)
        typer.echo(f"Error: {sentence}", err=True)
    _flush()
    if arguments is None and "nimbed_server" not in sys.modules:
        # Libraries of inference take 0.3 s to be taken down. A server's traces are sent then.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


def _describe(error: Exception) -> tuple[str, int]:
    """Return what to tell the person at the terminal, and the exit code.

    2: what was typed, or the file that was given, cannot work. 1: the machine, the model or the
    server failed.
    """
    from nimbed.errors import BackendError, MissingExtraError, NimbedError

    if isinstance(error, NimbedError):
        said = str(error).replace(_IN_PYTHON, _TYPED)
        return said, 1 if isinstance(error, (BackendError, MissingExtraError)) else 2
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return f"{what}: {error.filename}" if error.filename else what, 1
    if isinstance(error, MemoryError):
        return "the machine has no memory left", 1
    return (
        f"nimbed failed unexpectedly, {type(error).__name__}: {error}\n"
        f"run the command again with --debug and report what it prints"
    ), 1


def _share_cores() -> None:
    """Leave the cores to other processes in between, unless somebody has said how.

    OpenMP reads this when torch is imported. A process of ours may choose; a library may not.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def _flush() -> None:
    """Write what is left, and say nothing if nobody reads it any more, as in ``| head``."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
