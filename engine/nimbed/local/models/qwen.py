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

# transformers' own, for a configuration that leaves them out.
_USUAL = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_FULL, _SLIDING = "full_attention", "sliding_attention"


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
    layers, kinds = whole(config, "num_hidden_layers"), config.get("layer_types")
    facts = {**_USUAL, **config}
    slides = facts["use_sliding_window"] is True and facts["sliding_window"] is not None
    first = facts["max_window_layers"]
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise CheckpointError(f"config.json gives max_window_layers {first!r}, expected a number")
    if kinds is None:
        kinds = [_SLIDING if slides and number >= first else _FULL for number in range(layers)]
    known = (_FULL, _SLIDING) if slides else (_FULL,)
    if not isinstance(kinds, list) or len(kinds) != layers or not all(k in known for k in kinds):
        raise CheckpointError(
            f"config.json gives layer_types {kinds!r}; expected one of {', '.join(known)} for each "
            f"of {layers} layers"
        )
    window = whole(facts, "sliding_window") - causal if slides else None
    return [window if kind == _SLIDING else None for kind in kinds]
