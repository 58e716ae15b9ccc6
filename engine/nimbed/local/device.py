"""Which device runs a model, and in which arithmetic."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from nimbed.errors import ConfigurationError

__all__ = ["DTYPES", "Placement", "has_amx", "place", "release"]

# What a dtype's name stands for: the activations' dtype, and whether products are in float8.
DTYPES = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float8": (torch.bfloat16, True),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and the arithmetic there.

    Attributes:
        device: Where the model runs.
        dtype: Of its activations, and of its products unless they are in float8.
        float8: Whether they are; see :mod:`nimbed.local.float8`.
    """

    device: torch.device
    dtype: torch.dtype
    float8: bool = False

    @property
    def name(self) -> str:
        """The dtype's name, as it is asked for."""
        return next(name for name, kind in DTYPES.items() if kind == (self.dtype, self.float8))

    @property
    def plain(self) -> Placement:
        """The same without float8, for parts that it would harm or that are too small for it."""
        return Placement(self.device, self.dtype)

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the host's processor."""
        return self.device.type == "cpu"


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Resolve what the caller asked for against what the machine has.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16`` or ``float8``. ``auto`` is bfloat16
            where the device multiplies it in hardware, else float32. ``float8`` is bfloat16 with
            the layers' products in float8.

    Raises:
        ConfigurationError: If the device does not exist, or the dtype is unknown or not to be had
            there.
    """
    chosen = _device(device)
    if dtype == "auto":
        return Placement(chosen, torch.bfloat16 if _fast_bfloat16(chosen) else torch.float32)
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype must be one of auto, {', '.join(DTYPES)}; got {dtype!r}")
    activations, float8 = DTYPES[dtype]
    if float8:
        from nimbed.local.float8 import check_float8

        check_float8(chosen)
    return Placement(chosen, activations, float8)


def release(devices: set[torch.device]) -> None:
    """Give memory that nothing uses any more back to the GPUs, for other processes."""
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.synchronize()
                torch.cuda.empty_cache()


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
    return has_amx() or _reports("_is_avx512_bf16_supported")


@functools.cache
def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices (AMX, on Intel's from Sapphire Rapids)."""
    return _reports("_is_amx_tile_supported")


def _reports(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, bool)())
