"""A load whose every answer is held against the right vectors: requests with ids, sent in slots."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from english import queries
from http_load import Load, request

INPUTS = 8
GROUPS = [queries(INPUTS, seed=seed) for seed in range(24)]
NUMBER = re.compile(rb"x-request-id: (load-\d+-\d+)")
VECTOR = re.compile(rb'"embedding":"([^"]+)"')


class Numbered(Sequence[bytes]):
    """Requests without end, each with an id that says which texts it holds."""

    def __init__(self) -> None:
        bodies = [
            {"model": "m", "input": group, "input_type": "query", "encoding_format": "base64"}
            for group in GROUPS
        ]
        self._bodies = [json.dumps(body).encode() for body in bodies]
        self._count = 0

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, turn):
        self._count += 1
        group = self._count % len(GROUPS)
        number = f"x-request-id: load-{self._count}-{group}"
        return request(self._bodies[group], headers=[number])


@dataclass
class Checked(Load):
    """Answers held against the right vectors, and sent no faster than ``rate`` a second."""

    right: Sequence[np.ndarray] = ()
    rate: float | None = None
    admitted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    ended: list[float] = field(default_factory=list)
    _slot: float = 0.0

    def saw(self, sent: bytes, answer: bytes, seconds: float) -> None:
        super().saw(sent, answer, seconds)
        if self.statuses[-1] == 200:
            self.admitted.append(seconds)
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in VECTOR.findall(answer)]
            group = int(named(sent).rpartition("-")[2])
            if not np.allclose(rows, self.right[group], atol=1e-6, rtol=0):
                self.wrong.append("a vector is not that of embed(...)")
            self.ended.append(time.perf_counter())
        elif self.statuses[-1] == 503 and b"retry-after:" in answer:
            self.refused.append(seconds)
        else:
            self.wrong.append(answer[:200].decode("latin-1"))

    def served(self, begin: float, end: float) -> float:
        """Return right answers a second between two moments, in seconds since the beginning."""
        return sum(begin < ended - self.began <= end for ended in self.ended) / (end - begin)

    def pause(self) -> float:
        if self.rate is None:
            return 0.0
        now = time.perf_counter()
        self._slot = max(self._slot, now - 0.1) + 1 / self.rate
        return self._slot - now


def named(sent: bytes) -> str:
    """Return the id of a request."""
    found = NUMBER.search(sent)
    assert found is not None
    return found[1].decode()
