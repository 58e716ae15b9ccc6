"""A fake embedder that writes down what it embeds, and can be told to die on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import nimbed

ROWS = 20_000
TEXTS = [f"passage {number} of a corpus" for number in range(ROWS)]


def watched(notes: Path, *, deadly: Sequence[str] = (), pause: float = 0.0) -> nimbed.FakeEmbedder:
    """Return an embedder that workers can unpickle: its class is in no module of theirs.

    Args:
        notes: A folder; takes a file a process with the number of texts of each call.
        deadly: Texts that kill the process that meets them, the first time each.
        pause: Seconds that a call takes longer.
    """

    class Watched(nimbed.FakeEmbedder):
        def embed(self, inputs, **options):
            for text in set(deadly).intersection(inputs):
                mark = notes / f"killed-{deadly.index(text)}"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(pause)
            batch = super().embed(inputs, **options)
            self.calls.clear()
            with (notes / f"embedded-{os.getpid()}").open("a") as file:
                file.write(f"{len(inputs)}\n")
            return batch

    return Watched()


def embedded(notes: Path) -> int:
    """Return how many texts were embedded, and forget them."""
    total = 0
    for file in notes.glob("embedded-*"):
        total += sum(int(line) for line in file.read_text().split())
        file.unlink()
    return total


def deaths(notes: Path) -> int:
    return len(list(notes.glob("killed-*")))
