"""From an image to its tiles, and from tiles to patches that a vision tower reads.

Decoding, turning and resizing run in threads (Pillow releases the interpreter's lock for them).
Knows nothing about prompts or models.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.images import Image
from nimbed.local.vision.tiling import Grid

__all__ = ["cut", "decoders", "patches"]


def cut(image: Image, grid: Grid, side: int) -> NDArray[np.uint8]:
    """Resize an image to its grid and cut it into tiles.

    Args:
        image: The image.
        grid: How it is cut.
        side: Pixels of a tile's side.

    Returns:
        Bytes of shape (grid.tiles, side, side, 3): row by row, the thumbnail last.

    Raises:
        InputError: If the image is damaged.
        MissingExtraError: If Pillow is not installed.
    """
    picture = image.rgb()
    from PIL.Image import Resampling

    whole = picture.resize((grid.columns * side, grid.rows * side), Resampling.BICUBIC)
    # (rows, side, columns, side, 3) -> (rows, columns, side, side, 3)
    tiles = np.asarray(whole).reshape(grid.rows, side, grid.columns, side, 3).swapaxes(1, 2)
    tiles = tiles.reshape(-1, side, side, 3)
    if not grid.thumbnail:
        return np.ascontiguousarray(tiles)
    small = np.asarray(picture.resize((side, side), Resampling.BICUBIC))
    return np.concatenate([tiles, small[None]])


def patches(tiles: torch.Tensor, patch: int, dtype: torch.dtype) -> torch.Tensor:
    """Turn tiles into normalised patches, as a matrix product wants them.

    Args:
        tiles: uint8 of shape (count, side, side, 3).
        patch: Pixels of a patch's side.
        dtype: What the tower runs in.

    Returns:
        Values from -1 to 1 of shape (count * (side / patch) ** 2, 3 * patch * patch): patches
        row by row; within one the channels outermost, as a convolution's weight has them.
    """
    count, side = tiles.shape[0], tiles.shape[1] // patch
    # In float32 until the end: (x / 255 - 0.5) / 0.5 loses levels in bfloat16.
    values = tiles.float().div_(255).sub_(0.5).div_(0.5).to(dtype)
    grid = values.view(count, side, patch, side, patch, 3).permute(0, 1, 3, 5, 2, 4)
    return grid.reshape(count * side * side, 3 * patch * patch)


@functools.cache
def decoders() -> ThreadPoolExecutor:
    """Return the threads that decode, one pool for the whole process."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="nimbed-decoder")


if hasattr(os, "register_at_fork"):
    # A forked child has the pool but none of its threads, and would wait for them forever.
    os.register_at_fork(after_in_child=decoders.cache_clear)
