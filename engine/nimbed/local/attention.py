"""Attention over packed sequences: the one seam between models and platforms.

Each sequence attends to itself alone. Every implementation gives the same answer, and a test says
so.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from nimbed.local import kernels
from nimbed.local.attention_windows import ByWindow
from nimbed.local.batching import Layout
from nimbed.local.device import Placement

__all__ = ["Attention", "ByVarlen", "attention_for", "by_length", "follows_rows"]

# Head sizes of nimbed.local.kernels.varlen_attention, known without importing triton.
_FUSED_SIZES = (32, 64, 128)


class Attention(Protocol):
    """Attends within each sequence of a packed batch."""

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """Return softmax(q·kᵀ/√head_dim)·v within each sequence.

        Args:
            q: Queries of shape (rows, heads, head_dim).
            k: Keys of shape (rows, key_heads, head_dim); heads is a multiple of key_heads.
            v: Values, shaped as k.
            layout: Where the sequences lie.

        Returns:
            Tensor of shape (rows, heads * head_dim); padding rows hold finite numbers.
        """
        ...


def attention_for(placement: Placement, *, causal: bool = False) -> Attention:
    """Choose the implementation for a device and dtype.

    Args:
        placement: Device and dtype.
        causal: Whether a token attends to itself and those before it alone.
    """
    plain = functools.partial(by_length, causal=True) if causal else by_length
    if placement.on_cpu and placement.dtype == torch.bfloat16 and not (_has_amx() or causal):
        # Without AMX torch's fused kernel multiplies bfloat16 at float32 speed; oneDNN's batched
        # products use AVX512-BF16 (measured 1.9x at 64 to 512 tokens).
        return ByWindow()
    if placement.device.type == "cuda" and placement.dtype != torch.float32:
        return ByVarlen.if_available(causal=causal) or plain
    return plain


def follows_rows(placement: Placement) -> bool:
    """Whether what attention launches depends on the number of rows alone, not on the lengths."""
    return isinstance(attention_for(placement), ByVarlen)


def by_length(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """Attend with torch's fused kernel, once a run of equally long sequences."""
    out = torch.zeros_like(q)
    for start, count, length in layout.groups:
        rows = slice(start, start + count * length)
        query, key, value = (
            x[rows].view(count, length, x.shape[1], x.shape[2]).transpose(1, 2) for x in (q, k, v)
        )
        share = q.shape[1] // k.shape[1]
        if share > 1 and q.is_cuda:
            # Grouped heads in float32 would fall to a kernel that holds length² scores in memory.
            key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
            share = 1
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=causal, enable_gqa=share > 1
        )
        out[rows] = attended.transpose(1, 2).flatten(0, 1)
    return out.flatten(1)


class ByVarlen:
    """Attend by offsets, one launch for the whole batch: on CUDA, in half precision.

    A kernel of our own takes the usual head sizes, torch's variable-length kernel the others. The
    padding is one more sequence, so that every row is written. The signature of torch's grew: 2.10
    and 2.11 take grouped heads unasked, 2.12 wants ``enable_gqa``; ``num_splits`` (1 makes a
    sequence independent of its batch) came with 2.13.
    """

    def __init__(self, kernel: Callable[..., torch.Tensor], *, causal: bool = False) -> None:
        self._kernel, self._causal = kernel, causal
        known = inspect.signature(kernel).parameters
        self._groups_heads = "enable_gqa" in known
        self._options: dict[str, Any] = {"num_splits": 1} if "num_splits" in known else {}
        if causal:
            window = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
            self._options |= window

    @classmethod
    def if_available(cls, *, causal: bool = False) -> ByVarlen | None:
        """Return it where this torch has the kernel (2.10 and later), else None."""
        try:
            module = importlib.import_module("torch.nn.attention.varlen")
        except ImportError:
            return None
        return cls(module.varlen_attn, causal=causal)

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """Attend within each sequence; see :class:`Attention`."""
        if q.shape[2] in _FUSED_SIZES and kernels.usable(q.device):
            from nimbed.local.kernels.varlen_attention import attend

            return attend(q, k, v, layout.spans, layout.longest_span, causal=self._causal)
        options: dict[str, Any] = dict(self._options)
        if self._groups_heads and q.shape[1] != k.shape[1]:
            options["enable_gqa"] = True
        spans, longest = layout.spans, layout.longest_span
        return self._kernel(q, k, v, spans, spans, longest, longest, **options).flatten(1)


@functools.cache
def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
