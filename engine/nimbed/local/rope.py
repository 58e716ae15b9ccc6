"""Rotary position embedding.

Frequencies are computed in float32 in transformers' order of operations, so that they are equal
to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from nimbed.errors import CheckpointError
from nimbed.local import kernels
from nimbed.local.models.fields import real, rope_parameters, whole

__all__ = ["Rope", "Turn", "rope_for"]


class Turn(NamedTuple):
    """The rotation of each row of a packed batch.

    Attributes:
        cos: Cosines of shape (rows, 1, head_dim / 2).
        sin: Sines, likewise.
        fused: Whether a kernel of our own rotates.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    fused: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x of shape (rows, heads, head_dim) with both halves of each head rotated.

        x may be overwritten with the result.
        """
        if self.fused:
            from nimbed.local.kernels.fused import rotate_

            return rotate_(x, self.cos, self.sin)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        first, second = x.chunk(2, dim=-1)
        low, high = out.chunk(2, dim=-1)
        torch.mul(first, self.cos, out=low)
        low.addcmul_(second, self.sin, value=-1)
        torch.mul(second, self.cos, out=high)
        high.addcmul_(first, self.sin)
        return out


class Rope:
    """Turns positions into rotations.

    Args:
        frequencies: Radians a token, float32 of shape (head_dim / 2,).
        factor: Scale of cosines and sines (yarn's attention factor).
        device: Where the rotations are needed.
        dtype: In which type.
    """

    def __init__(
        self,
        frequencies: torch.Tensor,
        factor: float,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._frequencies = frequencies.to(device)
        self._factor = factor
        self._dtype = dtype
        self._fused = kernels.usable(device)

    def at(self, positions: torch.Tensor) -> Turn:
        """Return the rotation of each row; positions are int64 of shape (rows,)."""
        angles = positions[:, None, None].float() * self._frequencies
        return Turn(
            (angles.cos() * self._factor).to(self._dtype),
            (angles.sin() * self._factor).to(self._dtype),
            self._fused,
        )


def rope_for(
    config: Mapping[str, Any], head_dim: int, *, device: torch.device, dtype: torch.dtype
) -> Rope:
    """Read the rotation that a configuration asks for.

    Args:
        config: With ``rope_theta`` and ``rope_scaling``, or transformers 5's ``rope_parameters``.
        head_dim: Dimensions of a head, all of which are rotated.
        device: Where the rotations are needed.
        dtype: In which type.

    Raises:
        CheckpointError: If the configuration is incomplete or asks for another kind of rotation.
    """
    asked = rope_parameters(config)
    kind = asked["rope_type"]
    base = real(asked, "rope_theta", default=10000.0)
    plain = 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if kind == "default":
        frequencies, factor = plain, 1.0
    elif kind == "linear":
        frequencies, factor = plain / real(asked, "factor"), 1.0
    elif kind == "ntk":
        frequencies, factor = _ntk(base, head_dim, asked), 1.0
    elif kind == "llama3":
        frequencies, factor = _llama3(plain, asked), 1.0
    elif kind == "yarn":
        frequencies, factor = _yarn(base, head_dim, asked), _yarn_factor(asked)
    else:
        raise CheckpointError(
            f"config.json asks for {kind!r} rotary positions; nimbed has default, linear, "
            f"llama3, ntk and yarn"
        )
    return Rope(frequencies, factor, device=device, dtype=dtype)


def _ntk(base: float, head_dim: int, asked: Mapping[str, Any]) -> torch.Tensor:
    """Return the frequencies of Alibaba's encoders (formula 6 of kexue.fm/archives/9706)."""
    factor = real(asked, "factor")
    slower = (base * factor) ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    frequencies: torch.Tensor = 1.0 / slower / factor ** (2 / head_dim)
    return frequencies


def _llama3(plain: torch.Tensor, asked: Mapping[str, Any]) -> torch.Tensor:
    factor = real(asked, "factor")
    low, high = real(asked, "low_freq_factor"), real(asked, "high_freq_factor")
    trained = whole(asked, "original_max_position_embeddings")
    wavelength = 2 * math.pi / plain
    slowed = torch.where(wavelength > trained / low, plain / factor, plain)
    smooth = (trained / wavelength - low) / (high - low)
    between = ~(wavelength < trained / high) & ~(wavelength > trained / low)
    return torch.where(between, (1 - smooth) * slowed / factor + smooth * slowed, slowed)


def _yarn(base: float, head_dim: int, asked: Mapping[str, Any]) -> torch.Tensor:
    factor = real(asked, "factor")
    trained = whole(asked, "original_max_position_embeddings")

    def dimension(turns: float) -> float:
        """Return the dimension that turns this often within the trained length."""
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(real(asked, "beta_fast", default=32.0))
    high = dimension(real(asked, "beta_slow", default=1.0))
    if asked.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    powers = base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return 1.0 / (factor * powers) * (1 - keep) + 1.0 / powers * keep


def _yarn_factor(asked: Mapping[str, Any]) -> float:
    given = asked.get("attention_factor")
    if given is not None:
        return real(asked, "attention_factor")

    def scale(weight: float) -> float:
        factor = real(asked, "factor")
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if asked.get("mscale") and asked.get("mscale_all_dim"):
        return scale(real(asked, "mscale")) / scale(real(asked, "mscale_all_dim"))
    return scale(1.0)
