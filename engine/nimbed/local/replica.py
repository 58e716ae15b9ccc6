"""An engine as the scheduler sees it: rows of many callers in, pooled vectors out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nimbed.local.engine import Engine
from nimbed.local.outlet import Outlet

__all__ = ["EngineReplica"]


class EngineReplica:
    """One copy of a model on one device; a row is (token ids, tokens left out of the pooling)."""

    def __init__(self, engine: Engine, dimensions: int) -> None:
        self._engine = engine
        self._dimensions = dimensions

    @property
    def budget(self) -> int:
        """Tokens that fill the device at once; halved when its memory ran out."""
        return self._engine.budget

    @property
    def look_ahead(self) -> int:
        """How many budgets of waiting rows to look through for similar lengths."""
        return self._engine.look_ahead

    @property
    def on_host(self) -> bool:
        """Whether the device is the host's own processor."""
        return self._engine.placement.on_cpu

    def embed_rows(self, rows: Sequence[tuple[Sequence[int], int]]) -> NDArray[np.float32]:
        """Return pooled vectors of shape (len(rows), dimensions), not normalised."""
        out = np.empty((len(rows), self._dimensions), np.float32)
        skips = [skip for _, skip in rows]
        outlet = Outlet(out)
        self._engine.launch(
            [ids for ids, _ in rows],
            np.arange(len(rows)),
            outlet,
            skip=skips if any(skips) else None,
        )
        outlet.flush()
        return out
