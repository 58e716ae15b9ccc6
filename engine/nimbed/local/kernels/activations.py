"""Fused activations: act(gate)·up of a joined product, and its rows in float8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["gated_activation", "gated_activation_float8"]

_BLOCK = 1024


@triton.jit
def _activated(gate, ACT: tl.constexpr):
    if ACT == "silu":
        return gate * tl.sigmoid(gate)
    if ACT == "gelu_tanh":  # (1 + tanh(x)) / 2 is sigmoid(2x)
        return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))


@triton.jit
def _gated(both, out, width, BLOCK: tl.constexpr, ACT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    start = both + row * 2 * width
    gate = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + width + columns, mask=inside, other=0.0).to(tl.float32)
    value = _activated(gate, ACT) * up
    tl.store(out + row * width + columns, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_float8(both, out, scales, width, BLOCK: tl.constexpr, ACT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    start = both + row * 2 * width
    gate = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + width + columns, mask=inside, other=0.0).to(tl.float32)
    value = _activated(gate, ACT) * up
    scale = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / 448.0
    value = tl.minimum(tl.maximum(value / scale, -448.0), 448.0)
    tl.store(out + row * width + columns, value.to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, scale)


def gated_activation(both: torch.Tensor, *, activation: str) -> torch.Tensor:
    """Return act(gate) · up in one pass.

    Args:
        both: Of shape (rows, 2 * width): the gate's columns, then those that it multiplies.
        activation: Which act: ``silu``, ``gelu`` (the exact one) or ``gelu_tanh``.

    Returns:
        Tensor of shape (rows, width).
    """
    rows, width = both.shape[0], both.shape[1] // 2
    out = torch.empty(rows, width, dtype=both.dtype, device=both.device)
    _gated[(rows, triton.cdiv(width, _BLOCK))](both, out, width, BLOCK=_BLOCK, ACT=activation)
    return out


def gated_activation_float8(
    both: torch.Tensor, *, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return act(gate) · up as float8 rows and the scale of each; see :mod:`nimbed.local.float8`.

    Args:
        both: Of shape (rows, 2 * width), as for :func:`gated_activation`.
        activation: Which act: ``silu``, ``gelu`` (the exact one) or ``gelu_tanh``.

    Returns:
        float8_e4m3fn of shape (rows, width) and float32 of shape (rows, 1).
    """
    rows, width = both.shape[0], both.shape[1] // 2
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=both.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=both.device)
    block = triton.next_power_of_2(width)
    warps = 16 if block >= 8192 else 8 if block >= 2048 else 4
    _gated_float8[(rows,)](both, out, scales, width, BLOCK=block, ACT=activation, num_warps=warps)
    return out, scales
