"""Which device runs a model, and in which arithmetic.

One place for the decision; the rest of ``local/`` is told.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from nimbed.errors import ConfigurationError

__all__ = ["DTYPES", "Placement", "place"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and the dtype its matrix products run in."""

    device: torch.device
    dtype: torch.dtype

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the host's processor."""
        return self.device.type == "cpu"


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Resolve what the caller asked for against what the machine has.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 where the
            device multiplies it in hardware, else float32.

    Raises:
        ConfigurationError: If the device does not exist or the dtype is unknown.
    """
    chosen = _device(device)
    if dtype == "auto":
        return Placement(chosen, torch.bfloat16 if _fast_bfloat16(chosen) else torch.float32)
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype must be one of auto, {', '.join(DTYPES)}; got {dtype!r}")
    return Placement(chosen, DTYPES[dtype])


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigurationError(
                f"device {name!r} was asked for, but torch {torch.__version__} sees {count} CUDA "
                f"devices; use device='cpu', or install a CUDA build of torch"
            )
        device = torch.device("cuda", device.index or 0)
    return device


@functools.cache
def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return any(
        bool(getattr(torch.cpu, probe, bool)())
        for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
