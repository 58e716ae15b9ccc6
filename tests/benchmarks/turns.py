"""Contenders that take turns, each in a process of its own.

Threads that spin while they wait, a heap that has learnt from what was freed, an allocator's
settings: all are the process's, and two engines in one would measure each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def in_turn(
    names: Sequence[str], script: str, *arguments: str
) -> Generator[dict[str, Callable[[Any], Any]]]:
    """Start the contenders, and give for each the function that hands it one turn's work.

    Args:
        names: Of the contenders; each is told its own by ``--turns-of``.
        script: Run for each; it does what :func:`take_turns` asks.
        arguments: Of all of them.
    """
    command = [sys.executable, script, *arguments, "--turns-of"]
    pipe = subprocess.PIPE
    processes = {
        name: subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, text=True)
        for name in names
    }

    def turn(process: subprocess.Popen[str], work: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        # The threads of whoever was last spin on for some 50 ms, on the same cores.
        time.sleep(0.2)
        process.stdin.write(json.dumps(work) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        yield {
            name: lambda work, process=process: turn(process, work)
            for name, process in processes.items()
        }
    finally:
        for process in processes.values():
            process.communicate()


def take_turns(work: Callable[[Any], Any]) -> None:
    """Do as standard input says, a line of JSON a turn, and write a line for each."""
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), flush=True)
