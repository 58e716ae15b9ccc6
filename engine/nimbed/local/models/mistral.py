"""Mistral (e5-mistral, SFR) and Ministral 3 (Nemotron-3-Embed), causal or looking both ways.

Llama with windows, and, in Ministral, with queries that grow with their position. The state dicts
are those of ``transformers.MistralModel`` and ``transformers.Ministral3Model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.models.causality import is_causal
from nimbed.local.models.fields import only, real, rope_parameters, whole
from nimbed.local.models.llama import Llama, QueryScale
from nimbed.local.weights import Tensors

__all__ = ["ministral3", "mistral"]

# transformers' own, for a configuration that leaves it out.
_USUAL_WINDOW = 4096


def mistral(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Mistral; see :class:`nimbed.local.models.llama.Llama`.

    NVIDIA's own bidirectional type names a sliding window that its models were trained without.
    """
    causal = is_causal(config)
    if config.get("model_type") == "bidir_mistral":
        return Llama(config, tensors, placement, causal=causal)
    only(config, attention_bias=False)
    windows = _windows({"sliding_window": _USUAL_WINDOW, **config}, causal)
    return Llama(config, tensors, placement, causal=causal, windows=windows)


def ministral3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Ministral 3; see :class:`nimbed.local.models.llama.Llama`."""
    only(config, attention_bias=False)
    asked = rope_parameters(config)
    scale = None
    if asked.get("llama_4_scaling_beta"):
        beta = real(asked, "llama_4_scaling_beta")
        scale = _query_scale(beta, whole(asked, "original_max_position_embeddings"), placement)
    causal = is_causal(config)
    windows = _windows(config, causal)
    return Llama(config, tensors, placement, query_scale=scale, causal=causal, windows=windows)


def _windows(config: Mapping[str, Any], causal: bool) -> list[int | None]:
    """Return how far each layer's tokens see; transformers counts a causal token itself, too."""
    layers = whole(config, "num_hidden_layers")
    if config.get("sliding_window") is None:
        return [None] * layers
    return [whole(config, "sliding_window") - causal] * layers


def _query_scale(beta: float, trained: int, placement: Placement) -> QueryScale:
    def scale(layout: Layout) -> torch.Tensor | None:
        if layout.longest <= trained:
            return None  # the logarithm of 1 everywhere
        turns = torch.floor(layout.positions / trained)
        return (1 + beta * torch.log1p(turns)).to(placement.dtype)

    return scale
