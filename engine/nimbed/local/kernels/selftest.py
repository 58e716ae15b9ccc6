"""A small run of every fused kernel beside torch, before any of them is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from nimbed.local.float8 import activate
from nimbed.local.kernels.fused import (
    gated_activation,
    gated_activation_float8,
    layer_norm_of_sum,
    mean_rows,
    rms_norm,
    rms_norm_float8,
    rotate_,
    row_float8,
)
from nimbed.local.kernels.varlen_attention import attend

__all__ = ["comparisons", "disagreement"]

# Widths on both sides of what a program holds, none of them a power of two.
_WIDTHS = (72, 384, 5000)
_EPS = 1e-5


def disagreement(device: torch.device, *, dtype: torch.dtype = torch.bfloat16) -> str:
    """Return which kernel differs from torch and by how much, or an empty string.

    Args:
        device: Where they run.
        dtype: Of the activations.
    """
    for width in _WIDTHS:
        for name, got, expected in comparisons(device, dtype, width):
            # float8 has three bits behind the point, so two roundings differ by a sixteenth.
            loose = 0.07 if "float8" in name else 0.02 if dtype != torch.float32 else 1e-4
            error = (got.float() - expected.float()).abs() - loose * expected.float().abs()
            worst = float(error.max())
            if not worst <= loose:  # also for NaN
                return f"{name} differs from torch by {worst + loose:.3g} at width {width}"
    return ""


def comparisons(
    device: torch.device, dtype: torch.dtype, width: int
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield each kernel's name, what it gives and what torch gives, at one width."""
    generator = torch.Generator().manual_seed(width)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, residual, weight, bias = normal(13, width), normal(13, width), normal(width), normal(width)
    both = normal(13, 2 * width)
    gate, up = both.float().chunk(2, dim=-1)
    total = (x.float() + residual.float()).to(dtype)

    def rms(value: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(value.float().pow(2).mean(-1, keepdim=True) + _EPS)
        return value.float() * scale * weight.float()

    for activation in ("silu", "gelu", "gelu_tanh"):
        plain = activate(gate, activation) * up
        yield "the gated activation", gated_activation(both, activation=activation), plain
        values, scales = gated_activation_float8(both, activation=activation)
        yield "the float8 gated activation", values.float() * scales, plain
    normed = F.layer_norm(
        x.float() + residual.float(), (width,), weight.float(), bias.float(), _EPS
    )
    yield "the layer norm", layer_norm_of_sum(x, residual, weight, bias, _EPS), normed
    kept, out = rms_norm(x, residual, weight, _EPS)
    yield "the residual sum", kept, total
    yield "the RMS norm", out, rms(total)
    kept, values, scales = rms_norm_float8(x, residual, weight, _EPS)
    yield "the residual sum", kept, total
    yield "the float8 RMS norm", values.float() * scales, rms(total)
    _, values, scales = rms_norm_float8(x, None, weight, _EPS)
    yield "the float8 RMS norm", values.float() * scales, rms(x)
    values, scales = row_float8(x)
    yield "the float8 rows", values.float() * scales, x
    # float32 goes through torch, and triton's interpreter cannot multiply bfloat16.
    if dtype == torch.float16 or (x.is_cuda and dtype == torch.bfloat16):
        yield "attention", *_attended(normal)
    yield "the mean of rows", *_means(normal(70, width))
    yield "the rotation", *_rotated(normal(13, 7, width), normal(13, width), width)


def _attended(normal: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend within sequences of 70, 1 and 129 rows, two heads to a key."""
    lengths, parts = [70, 1, 129], []
    q, k, v = torch.split(normal(sum(lengths), 6, 32), [2, 2, 2], dim=1)
    k, v = k[:, :1], v[:, :1]
    spans = torch.tensor([0, 70, 71, 200], dtype=torch.int32, device=q.device)
    for part in zip(*(torch.split(x.float(), lengths) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1) for x in part)
        key, value = (x.expand(query.shape) for x in (key, value))
        parts.append(F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1))
    return attend(q, k, v, spans, 129), torch.cat(parts)


def _means(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    firsts, ends = (torch.tensor(rows, device=x.device) for rows in ([0, 3, 37], [3, 36, 70]))
    runs = zip(firsts.tolist(), ends.tolist(), strict=True)
    expected = torch.stack([x[first:end].float().mean(0) for first, end in runs])
    return mean_rows(x, firsts, ends), expected


def _rotated(
    x: torch.Tensor, angles: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    half = min(width, 128) // 2
    x, angles = x[:, :, : 2 * half].contiguous(), angles[:, :half]
    cos, sin = angles.cos().contiguous(), angles.sin().contiguous()
    first, second = x[:, :5].float().chunk(2, dim=-1)
    c, s = cos.float()[:, None], sin.float()[:, None]
    expected = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    return rotate_(x[:, :5], cos, sin), expected
