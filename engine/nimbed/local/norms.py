"""Layer norm and root-mean-square norm over the last dimension, statistics in float32 always.

Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nimbed.local.device import Placement
from nimbed.local.tensors import Tensors

__all__ = ["LayerNorm", "RmsNorm"]

# Rows normalised at a time where torch has no fused kernel: 2,048 wide they stay in the cache.
_ROWS = 128


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """(x - mean) / √(variance + eps) · weight + bias."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x of any shape (..., width), normalised."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    @classmethod
    def read(
        cls, tensors: Tensors, name: str, width: int, placement: Placement, *, eps: float
    ) -> LayerNorm:
        """Read weight and bias of a name."""
        return cls(
            tensors.placed(placement, f"{name}.weight", width),
            tensors.placed(placement, f"{name}.bias", width),
            eps,
        )


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / √(mean(x²) + eps) · weight."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x of shape (rows, width), normalised."""
        if not x.is_cpu or x.dtype == torch.float32:
            return self._whole(x)
        # On the CPU torch makes three passes over a float32 copy. Part by part they stay in the
        # cache: 1.7 ms instead of 10 for 1,920 rows of 2,048, and the same bits.
        out = torch.empty_like(x)
        for part, normed in zip(torch.split(x, _ROWS), torch.split(out, _ROWS), strict=True):
            normed.copy_(self._whole(part))
        return out

    @classmethod
    def read(
        cls, tensors: Tensors, name: str, width: int, placement: Placement, *, eps: float
    ) -> RmsNorm:
        """Read the weight of a name."""
        return cls(tensors.placed(placement, f"{name}.weight", width), eps)

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
