"""Embedders that write down when they compute, and a stub that waits as for a GPU.

A module of its own, since the processes of Ray import it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nimbed
from nimbed import EmbeddingBatch
from nimbed.embedder import Embedder
from nimbed.fake import FAKE_CARD

_MAKING, _DEVICE = threading.Lock(), threading.Lock()


class Waiting(nimbed.FakeEmbedder):
    """Takes a fixed time for a batch, one batch after the other, and hardly any CPU."""

    def __init__(self, seconds: float) -> None:
        super().__init__(replace(FAKE_CARD, dimensions=1024, matryoshka=(1024,)))
        self._seconds = seconds

    def embed(self, inputs: Sequence[Any], **options: Any) -> EmbeddingBatch:
        with _DEVICE:
            time.sleep(self._seconds)
        return super().embed(inputs[:1], **options).select([0] * len(inputs))


class Noted(nimbed.FakeEmbedder):
    """An embedder made where it is used, and a note of every call."""

    def __init__(self, notes: Path, make: Callable[[], Embedder]) -> None:
        super().__init__()
        self._notes = notes
        self._make = make
        self._made: Embedder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def spec(self, **options: Any) -> Any:
        return self._embedder().spec(**options)

    def embed(self, inputs: Sequence[Any], **options: Any) -> EmbeddingBatch:
        embedder = self._embedder()
        begin = time.time()
        batch = embedder.embed(inputs, **options)
        with (self._notes / str(os.getpid())).open("a") as file:
            file.write(json.dumps([begin, time.time(), len(batch)]) + "\n")
        return batch

    def _embedder(self) -> Embedder:
        with _MAKING:
            self._made = self._made or self._make()
        return self._made


def steady(notes: Path, *, processes: int) -> float:
    """Return rows a second from when every process has ended a call to when one ends its last.

    The notes are taken away. A call that is partly within counts in proportion.
    """
    calls: list[list[tuple[float, float, int]]] = []
    for file in notes.iterdir():
        calls.append([json.loads(line) for line in file.read_text().splitlines()])
        file.unlink()
    assert len(calls) == processes, f"{len(calls)} processes computed, expected {processes}"
    start = max(min(end for _, end, _ in mine) for mine in calls)
    stop = min(max(end for _, end, _ in mine) for mine in calls)
    done = sum(
        rows * max(0.0, min(end, stop) - max(begin, start)) / (end - begin)
        for mine in calls
        for begin, end, rows in mine
    )
    return done / (stop - start)
