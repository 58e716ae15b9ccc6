"""Qwen3 (Qwen3-Embedding): a causal decoder whose queries and keys are normalised head by head.

The state dict is that of ``transformers.Qwen3Model``.
"""

from __future__ import annotations

from typing import Any

from nimbed.errors import CheckpointError
from nimbed.local.device import Placement
from nimbed.local.models.fields import only
from nimbed.local.models.llama import Llama
from nimbed.local.weights import Tensors

__all__ = ["qwen3"]


def qwen3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Qwen3 decoder; see :class:`nimbed.local.models.llama.Llama`."""
    only(config, use_sliding_window=False)
    kinds = set(config.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise CheckpointError(
            f"config.json has layer_types {sorted(kinds)}; nimbed knows full ones"
        )
    causal = config.get("is_causal", True) is not False
    return Llama(config, tensors, placement, causal=causal, head_norms=True)
