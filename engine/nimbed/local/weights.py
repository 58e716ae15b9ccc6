"""Weights as torch tensors.

safetensors directly; ``.bin`` only through ``torch.load(weights_only=True)``, which runs no code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from pathlib import Path

import torch

from nimbed.errors import CheckpointError
from nimbed.local.device import Placement
from nimbed.local.tensors import NamedTensors, safetensors_names, weight_files

__all__ = ["Tensors", "open_tensors"]

# Numbers of a table that are read at a time: a vocabulary of 260,000 words is two thirds of a small
# model, and would lie in memory twice while it is copied from the mapped file.
_ROWS_AT_ONCE = 1 << 24

# How torch's parametrizations call a weight and what they add to it.
_ORIGINAL, _LORA = ".parametrizations.weight.original", ".parametrizations.weight.0.lora_"


class Tensors(NamedTensors[torch.Tensor]):
    """The tensors of a checkpoint, mapped from their files."""

    def placed(self, placement: Placement, name: str, *shape: int) -> torch.Tensor:
        """Return one tensor on a device, in its dtype and independent of the file.

        Raises:
            CheckpointError: As :meth:`get` does.
        """
        step = max(1, _ROWS_AT_ONCE // math.prod(shape[1:]))
        if self._read_rows is None or shape[0] <= step or f"{name}_scale" in self:
            return self.get(name, *shape).to(placement.device, placement.dtype, copy=True)
        out = torch.empty(shape, dtype=placement.dtype, device=placement.device)
        for first in range(0, shape[0], step):
            rows = slice(first, min(first + step, shape[0]))
            out[rows] = self.get(name, *shape, rows=rows)
        return out

    def adapted(self, number: int, *, scale: float) -> Tensors:
        """Return the same tensors with one of several LoRA adapters merged into them.

        torch's parametrizations store a weight W apart from its adapters A and B, of which there
        are several in a dimension in front: W + scale·B·A, or W + scale·A·B for a table of
        embeddings. The layout is that of jina-embeddings-v3.

        Args:
            number: Which adapter.
            scale: What its product is multiplied by.
        """
        stored = list(self._stored.values())
        bases = {name.removesuffix(_ORIGINAL) for name in stored if name.endswith(_ORIGINAL)}

        def read_rows(name: str, rows: slice) -> tuple[torch.Tensor, tuple[int, ...]]:
            base = name.removesuffix(".weight")
            if base not in bases:
                tensor = self._read(name)
                return tensor[rows], tuple(tensor.shape)
            original, *parts = f"{base}{_ORIGINAL}", f"{base}{_LORA}A", f"{base}{_LORA}B"
            self._used.update([original, *parts])
            first, second = (self._read(part)[number].float() for part in parts)
            left, right = (first, second) if "embeddings." in base else (second, first)
            some = self._read_rows
            weight = self._read(original)[rows] if some is None else some(original, rows)[0]
            merged = torch.addmm(weight.float(), left[rows], right, alpha=scale)
            return merged, (len(left), right.shape[1])

        return Tensors(
            [
                *(name for name in stored if ".parametrizations." not in name),
                *(f"{base}.weight" for base in sorted(bases)),
            ],
            lambda name: read_rows(name, slice(None))[0],
            folder=self._folder,
            strip=self._strip,
            renamed=self._renamed,
            used=self._used,
            read_rows=read_rows,
        )

    def _dtype(self, tensor: torch.Tensor) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    def _finite(self, tensor: torch.Tensor) -> bool:
        # Both ends are NaN if anything is; unlike isfinite this needs no memory of its own.
        return all(map(math.isfinite, map(float, torch.aminmax(tensor))))

    def _float32(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float()


@contextlib.contextmanager
def open_tensors(folder: Path) -> Generator[Tensors]:
    """Open a checkpoint's weights: one safetensors file, shards, or ``.bin``.

    Raises:
        CheckpointError: If there are none, or a file is damaged.
    """
    files = weight_files(folder, "model.safetensors")
    if files:
        yield _safetensors(files, folder)
        return
    files = weight_files(folder, "pytorch_model.bin")
    if not files:
        raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    yield _pickled(files, folder)


def _safetensors(files: list[Path], folder: Path) -> Tensors:
    owner = safetensors_names(files, "pt")
    from safetensors import safe_open

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
