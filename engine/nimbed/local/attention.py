"""Attention over packed sequences: the one seam between models and platforms.

Each sequence attends to itself alone. Every implementation gives the same answer, and a test says
so.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from nimbed.local import kernels
from nimbed.local.attention_rectangles import ByRectangle
from nimbed.local.batching import Layout
from nimbed.local.device import Placement, has_amx

__all__ = [
    "Attention",
    "ByVarlen",
    "DistanceBias",
    "attention_for",
    "by_length",
    "follow_rows",
]

# Head sizes of nimbed.local.kernels.varlen_attention, known without importing triton.
_FUSED_SIZES = (32, 64, 128)

# Queries of a long text that attend at once through a window: fewer take more launches, more take
# more keys that most of them do not see.
_WINDOW_ROWS = 128


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


class DistanceBias:
    """What is added to a score for how far behind its query a key stands, head by head.

    Args:
        added: Contiguous, of shape (heads, 2 * longest - 1): for keys from longest - 1 before the
            query to as many behind it.

    Attributes:
        added: The same.
    """

    def __init__(self, added: torch.Tensor) -> None:
        self.added = added
        self._layout: Layout | None = None
        self._made: dict[int, torch.Tensor] = {}

    def of(self, length: int, layout: Layout) -> torch.Tensor:
        """Return what is added in a sequence, of shape (1, heads, queries, keys).

        On the CPU it is made once a batch, and serves every layer. Elsewhere it is made anew: it
        costs little, and a batch of many lengths would keep gigabytes.
        """
        if not self.added.is_cpu:
            return self._between(length)
        if self._layout is not layout:
            self._layout, self._made = layout, {}
        if length not in self._made:
            self._made[length] = self._between(length)
        return self._made[length]

    def _between(self, length: int) -> torch.Tensor:
        nearest = self.added.shape[1] // 2
        around = self.added[:, nearest + 1 - length : nearest + length]
        return around.unfold(1, length, 1).flip(1)[None]


def attention_for(
    placement: Placement,
    *,
    causal: bool = False,
    window: int | None = None,
    bias: DistanceBias | None = None,
    head_dim: int | None = None,
) -> Attention:
    """Choose the implementation for a device and dtype.

    Args:
        placement: Device and dtype.
        causal: Whether a token attends to itself and those before it alone.
        window: How many tokens it attends to on either side of itself, or before it if causal;
            None for all. transformers' ``sliding_window`` counts the same in bidirectional models,
            and the token itself besides in causal ones.
        bias: What is added to the scores; for bidirectional attention to every token. On CUDA
            torch has no kernel for it: without our own, such a model attends length by length.
        head_dim: Width of a head, where there is a bias.
    """
    assert bias is None or not (causal or window is not None)
    plain: Attention = functools.partial(by_length, causal=causal, window=window, bias=bias)
    everything = not causal and window is None and bias is None
    if placement.on_cpu and placement.dtype == torch.bfloat16 and everything and not has_amx():
        # Without AMX torch's fused kernel multiplies bfloat16 at float32 speed; oneDNN's batched
        # products use AVX512-BF16 (measured 1.9x at 64 to 512 tokens).
        return ByRectangle()
    if placement.device.type != "cuda" or placement.dtype == torch.float32:
        return plain
    if bias is not None and not (head_dim in _FUSED_SIZES and kernels.usable(placement.device)):
        return plain
    return ByVarlen.if_available(causal=causal, window=window, bias=bias) or plain


def follow_rows(attentions: Iterable[Attention]) -> bool:
    """Whether what these launch depends on the number of rows alone, not on the lengths."""
    return all(isinstance(attention, ByVarlen) for attention in attentions)


def by_length(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    *,
    causal: bool = False,
    window: int | None = None,
    bias: DistanceBias | None = None,
) -> torch.Tensor:
    """Attend with torch's fused kernel, once a run of equally long sequences."""
    out = torch.zeros_like(q)
    first = 0
    for start, count, length in layout.groups:
        seen = None if layout.seen is None else layout.seen[first : first + count]
        first += count
        rows = slice(start, start + count * length)
        query, key, value = (
            x[rows].view(count, length, x.shape[1], x.shape[2]).transpose(1, 2) for x in (q, k, v)
        )
        share = q.shape[1] // k.shape[1]
        if share > 1 and q.is_cuda:
            # Grouped heads in float32 would fall to a kernel that holds length² scores in memory.
            key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
            share = 1
        if seen is not None:
            mask = _mask(length, seen, q.device, causal=causal, window=window)
            if bias is not None:
                mask = bias.of(length, layout).masked_fill(~mask, float("-inf"))
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, enable_gqa=share > 1
            )
        elif window is not None and length > window + 1:
            attended = _within_window(query, key, value, window, causal=causal)
        else:
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=None if bias is None else bias.of(length, layout),
                is_causal=causal,
                enable_gqa=share > 1,
            )
        out[rows] = attended.transpose(1, 2).flatten(0, 1)
    return out.flatten(1)


