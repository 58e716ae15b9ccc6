"""Weights from disk, by name, checked before they are used.

safetensors directly; ``.bin`` only through ``torch.load(weights_only=True)``, which runs no code.
What compressed-tensors or NVIDIA's ModelOpt stored in float8 is multiplied by its scale.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path

import torch

from nimbed.errors import CheckpointError, missing_extra
from nimbed.local.device import Placement
from nimbed.local.json_files import read_json

__all__ = ["Tensors", "give_back", "open_tensors"]

# Bytes read between two calls of the C library, which take a millisecond or so each.
_GIVE_BACK_EVERY = 1 << 26

# Numbers of a table that are read at a time: a vocabulary of 260,000 words is two thirds of a small
# model, and would lie in memory twice while it is copied from the mapped file.
_ROWS_AT_ONCE = 1 << 24

_READABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# BERT checkpoints converted from TensorFlow call LayerNorm's parameters so.
_TENSORFLOW = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

# A tensor inside a numbered layer takes part in every forward pass. Heads, poolers and position
# ids lie outside; rotary frequencies inside, but older exporters wrote them needlessly.
_IN_A_LAYER = re.compile(r"(layers?|blocks)\.\d+\.(?!.*inv_freq$)")


class Tensors:
    """The tensors of a checkpoint, read one at a time.

    Args:
        names: Every tensor in the checkpoint.
        read: Gives the tensor of a name.
        folder: For messages.
        strip: Key prefixes that some exporters add, such as ``bert.`` or ``model.``.
        renamed: Parts of names, and what the network calls them.
        used: Names that have been read so far, to share among views of one checkpoint.
        read_rows: Gives some rows of the tensor of a name, and the shape of the whole; None if
            reading it whole takes no memory.
    """

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], torch.Tensor],
        *,
        folder: Path,
        strip: tuple[str, ...] = (),
        renamed: Mapping[str, str] | None = None,
        used: set[str] | None = None,
        read_rows: Callable[[str, slice], tuple[torch.Tensor, tuple[int, ...]]] | None = None,
    ) -> None:
        self._read, self._read_rows = read, read_rows
        self._folder = folder
        self._used: set[str] = set() if used is None else used
        self._strip = strip
        self._renamed = {**(renamed or {}), **_TENSORFLOW}
        self._unreturned = 0
        self._stored = {self._short(name): name for name in names}

    def _short(self, name: str) -> str:
        for prefix in self._strip:
            name = name.removeprefix(prefix)
        for part, other in self._renamed.items():
            name = name.replace(part, other)
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def stripped(self, *prefixes: str, renamed: Mapping[str, str] | None = None) -> Tensors:
        """Return the same tensors with these prefixes taken off their names, in order.

        Args:
            *prefixes: What may stand before a name.
            renamed: Parts of names to replace after that, in order.
        """
        return Tensors(
            self._stored.values(),
            self._read,
            folder=self._folder,
            strip=(*self._strip, *prefixes),  # a part's prefixes stand behind those of the whole
            renamed={**self._renamed, **(renamed or {})},
            used=self._used,
            read_rows=self._read_rows,
        )

    def refuse_leftovers(self) -> None:
        """Refuse a checkpoint whose layers hold more than was read from them.

        More layers than config.json says, biases it does not mention, adapters, scales of
        quantised weights: without them the vectors would be silently wrong.

        Raises:
            CheckpointError: If there is such a tensor; the message names the first.
        """
        for name in self._stored.values():
            if name not in self._used and _IN_A_LAYER.search(name):
                raise CheckpointError(
                    f"{self._folder} holds the tensor {name}, which config.json does not account "
                    f"for; are both of the same model?"
                )

    def get(self, name: str, *shape: int, rows: slice | None = None) -> torch.Tensor:
        """Return one tensor as it is stored, mapped from its file: read it, do not keep it.

        Args:
            name: Which.
            *shape: Of the whole tensor.
            rows: Which of its rows alone; only where :meth:`placed` asks for them.

        Raises:
            CheckpointError: If it is missing, misshapen, not floating point, or not finite.
        """
        stored = self._stored.get(name)
        if stored is None:
            raise CheckpointError(f"{self._folder} lacks the tensor {name}")
        self._used.add(stored)
        if self._unreturned >= _GIVE_BACK_EVERY:
            give_back()
            self._unreturned = 0
        try:
            if rows is None or self._read_rows is None:
                tensor = self._read(stored)
                whole = tuple(tensor.shape)
            else:
                tensor, whole = self._read_rows(stored, rows)
        except Exception as error:
            # The readers raise whatever the bytes provoke: their own errors, OS errors, struct's.
            raise CheckpointError(f"{self._folder}: cannot read {stored}: {error}") from error
        if tensor.dtype == torch.uint8 and f"{name}_scale" in self._stored:
            raise CheckpointError(
                f"{self._folder}: {stored} is packed 4-bit numbers (NVFP4 or the like), which "
                f"nimbed does not read; take the model's bfloat16 or float8 checkpoint"
            )
        if whole != shape:
            raise CheckpointError(
                f"{self._folder}: {stored} has shape {whole}, config.json promises {shape}"
            )
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = self._unscaled(name, tensor)
        if tensor.dtype not in _READABLE:
            raise CheckpointError(
                f"{self._folder}: {stored} is {tensor.dtype}, expected floats of 16 bits or more, "
                f"or float8 with a scale"
            )
        # Both ends are NaN if anything is; unlike isfinite this needs no memory of its own.
        if not all(map(math.isfinite, map(float, torch.aminmax(tensor)))):
            raise CheckpointError(f"{self._folder}: {stored} holds NaN or infinity")
        self._unreturned += tensor.nbytes
        return tensor

    def _unscaled(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a float8 weight as float32; its scale is one number, or one an output."""
        scale_name = self._stored.get(f"{name}_scale")
        if scale_name is None:
            raise CheckpointError(
                f"{self._folder}: {self._stored[name]} is float8 without {name}_scale; expected "
                f"floats of 16 bits or more, or float8 with a scale a tensor or an output"
            )
        # Activations are scaled by what they hold, so a scale that was measured for them is moot.
        self._used.update({scale_name, self._stored.get(_input_scale(name), scale_name)})
        scale = self._read(scale_name)
        if (
            scale.numel() not in (1, len(tensor))
            or scale.dim() > 2
            or not scale.is_floating_point()
        ):
            raise CheckpointError(
                f"{self._folder}: {scale_name} is {scale.dtype} of shape {tuple(scale.shape)}, "
                f"expected one scale, or one for each of {len(tensor)} outputs"
            )
        return tensor.float() * scale.float().reshape(-1, *[1] * (tensor.dim() - 1))

    def placed(self, placement: Placement, name: str, *shape: int) -> torch.Tensor:
        """Return one tensor on a device, in its dtype and independent of the file.

        Raises:
            CheckpointError: As :meth:`get` does.
        """
        step = max(1, _ROWS_AT_ONCE // math.prod(shape[1:]))
        if self._read_rows is None or shape[0] <= step or f"{name}_scale" in self._stored:
            return self.get(name, *shape).to(placement.device, placement.dtype, copy=True)
        out = torch.empty(shape, dtype=placement.dtype, device=placement.device)
        for first in range(0, shape[0], step):
            rows = slice(first, min(first + step, shape[0]))
            out[rows] = self.get(name, *shape, rows=rows)
        return out


def _input_scale(name: str) -> str:
    return f"{name.removesuffix('weight')}input_scale"


@contextlib.contextmanager
def open_tensors(folder: Path) -> Generator[Tensors]:
    """Open a checkpoint's weights: one safetensors file, shards, or ``.bin``.

    Raises:
        CheckpointError: If there are none, or a file is damaged.
    """
    files = _files(folder, "model.safetensors")
    if files:
        yield _safetensors(files, folder)
        return
    files = _files(folder, "pytorch_model.bin")
    if not files:
        raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    yield _pickled(files, folder)


def _files(folder: Path, name: str) -> list[Path]:
    single = folder / name
    if single.is_file():
        return [single]
    index = read_json(folder / f"{name}.index.json").get("weight_map") or {}
    files = [folder / shard for shard in sorted(set(map(str, index.values())))]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise CheckpointError(f"{folder}: the index names the shard {path.name}, not found")
    return files


def _safetensors(files: list[Path], folder: Path) -> Tensors:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_extra("local", needs="safetensors") from error
    owner: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                owner.update(dict.fromkeys(file.keys(), path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged or cut short ({error}); download it again"
            ) from error

    def read(name: str) -> torch.Tensor:
        # Opened anew for each tensor: a mapped file stays in this process's memory as long as any
        # tensor of it does, beside the weights that were laid out from it.
        with safe_open(owner[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def read_rows(name: str, rows: slice) -> tuple[torch.Tensor, tuple[int, ...]]:
        with safe_open(owner[name], framework="pt") as file:
            whole = file.get_slice(name)
            return whole[rows], tuple(whole.get_shape())

    return Tensors(owner, read, folder=folder, read_rows=read_rows)


def _pickled(files: list[Path], folder: Path) -> Tensors:
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            # mmap: pages are read when used, and the system may drop them again.
            tensors.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        except Exception as error:
            raise CheckpointError(f"{path} cannot be loaded safely: {error}") from error
    return Tensors(tensors, tensors.__getitem__, folder=folder)


def give_back() -> None:
    """Return the C heap's free pages to the system, where its library can.

    Loading converts one weight after another. glibc cannot put the next aligned block into the
    hole that the last one left, so without this the holes add up to half the model again.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None  # not glibc: musl, macOS, Windows
    return trim
