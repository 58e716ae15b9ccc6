"""A ``nimbed`` for shell blocks that has its imports done: each command is a fork of one process.

A command of its own spends two seconds on importing torch, and the pages have dozens of them.
"""

from __future__ import annotations

import atexit
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

# It hands arguments, folder, variables and the three streams over, and leaves with the exit code.
SHIM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    said = [sys.argv, os.getcwd(), dict(os.environ)]
    socket.send_fds(there, [json.dumps(said).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(there.recv(3) or b"1"))
"""


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
    """Run commands until SIGTERM; returns in each child, to run one and to end as it would."""
    # Registered first, it is called last: torch takes most of a second to be taken down.
    code: list[int] = []
    atexit.register(lambda: os._exit(code[0]) if code else None)
    import nimbed_cli.main  # noqa: I001
    import nimbed.local.embedder
    import nimbed.local.engine  # with torch
    import nimbed_pgvector.table
    import nimbed_tradeoff

    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"ready\n")
        with selectors.DefaultSelector() as ready:
            ready.register(listener, selectors.EVENT_READ)
            while True:
                if ready.select(0.01 if running else None):
                    asking, _ = listener.accept()
                    child = os.fork()
                    if child == 0:
                        break
                    running[child] = asking
                for child in list(running):
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        with running.pop(child) as asking:
                            asking.send(str(os.waitstatus_to_exitcode(status) % 256).encode())
    said, streams, _, _ = socket.recv_fds(asking, 2**20, 3)
    while not said.endswith(b"\n"):
        said += asking.recv(2**20)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    arguments, cwd, variables = json.loads(said)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = arguments
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        nimbed_cli.main.main()
    except SystemExit as left:
        code.append(left.code if isinstance(left.code, int) else 1)
        raise


if __name__ == "__main__":
    main(sys.argv[1])
