"""MPNet (all-mpnet-base-v2, multi-qa-mpnet): BERT with a bias for the distance between tokens.

The state dict is that of ``transformers.MPNetModel``.
"""

from __future__ import annotations

from typing import Any

import torch

from nimbed.local.attention import DistanceBias
from nimbed.local.device import Placement
from nimbed.local.models.bert import Bert
from nimbed.local.models.fields import (
    MPNET_BUCKETS,
    MPNET_NAMES,
    first_position,
    mpnet_buckets,
    whole,
)
from nimbed.local.weights import Tensors

__all__ = ["mpnet"]


def mpnet(config: dict[str, Any], tensors: Tensors, placement: Placement) -> Bert:
    """Read an MPNet encoder; see :class:`nimbed.local.models.bert.Bert`."""
    tensors = tensors.stripped("mpnet.", renamed=MPNET_NAMES)
    first = first_position(config)
    longest = whole(config, "max_position_embeddings") - first
    table = tensors.placed(
        Placement(placement.device, torch.float32),
        "encoder.relative_attention_bias.weight",
        MPNET_BUCKETS,
        whole(config, "num_attention_heads"),
    )
    buckets = torch.from_numpy(mpnet_buckets(longest)).to(placement.device)
    added = table[buckets].t().contiguous()
    return Bert(
        {**config, "type_vocab_size": 0},
        tensors,
        placement,
        padding=first - 1,
        bias=DistanceBias(added.to(placement.dtype) if placement.device.type == "cuda" else added),
    )
