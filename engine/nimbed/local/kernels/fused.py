"""Fused elementwise kernels: norms, gated activations, their rows in float8; rotation and means.

Each does in one pass over memory what torch does in several. Rotation of rotary positions is in
place; means are over runs of packed rows, in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = [
    "gated_activation",
    "gated_activation_float8",
    "layer_norm_of_sum",
    "mean_rows",
    "rms_norm",
    "rms_norm_float8",
    "rotate_",
    "row_float8",
]

# Elements a program holds: short rows share one, so that each thread has several loads in flight.
_TILE = 4096


@triton.jit
def _norm(
    x,
    residual,
    weight,
    bias,
    total,
    out,
    scales,
    rows,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    ADD: tl.constexpr,
    KEEP: tl.constexpr,
    FLOAT8: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    place = row * width + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    if KEEP:
        # The norm sees what the next layer will see: the sum as it is stored.
        kept = value.to(total.dtype.element_ty)
        tl.store(total + place, kept, mask=inside)
        value = kept.to(tl.float32)
    known = column < width
    if KIND == "layer":
        value -= tl.sum(value, axis=1)[:, None] / width
        value = tl.where(inside, value, 0.0)
    if KIND != "none":
        scale = tl.rsqrt(tl.sum(value * value, axis=1)[:, None] / width + eps)
        value = value * scale * tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    if KIND == "layer":
        value += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    if FLOAT8:
        largest = tl.max(tl.abs(tl.where(inside, value, 0.0)), axis=1)[:, None]
        unit = tl.maximum(largest, 1e-12) / 448.0
        value = tl.minimum(tl.maximum(value / unit, -448.0), 448.0)
        tl.store(scales + row, unit, mask=row < rows)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def _launch(
    x: torch.Tensor,
    *,
    kind: str,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    keep: bool = False,
    float8: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    rows, width = x.shape
    total = torch.empty_like(x) if keep else None
    out = torch.empty(
        rows, width, dtype=torch.float8_e4m3fn if float8 else x.dtype, device=x.device
    )
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device) if float8 else None
    block = triton.next_power_of_2(width)
    at_once = max(1, _TILE // block)
    _norm[(triton.cdiv(rows, at_once),)](
        x,
        x if residual is None else residual,
        x if weight is None else weight,
        x if bias is None else bias,
        out if total is None else total,
        out,
        out if scales is None else scales,
        rows,
        width,
        eps,
        ROWS=at_once,
        BLOCK=block,
        KIND=kind,
        ADD=residual is not None,
        KEEP=keep,
        FLOAT8=float8,
        num_warps=8 if block >= 4096 else 4,
    )
    return total, out, scales


def layer_norm_of_sum(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Return the layer norm of x + residual, both of shape (rows, width)."""
    return _launch(x, kind="layer", weight=weight, bias=bias, eps=eps, residual=residual)[1]


def rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + residual, and its RMS norm; all of shape (rows, width)."""
    total, out, _ = _launch(x, kind="rms", weight=weight, eps=eps, residual=residual, keep=True)
    assert total is not None
    return total, out


def rms_norm_float8(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x + residual (x if there is none), and its RMS norm as float8 rows and their scales.

    Returns:
        The sum, in the dtype of x; float8_e4m3fn, both of shape (rows, width); float32 of shape
        (rows, 1).
    """
    total, out, scales = (
        _launch(x, kind="rms", weight=weight, eps=eps, residual=residual, keep=True, float8=True)
        if residual is not None
        else _launch(x, kind="rms", weight=weight, eps=eps, float8=True)
    )
    assert scales is not None
    return x if total is None else total, out, scales


def row_float8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x of shape (rows, width) as float8_e4m3fn rows, and float32 scales (rows, 1)."""
    _, out, scales = _launch(x, kind="none", float8=True)
    assert scales is not None
    return out, scales


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
