"""Weights as numpy arrays over the mapped safetensors files."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes  # comes with onnx
import numpy as np
from numpy.typing import NDArray

from nimbed.errors import CheckpointError
from nimbed.local.tensors import NamedTensors, safetensors_names, weight_files

__all__ = [
    "Array",
    "ArrayTensors",
    "CodeType",
    "Codes",
    "QuantizedWeight",
    "open_arrays",
    "quantized",
]

Array = NDArray[Any]
Codes = NDArray[np.int8] | NDArray[np.uint8]
#: Of which type the codes of a weight are.
CodeType: TypeAlias = type[np.int8 | np.uint8]

# safetensors' names of dtypes. What is not here is read as bytes, and refused by its name.
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class ArrayTensors(NamedTensors[Array]):
    """The tensors of a checkpoint, mapped from their files."""

    _read: _Files

    def drop_pages(self) -> None:
        """Let go of what was read so far; what is used again comes back from the file."""
        self._read.drop_pages()

    def floats(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Return one tensor in float32; where it is stored so, it stays mapped from its file.

        Raises:
            CheckpointError: As :meth:`get` does.
        """
        return self._float32(self.get(name, *shape))

    def _dtype(self, tensor: Array) -> str:
        return tensor.dtype.name

    def _finite(self, tensor: Array) -> bool:
        # Both ends are NaN if anything is; unlike isfinite this needs no memory of its own.
        floats = self._float32(tensor)
        return math.isfinite(floats.min()) and math.isfinite(floats.max())

    def _float32(self, tensor: Array) -> NDArray[np.float32]:
        return tensor if tensor.dtype == np.float32 else tensor.astype(np.float32)


@contextlib.contextmanager
def open_arrays(folder: Path) -> Generator[ArrayTensors]:
    """Open a checkpoint's weights: one safetensors file, or shards.

    Raises:
        CheckpointError: If there are none, or a file is damaged.
    """
    files = weight_files(folder, "model.safetensors")
    if not files:
        raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    owner = safetensors_names(files, "np")  # which checks that the files are what they say
    read = _Files(owner)
    try:
        yield ArrayTensors(owner, read, folder=folder)
    finally:
        read.drop_pages()


class _Files:
    """The weights' files in memory; called, they give the tensor of a name.

    Args:
        owner: The file of each tensor.
    """

    def __init__(self, owner: Mapping[str, Path]) -> None:
        self._owner = owner
        self._maps = {path: _Mapped(path) for path in set(owner.values())}

    def __call__(self, name: str) -> Array:
        return self._maps[self._owner[name]].tensor(name)

    def drop_pages(self) -> None:
        for each in self._maps.values():
            each.drop_pages()


class _Mapped:
    """A safetensors file in memory: the length of its header, the header, the tensors' bytes.

    The library has checked it, but its numpy front knows neither bfloat16 nor a mapped array.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._entries: dict[str, Any] = json.loads(file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8, offset=8 + length)

    def drop_pages(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def tensor(self, name: str) -> Array:
        entry = self._entries[name]
        start, stop = entry["data_offsets"]
        dtype = np.dtype(_DTYPES.get(entry["dtype"], np.void(1).dtype))
        part = self._bytes[start:stop]
        if part.ctypes.data % dtype.itemsize:
            part = part.copy()  # a number must not begin just anywhere
        flat = part.view(dtype)
        shaped: Array = flat.reshape(entry["shape"]) if entry["dtype"] in _DTYPES else flat
        return shaped


class QuantizedWeight(NamedTuple):
    """A product's weight in bytes, each output in steps of its own.

    Attributes:
        codes: Of shape (inputs, outputs).
        scales: The step of each output.
        zeros: The code of each output that stands for nothing.
    """

    codes: Codes
    scales: NDArray[np.float32]
    zeros: Codes


def quantized(weight: NDArray[np.float32], kind: CodeType) -> QuantizedWeight:
    """Return a weight in bytes, whose least and largest numbers are the ends of each output.

    Args:
        weight: Of shape (outputs, inputs).
        kind: Of the codes. Both are the same numbers, and int8 begins 128 lower.
    """
    least = np.minimum(weight.min(1), 0)
    # A row of nothing has a step all the same, so that nothing is divided by nothing.
    scales = np.maximum((np.maximum(weight.max(1), 0) - least) / 255, np.float32(1e-30))
    zeros = np.rint(-least / scales)
    codes = weight.T / scales  # the one large array of floats: what follows is done in place
    np.rint(codes, out=codes)
    codes += zeros
    np.clip(codes, 0, 255, out=codes)
    first = np.iinfo(kind).min
    codes += first
    return QuantizedWeight(codes.astype(kind, order="C"), scales, (zeros + first).astype(kind))