def _mask(
    length: int, seen: Sequence[int], device: torch.device, *, causal: bool, window: int | None
) -> torch.Tensor:
    """Return which keys each query attends to, of shape (sequences, 1, queries, keys)."""
    places = torch.arange(length, device=device)
    mask = places < torch.tensor(seen, device=device)[:, None, None, None]
    ahead = places - places[:, None]
    if causal:
        mask = mask & (ahead <= 0)
    if window is not None:
        mask = mask & (ahead >= -window) & (ahead <= window)
    return mask.expand(-1, -1, length, -1)


def _within_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, *, causal: bool
) -> torch.Tensor:
    """Attend a block of queries at a time to the keys that any of them sees."""
    out, length = torch.empty_like(query), query.shape[2]
    step = length if length <= _WINDOW_ROWS + 2 * window else _WINDOW_ROWS
    for first in range(0, length, step):
        last = min(first + step, length)
        low, high = max(0, first - window), last if causal else min(length, last + window)
        queries = torch.arange(first, last, device=query.device)
        ahead = torch.arange(low, high, device=query.device) - queries[:, None]
        out[:, :, first:last] = F.scaled_dot_product_attention(
            query[:, :, first:last],
            key[:, :, low:high],
            value[:, :, low:high],
            attn_mask=(ahead >= -window) & (ahead <= (0 if causal else window)),
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out


class ByVarlen:
    """Attend by offsets, one launch for the whole batch: on CUDA, in half precision.

    A kernel of our own takes the usual head sizes, torch's variable-length kernel the others. The
    padding is one more sequence, so that every row is written. The signature of torch's grew: 2.10
    and 2.11 take grouped heads unasked, 2.12 wants ``enable_gqa``; ``num_splits`` (1 makes a
    sequence independent of its batch) came with 2.13.
    """

    def __init__(
        self,
        kernel: Callable[..., torch.Tensor],
        *,
        causal: bool = False,
        window: int | None = None,
        bias: DistanceBias | None = None,
    ) -> None:
        self._kernel, self._causal, self._window, self._bias = kernel, causal, window, bias
        self._by_length = functools.partial(by_length, causal=causal, window=window, bias=bias)
        known = inspect.signature(kernel).parameters
        self._groups_heads = "enable_gqa" in known
        self._options: dict[str, Any] = {"num_splits": 1} if "num_splits" in known else {}
        if "window_size" in known and (causal or window is not None):
            before = -1 if window is None else window
            self._options["window_size"] = (before, 0 if causal else before)
        elif causal:
            self._options["is_causal"] = True

    @classmethod
    def if_available(
        cls,
        *,
        causal: bool = False,
        window: int | None = None,
        bias: DistanceBias | None = None,
    ) -> ByVarlen | None:
        """Return it where this torch has the kernel (2.10 and later, windows later), else None."""
        try:
            module = importlib.import_module("torch.nn.attention.varlen")
        except ImportError:
            return None
        kernel = module.varlen_attn
        if window is not None and "window_size" not in inspect.signature(kernel).parameters:
            return None
        return cls(kernel, causal=causal, window=window, bias=bias)

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """Attend within each sequence; see :class:`Attention`."""
        if layout.seen is not None:
            return self._by_length(q, k, v, layout)
        if q.shape[2] in _FUSED_SIZES and kernels.usable(q.device):
            from nimbed.local.kernels.varlen_attention import attend

            return attend(
                *(q, k, v, layout.spans, layout.longest_span),
                causal=self._causal,
                window=self._window,
                added=None if self._bias is None else self._bias.added,
            )
        options: dict[str, Any] = dict(self._options)
        if self._groups_heads and q.shape[1] != k.shape[1]:
            options["enable_gqa"] = True
        spans, longest = layout.spans, layout.longest_span
        return self._kernel(q, k, v, spans, spans, longest, longest, **options).flatten(1)
