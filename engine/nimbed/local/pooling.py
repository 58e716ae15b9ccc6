"""Token states in, one vector a sequence out, in float32."""

from __future__ import annotations

import torch

from nimbed.cards import Pooling
from nimbed.local.layout import Layout

__all__ = ["pool"]


def pool(hidden: torch.Tensor, layout: Layout, how: Pooling) -> torch.Tensor:
    """Pool packed token states.

    Args:
        hidden: States of shape (layout.rows, width), any float dtype.
        layout: Where the sequences lie.
        how: ``mean`` over the pooled tokens of a sequence, ``cls``, its first token, or
            ``latent``, the mean again: NV-Embed's model has done the rest before.

    Returns:
        float32 of shape (sequences, width).
    """
    if how == "cls":
        return hidden[layout.starts].float()
    # Sums in float32: in bfloat16 a mean over 500 tokens would lose four bits.
    if layout.pooled is None:
        states, offsets = hidden[: layout.tokens], layout.offsets
    else:
        states, offsets = hidden[layout.pooled.rows], layout.pooled.offsets
    return torch.segment_reduce(states.float(), "mean", offsets=offsets.long(), axis=0)
