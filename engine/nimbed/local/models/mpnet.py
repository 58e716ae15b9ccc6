"""MPNet (all-mpnet-base-v2, multi-qa-mpnet): BERT with a bias for the distance between tokens.

The state dict is that of ``transformers.MPNetModel``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from nimbed.local.attention import DistanceBias
from nimbed.local.device import Placement
from nimbed.local.models.bert import Bert
from nimbed.local.models.fields import first_position, whole
from nimbed.local.weights import Tensors

__all__ = ["mpnet"]

# transformers has both numbers in its code and ignores config.json's.
_BUCKETS, _FURTHEST = 32, 128

_NAMES = {
    "attention.attn.q.": "attention.self.query.",
    "attention.attn.k.": "attention.self.key.",
    "attention.attn.v.": "attention.self.value.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
}


def mpnet(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read an MPNet encoder; see :class:`nimbed.local.models.bert.Bert`."""
    tensors = tensors.stripped("mpnet.", renamed=_NAMES)
    first = first_position(config)
    longest = whole(config, "max_position_embeddings") - first
    table = tensors.placed(
        Placement(placement.device, torch.float32),
        "encoder.relative_attention_bias.weight",
        _BUCKETS,
        whole(config, "num_attention_heads"),
    )
    behind = torch.arange(1 - longest, longest, device=placement.device)
    added = table[_bucket(behind)].t().contiguous()
    return Bert(
        {**config, "type_vocab_size": 0},
        tensors,
        placement,
        padding=first - 1,
        bias=DistanceBias(added.to(placement.dtype) if placement.device.type == "cuda" else added),
    )


def _bucket(behind: torch.Tensor) -> torch.Tensor:
    """Return the bucket of a key so far behind its query: T5's, exact nearby, then logarithmic.

    In transformers' order of operations, in float32, so that none lies on the other side of a
    border.
    """
    half, exact = _BUCKETS // 2, _BUCKETS // 4
    distance = behind.abs()
    further = torch.log(distance.float() / exact) / math.log(_FURTHEST / exact) * (half - exact)
    far = (exact + further.long()).clamp_max(half - 1)
    return torch.where(distance < exact, distance, far) + (behind > 0).long() * half
