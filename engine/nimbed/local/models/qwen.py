"""Qwen2 (gte-Qwen2) and Qwen3 (Qwen3-Embedding): decoders, causal unless they say otherwise.

Qwen2 is Llama with biases for queries, keys and values; Qwen3 normalises queries and keys head by
head instead. The state dicts are those of ``transformers.Qwen2Model`` and ``Qwen3Model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nimbed.errors import CheckpointError
from nimbed.local.device import Placement
from nimbed.local.models.causality import is_causal
from nimbed.local.models.fields import only, whole
from nimbed.local.models.llama import Llama
from nimbed.local.weights import Tensors

__all__ = ["qwen2", "qwen3"]

# transformers' own, for a configuration that leaves it out.
_USUAL_FIRST = 28


def qwen2(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Qwen2; see :class:`nimbed.local.models.llama.Llama`."""
    only(config, attention_bias=False)
    causal = is_causal(config)
    windows = _windows(config, causal)
    return Llama(config, tensors, placement, causal=causal, windows=windows, qkv_bias=True)


def qwen3(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Llama:
    """Read a Qwen3; see :class:`nimbed.local.models.llama.Llama`."""
    causal = is_causal(config)
    windows = _windows(config, causal)
    return Llama(config, tensors, placement, causal=causal, windows=windows, head_norms=True)


def _windows(config: Mapping[str, Any], causal: bool) -> list[int | None]:
    """Return how far each layer's tokens see.

    The rule is that of transformers' configurations: layers from ``max_window_layers`` on have the
    window, unless ``layer_types`` says which do, and none has it without ``use_sliding_window``.
    """
    layers = whole(config, "num_hidden_layers")
    slides = config.get("use_sliding_window") is True and config.get("sliding_window") is not None
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", _USUAL_FIRST) if slides else layers
        kinds = [
            "full_attention" if number < first else "sliding_attention" for number in range(layers)
        ]
    known = {"full_attention", "sliding_attention"} if slides else {"full_attention"}
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= known:
        raise CheckpointError(
            f"config.json gives layer_types {kinds!r}; expected one of {', '.join(sorted(known))} "
            f"for each of {layers} layers"
        )
    window = whole(config, "sliding_window") - causal if slides else None
    return [window if kind == "sliding_attention" else None for kind in kinds]
