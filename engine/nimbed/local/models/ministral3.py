"""Bidirectional Ministral 3 (Nemotron-3-Embed): Llama with queries that grow with the position.

The state dict is that of ``transformers.Ministral3Model``.
"""

from __future__ import annotations

from typing import Any

import torch

from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.models.fields import real, whole
from nimbed.local.models.llama import Llama, QueryScale
from nimbed.local.rope import rope_parameters
from nimbed.local.weights import Tensors

__all__ = ["ministral3"]


def ministral3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Ministral 3 encoder; see :class:`nimbed.local.models.llama.Llama`."""
    asked = rope_parameters(config)
    scale = None
    if asked.get("llama_4_scaling_beta"):
        beta = real(asked, "llama_4_scaling_beta")
        scale = _query_scale(beta, whole(asked, "original_max_position_embeddings"), placement)
    return Llama(config, tensors, placement, query_scale=scale)


def _query_scale(beta: float, trained: int, placement: Placement) -> QueryScale:
    def scale(layout: Layout) -> torch.Tensor | None:
        if layout.longest <= trained:
            return None  # the logarithm of 1 everywhere
        turns = torch.floor(layout.positions / trained)
        return (1 + beta * torch.log1p(turns)).to(placement.dtype)

    return scale
