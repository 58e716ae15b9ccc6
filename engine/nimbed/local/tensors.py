"""The tensors of a checkpoint by name, checked before they are used, whoever computes with them.

What compressed-tensors or NVIDIA's ModelOpt stored in float8 is multiplied by its scale.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np

from nimbed.errors import CheckpointError, missing_extra
from nimbed.local.json_files import read_json

__all__ = ["NamedTensors", "give_back", "keep_freed", "safetensors_names", "weight_files"]

#: ``torch.Tensor`` or a numpy array: both have shape, ndim, nbytes and arithmetic.
Array = TypeVar("Array", bound=Any)

# Bytes read between two calls of the C library, which take a millisecond or so each.
_GIVE_BACK_EVERY = 1 << 26

# The largest block that glibc learns from (mallopt(3): M_MMAP_THRESHOLD is at most 32 MiB in a
# program of 64 bits), less what it adds to one.
_LARGEST_LEARNT = (32 << 20) - (64 << 10)

_READABLE = ("float32", "float64", "bfloat16", "float16")

# BERT checkpoints converted from TensorFlow call LayerNorm's parameters so.
_TENSORFLOW = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

# A tensor inside a numbered layer takes part in every forward pass. Heads, poolers and position
# ids lie outside; rotary frequencies inside, but older exporters wrote them needlessly.
_IN_A_LAYER = re.compile(r"(layers?|blocks)\.\d+\.(?!.*inv_freq$)")


class NamedTensors(ABC, Generic[Array]):
    """The tensors of a checkpoint, read one at a time, as arrays of one library.

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
        read: Callable[[str], Array],
        *,
        folder: Path,
        strip: tuple[str, ...] = (),
        renamed: Mapping[str, str] | None = None,
        used: set[str] | None = None,
        read_rows: Callable[[str, slice], tuple[Array, tuple[int, ...]]] | None = None,
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

    @abstractmethod
    def _dtype(self, tensor: Array) -> str:
        """Return the name of a tensor's dtype, such as ``float32``."""

    @abstractmethod
    def _finite(self, tensor: Array) -> bool:
        """Whether a tensor of floats holds neither NaN nor infinity."""

    @abstractmethod
    def _float32(self, tensor: Array) -> Array:
        """Return a tensor in float32."""

    def stripped(self, *prefixes: str, renamed: Mapping[str, str] | None = None) -> Self:
        """Return the same tensors with these prefixes taken off their names, in order.

        Args:
            *prefixes: What may stand before a name.
            renamed: Parts of names to replace after that, in order.
        """
        return type(self)(
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

    def get(self, name: str, *shape: int, rows: slice | None = None) -> Array:
        """Return one tensor as it is stored, mapped from its file: read it, do not keep it.

        Args:
            name: Which.
            *shape: Of the whole tensor.
            rows: Which of its rows alone.

        Raises:
            CheckpointError: If it is missing, misshapen, not floating point, or not finite.
        """
        stored = self._stored.get(name)
        if stored is None:
            raise CheckpointError(f"{self._folder} lacks the tensor {name}{self._instead(name)}")
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
        if self._dtype(tensor) == "uint8" and f"{name}_scale" in self._stored:
            raise CheckpointError(
                f"{self._folder}: {stored} is packed 4-bit numbers (NVFP4 or the like), which "
                f"nimbed does not read; take the model's bfloat16 or float8 checkpoint"
            )
        if whole != shape:
            raise CheckpointError(
                f"{self._folder}: {stored} has shape {whole}, config.json promises {shape}"
            )
        if self._dtype(tensor) == "float8_e4m3fn":
            tensor = self._unscaled(name, tensor)
        if self._dtype(tensor) not in _READABLE:
            raise CheckpointError(
                f"{self._folder}: {stored} is {self._dtype(tensor)}, expected floats of 16 bits or "
                f"more, or float8 with a scale"
            )
        if not self._finite(tensor):
            raise CheckpointError(f"{self._folder}: {stored} holds NaN or infinity")
        self._unreturned += tensor.nbytes
        return tensor

    def _instead(self, name: str) -> str:
        """Return what to do about a tensor that goes by another name, if one does."""
        layer, _, parameter = name.rpartition(".")
        for stored in self._stored.values():
            if stored.endswith(f"{layer}.base_layer.{parameter}"):
                return (
                    f", but has {stored}: an adapter that was never merged; save the model anew "
                    f"after peft's merge_and_unload()"
                )
            if stored.endswith(f".{name}"):
                prefix = stored.removesuffix(name)
                return (
                    f", but has {stored}; take {prefix!r} off the names, or load the weights into "
                    f"the model that was trained and save that with save_pretrained()"
                )
        return ""

    def _unscaled(self, name: str, tensor: Array) -> Array:
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
            math.prod(scale.shape) not in (1, len(tensor))
            or scale.ndim > 2
            or self._dtype(scale) not in _READABLE
        ):
            raise CheckpointError(
                f"{self._folder}: {scale_name} is {self._dtype(scale)} of shape "
                f"{tuple(scale.shape)}, expected one scale, or one for each of {len(tensor)} "
                f"outputs"
            )
        factors = self._float32(scale).reshape(-1, *[1] * (tensor.ndim - 1))
        scaled: Array = self._float32(tensor) * factors
        return scaled


def _input_scale(name: str) -> str:
    return f"{name.removesuffix('weight')}input_scale"


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the file of this name in a folder, or the shards that its index names, or nothing.

    Raises:
        CheckpointError: If a shard is missing, or lies elsewhere.
    """
    single = folder / name
    if single.is_file():
        return [single]
    index = read_json(folder / f"{name}.index.json").get("weight_map", {})
    if not isinstance(index, dict):
        raise CheckpointError(f"{folder / name}.index.json has a weight_map that is no object")
    files = [folder / shard for shard in sorted(set(map(str, index.values())))]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise CheckpointError(f"{folder}: the index names the shard {path.name}, not found")
    return files


def safetensors_names(files: list[Path], framework: str) -> dict[str, Path]:
    """Return the file of each tensor in safetensors files.

    Raises:
        CheckpointError: If a file is damaged.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_extra("light", needs="safetensors") from error
    owner: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, framework=framework) as file:
                owner.update(dict.fromkeys(file.keys(), path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged or cut short ({error}); download it again"
            ) from error
    return owner


def give_back() -> None:
    """Return the C heap's free pages to the system, where its library can.

    Loading converts one weight after another. glibc cannot put the next aligned block into the
    hole that the last one left, so without this the holes add up to half the model again.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def keep_freed() -> None:
    """Have the C heap keep what one batch frees for the next, where its library learns from use.

    glibc takes a large block from the system and returns it when it is freed, so that the
    activations of every layer would be faulted in anew, page by page. Once it has seen such a block
    freed it keeps others of that size, up to twice as much in all (mallopt(3), M_MMAP_THRESHOLD):
    one that nobody wrote to teaches it. Where a process has set these limits, its own hold.
    """
    np.empty(_LARGEST_LEARNT, np.uint8)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None  # not glibc: musl, macOS, Windows
    return trim
