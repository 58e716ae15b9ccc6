"""Fused norms: residual sum, layer or RMS norm, and its rows in float8, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["layer_norm_of_sum", "rms_norm", "rms_norm_float8", "row_float8"]

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
