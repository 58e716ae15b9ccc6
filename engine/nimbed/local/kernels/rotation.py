"""Rotary position embedding of packed queries and keys, in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["rotate_"]


@triton.jit
def _rotate(x, cos, sin, heads, row_stride, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < half)
    place = x + row * row_stride + head * 2 * half + column
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    angle = row * half + column
    c = tl.load(cos + angle, mask=column < half, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=column < half, other=0.0).to(tl.float32)
    kind = x.dtype.element_ty
    tl.store(place, (first * c - second * s).to(kind), mask=inside)
    tl.store(place + half, (second * c + first * s).to(kind), mask=inside)


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate both halves of each head in place.

    Args:
        x: Of shape (rows, heads, head_dim); heads lie end to end, rows at any distance.
        cos: Cosines of each row's angles, contiguous, rows * head_dim / 2 of them.
        sin: Sines, likewise.

    Returns:
        x itself.
    """
    rows, heads, head_dim = x.shape
    half = head_dim // 2
    block = triton.next_power_of_2(half)
    at_once = min(triton.next_power_of_2(heads), max(1, 2048 // block))
    _rotate[(rows, triton.cdiv(heads, at_once))](
        x, cos, sin, heads, x.stride(0), half, HEADS=at_once, HALF=block, num_warps=4
    )
    return x
