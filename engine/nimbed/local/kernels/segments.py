"""Means over runs of packed rows, in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["mean_rows"]


@triton.jit
def _mean(x, firsts, ends, out, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    sequence = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    first = tl.load(firsts + sequence).to(tl.int64)
    end = tl.load(ends + sequence).to(tl.int64)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    start = first
    while start < end:
        row = start + tl.arange(0, ROWS)[:, None]
        place = row * width + column[None, :]
        part = tl.load(x + place, mask=(row < end) & inside[None, :], other=0.0)
        total += tl.sum(part.to(tl.float32), axis=0)
        start += ROWS
    mean = total / tl.maximum(end - first, 1).to(tl.float32)
    tl.store(out + sequence.to(tl.int64) * width + column, mean, mask=inside)


def mean_rows(x: torch.Tensor, firsts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return the mean of each run of rows; an empty run gives zeros.

    Args:
        x: Contiguous, of shape (rows, width).
        firsts: First row of each run, integers of shape (runs,).
        ends: One past its last row, likewise.

    Returns:
        float32 of shape (runs, width).
    """
    runs, width = len(firsts), x.shape[1]
    out = torch.empty(runs, width, dtype=torch.float32, device=x.device)
    block = min(128, triton.next_power_of_2(width))
    _mean[(runs, triton.cdiv(width, block))](
        x, firsts, ends, out, width, ROWS=32, BLOCK=block, num_warps=4
    )
    return out
