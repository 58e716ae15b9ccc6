"""How many CPU threads one process of many may use.

Several processes that each take every core slow each other down.
"""

from __future__ import annotations

import os
import sys

__all__ = ["limit_threads"]

# torch reads the first when it is imported, the tokenizers' Rust pool the second when it starts.
_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")


def limit_threads(threads: int | None) -> None:
    """Let this process compute on so many threads; None changes nothing."""
    if threads is None:
        return
    os.environ.update(dict.fromkeys(_VARIABLES, str(threads)))
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
