"""Float8 products: E4M3 weights with a scale an output, activations with a scale a token.

A row is divided by a scale that takes its largest element to 448, E4M3's largest number
(Micikevicius et al., "FP8 formats for deep learning", 2022), and rounded. The products accumulate
in float32 and are multiplied by both scales. Ada, Hopper and newer GPUs have such products; a CPU
multiplies the same numbers in float32, slowly, so that what float8 costs a model can be measured
anywhere.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nimbed.errors import ConfigurationError
from nimbed.local import kernels

__all__ = ["Float8Rows", "Float8Weight", "activate", "check_float8", "gated_rows"]

_LARGEST = 448.0  # torch.finfo(torch.float8_e4m3fn).max
# A row of zeros keeps a scale that can be divided by.
_LEAST = 1e-12


class Float8Rows(NamedTuple):
    """Rows to be multiplied.

    Attributes:
        values: float8_e4m3fn of shape (rows, width).
        scales: float32 of shape (rows, 1): a row is its values times its scale.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor) -> Float8Rows:
        """Round rows of any float dtype to float8."""
        if kernels.usable(x.device):
            from nimbed.local.kernels.fused import row_float8

            return cls(*row_float8(x.contiguous()))
        exact = x.float()
        scales = exact.abs().amax(-1, keepdim=True).clamp_min(_LEAST) / _LARGEST
        values = (exact / scales).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        return cls(values, scales)


class Float8Weight(NamedTuple):
    """A weight of shape (outputs, inputs), a row an output.

    Attributes:
        rows: The weight with a scale an output.
        dtype: Of what a product gives.
    """

    rows: Float8Rows
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: torch.Tensor) -> Float8Weight:
        """Round a weight; products give its dtype."""
        return cls(Float8Rows.of(weight), weight.dtype)

    def product(self, x: Float8Rows, bias: torch.Tensor | None) -> torch.Tensor:
        """Return x·Wᵀ + bias of shape (rows, outputs)."""
        if x.values.is_cuda:
            return F.scaled_mm(
                x.values,
                self.rows.values.t(),
                x.scales,
                F.ScalingType.RowWise,
                self.rows.scales.t(),
                F.ScalingType.RowWise,
                bias=bias,
                output_dtype=self.dtype,
                use_fast_accum=True,
            )
        product = x.values.float() @ self.rows.values.float().t()
        product = product.mul_(x.scales).mul_(self.rows.scales.t())
        return (product if bias is None else product.add_(bias.float())).to(self.dtype)


def gated_rows(both: torch.Tensor, *, activation: str) -> Float8Rows:
    """Return act(gate) · up as float8 rows.

    Args:
        both: Of shape (rows, 2 * width): the gate's columns, then those that it multiplies.
        activation: Which act: ``silu``, ``gelu`` (the exact one) or ``gelu_tanh``.
    """
    if kernels.usable(both.device):
        from nimbed.local.kernels.fused import gated_activation_float8

        return Float8Rows(*gated_activation_float8(both, activation=activation))
    gate, up = both.float().chunk(2, dim=-1)
    return Float8Rows.of(activate(gate, activation) * up)


def activate(gate: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply ``silu``, ``gelu`` (the exact one) or ``gelu_tanh``."""
    if activation == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


@functools.cache
def check_float8(device: torch.device) -> None:
    """Refuse float8 on a GPU that does not multiply it, or with a torch that cannot ask for it.

    Raises:
        ConfigurationError: If so.
    """
    if device.type != "cuda":
        return
    instead = "use dtype='bfloat16'"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        raise ConfigurationError(
            f"dtype 'float8' needs a GPU of compute capability 8.9 or newer (Ada, Hopper, "
            f"Blackwell); {torch.cuda.get_device_name(device)} has {major}.{minor}; {instead}"
        )
    if not hasattr(F, "scaled_mm"):
        raise ConfigurationError(
            f"dtype 'float8' needs torch 2.10 or newer, this is {torch.__version__}; {instead}"
        )
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 256, generator=generator).bfloat16() for n in (32, 64))
    try:
        own = Float8Weight.of(weight.to(device)).product(Float8Rows.of(x.to(device)), None)
        agrees = torch.allclose(own.float().cpu(), x.float() @ weight.float().t(), atol=4)
    except Exception as error:
        raise ConfigurationError(
            f"dtype 'float8' does not run on {torch.cuda.get_device_name(device)} with torch "
            f"{torch.__version__} ({error}); {instead}"
        ) from error
    if not agrees:
        raise ConfigurationError(f"float8 products of this torch are wrong here; {instead}")
