"""A ``nimbed`` for shell blocks that has its imports done: each command is a fork of one process.

A command of its own spends two seconds on importing torch, and the pages have dozens of them.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

# It hands arguments, folder, variables and the three streams over, and leaves with the exit code;
# told to stop, it passes that on by closing its side.
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    said = [sys.argv, os.getcwd(), dict(os.environ)]
    socket.send_fds(there, [json.dumps(said).encode() + b"\\n"], [0, 1, 2])
    signal.signal(signal.SIGTERM, lambda *_: there.shutdown(socket.SHUT_WR))
    sys.exit(int(there.recv(3) or b"1"))
"""
IMPORTED = (
    *("nimbed_cli.main", "nimbed.local.embedder", "nimbed.local.engine"),
    *("nimbed_pgvector.table", "nimbed_tradeoff", "nimbed_weaviate"),
)


@contextmanager
def warm_command() -> Generator[Path]:
    """Yield a folder for ``PATH`` with a program ``nimbed`` that works while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="nimbed-") as folder:
        address, program = Path(folder) / "socket", Path(folder) / "nimbed"
        program.write_text(SHIM.format(python=sys.executable, address=str(address)))
        program.chmod(0o755)
        command = [sys.executable, "-m", "tests.house.warm_command", str(address)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield Path(folder)
        finally:
            process.terminate()
            process.communicate()


def main(address: str) -> None:
    """Run commands, a child each, until SIGTERM."""
    # Registered first, it is called last: torch takes most of a second to be taken down.
    code: list[int] = []
    atexit.register(lambda: os._exit(code[0]) if code else None)
    for name in IMPORTED:
        importlib.import_module(name)
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as ready:
        listener.bind(address)
        listener.listen()
        ready.register(listener, selectors.EVENT_READ)
        os.write(1, b"ready\n")
        while True:
            for key, _ in ready.select(0.01 if running else None):
                if key.data:  # its shim was told to stop
                    ready.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGTERM)
                    continue
                asking, _ = listener.accept()
                said, streams, _, _ = socket.recv_fds(asking, 2**20, 3)
                while not said.endswith(b"\n"):
                    said += asking.recv(2**20)
                child = os.fork()
                if child == 0:
                    for each in (listener, asking, *running.values()):
                        each.close()
                    run(*json.loads(said), streams, code)
                for stream in streams:
                    os.close(stream)
                running[child] = asking
                ready.register(asking, selectors.EVENT_READ, child)
            for child in list(running):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    with running.pop(child) as asking:
                        if asking in ready.get_map():
                            ready.unregister(asking)
                        asking.send(str(os.waitstatus_to_exitcode(status) % 256).encode())


def run(
    arguments: list[str],
    folder: str,
    variables: dict[str, str],
    streams: list[int],
    code: list[int],
) -> NoReturn:
    """Be the command, and end as it does."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = arguments
    try:
        importlib.import_module("nimbed_cli.main").main()
    except SystemExit as left:
        code.append(left.code if isinstance(left.code, int) else 1)
        raise


if __name__ == "__main__":
    main(sys.argv[1])
