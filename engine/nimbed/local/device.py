"""Which device runs a model, and in which arithmetic.

What the machine has is found without torch where that can be, so that a model which needs no torch
does not wait for its import.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nimbed.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Placement",
    "full_batch",
    "has_amx",
    "may_have_gpu",
    "multiplies_bfloat16",
    "place",
    "release",
]

# What a dtype's name stands for: the activations' dtype, and whether products are in float8.
_DTYPES = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "float16": ("float16", False),
    "float8": ("bfloat16", True),
}

# Where Linux says what the processor has, and the driver of AMD's GPUs shows itself.
_PROCESSOR, _AMD = Path("/proc/cpuinfo"), Path("/dev/kfd")

# Tokens that fill a GPU whatever the model; more win nothing and cost memory.
_FULL = 32768
# Bytes of activations of a micro-batch on the CPU, where those are 1,024 tokens or more.
_CACHE = 1 << 25
# Share of the memory that is free after loading that a batch's activations may take.
_ACTIVATIONS = 0.5


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
        kind = (str(self.dtype).removeprefix("torch."), self.float8)
        return next(name for name, each in _DTYPES.items() if each == kind)

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
    import torch

    chosen = _device(device)
    if dtype == "auto":
        return Placement(chosen, torch.bfloat16 if _fast_bfloat16(chosen) else torch.float32)
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype must be one of auto, {', '.join(_DTYPES)}; got {dtype!r}")
    activations, float8 = _DTYPES[dtype]
    if float8:
        from nimbed.local.float8 import check_float8

        check_float8(chosen)
    return Placement(chosen, getattr(torch, activations), float8)


def full_batch(placement: Placement, activations: int) -> int:
    """Return how many tokens a micro-batch has.

    On a GPU as many as fill it and find room in its memory. On the CPU as many as keep its cache
    warm: on an AMD EPYC (32 MiB of third-level cache, 2 cores) MiniLM in bfloat16 takes 35.0 µs a
    passage's token in batches of 1,024 and 34.0 in 2,048, a query's 33.3 and 32.0; in float32, and
    e5-large in either, it is as long in both.

    Args:
        placement: Device and dtype.
        activations: Numbers a token that lie in memory at once in the widest layer; 0 if unknown.
    """
    import torch

    each = activations * placement.dtype.itemsize
    if placement.on_cpu:
        threads = min(torch.get_num_threads(), 16)
        return max(1024, 512 * threads, min(2048, _CACHE // max(1, each)))
    if placement.device.type != "cuda" or not each:
        return _FULL
    free, _ = torch.cuda.mem_get_info(placement.device)
    return max(1024, min(_FULL, int(_ACTIVATIONS * free / each)))


@functools.cache
def multiplies_bfloat16() -> bool | None:
    """Whether the processor multiplies bfloat16 in hardware; None where only torch can say.

    That is AMX or AVX512-BF16, and both are x86's. Linux names what a processor has, and no Mac had
    either.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "darwin":
        return False
    try:
        lines = _PROCESSOR.read_text("utf-8", "replace").splitlines()
    except OSError:  # Windows, or a sandbox
        return None
    flags = next((line for line in lines if line.startswith("flags")), None)
    return None if flags is None else not {"amx_tile", "avx512_bf16"}.isdisjoint(flags.split())


@functools.cache
def may_have_gpu() -> bool:
    """Whether a driver is installed without which torch finds no GPU; no device is opened."""
    if _AMD.exists():
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def release(devices: set[torch.device]) -> None:
    """Give memory that nothing uses any more back to the GPUs, for other processes."""
    import torch

    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.synchronize()
                torch.cuda.empty_cache()


def _device(name: str) -> torch.device:
    import torch

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
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = multiplies_bfloat16()
    return has_amx() or _reports("_is_avx512_bf16_supported") if known is None else known


@functools.cache
def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices (AMX, on Intel's from Sapphire Rapids)."""
    return _reports("_is_amx_tile_supported")


def _reports(probe: str) -> bool:
    import torch

    return bool(getattr(torch.cpu, probe, bool)())
