"""What torch's variable-length attention does on CUDA, done anywhere, and by every model."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from nimbed.local.attention import ByVarlen, by_length
from nimbed.local.models import bert, gemma3, llama, modernbert, rotary_bert


def varlen(
    q,
    k,
    v,
    offsets_q,
    offsets_k,
    longest_q,
    longest_k,
    *,
    enable_gqa=False,
    window_size=(-1, -1),
):
    """Attend within the sequences that the offsets cut, and look at nothing else."""
    assert offsets_q.dtype == torch.int32
    out = torch.zeros_like(q)
    ends = offsets_q.tolist()
    for start, stop in itertools.pairwise(ends):
        assert stop - start <= longest_q
        rows = slice(start, stop)
        query, key, value = (x[rows].transpose(0, 1) for x in (q, k, v))
        if stop > start:
            place = torch.arange(stop - start, device=q.device)
            ahead = place[None] - place[:, None]
            before, behind = (stop if side < 0 else side for side in window_size)
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=(ahead >= -before) & (ahead <= behind),
                enable_gqa=enable_gqa,
            )
            out[rows] = attended.transpose(0, 1)
    return out


def attend_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every model attend by offsets; one that adds a bias, by a kernel of ours if any."""

    def attend(placement, causal=False, window=None, bias=None, head_dim=None):
        if bias is not None and head_dim not in (32, 64, 128):
            return functools.partial(by_length, bias=bias)
        return ByVarlen(varlen, causal=causal, window=window, bias=bias)

    for module in (bert, gemma3, llama, modernbert, rotary_bert):
        monkeypatch.setattr(module, "attention_for", attend)
