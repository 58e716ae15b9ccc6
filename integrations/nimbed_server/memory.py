"""How much memory the process holds, on the machine and on its devices."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path

from nimbed_server.metrics import Metrics

__all__ = ["watch_memory"]


def watch_memory(metrics: Metrics) -> None:
    """Let the metrics read the memory of the CPU's side and of each CUDA device."""
    metrics.watch_memory("cpu", _resident)
    torch = sys.modules.get("torch")  # a server that only proxies never imports it
    if torch is None or not torch.cuda.is_available():
        return
    for number in range(torch.cuda.device_count()):
        metrics.watch_memory(
            f"cuda:{number}", functools.partial(torch.cuda.memory_reserved, number)
        )


def _resident() -> float:
    """Return the resident bytes of this process; 0 where the system has no /proc."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    return 0.0
