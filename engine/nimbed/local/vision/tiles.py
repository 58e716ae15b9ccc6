"""Tiles of an image: the grid it is cut into, and the cutting.

The rule is that of Nemotron VL (and of Eagle before it): the grid that keeps the aspect ratio best,
weighed with how much of the image's area it keeps, where keeping 60 % counts as keeping all.
Decoding, turning and resizing run in threads (Pillow releases the interpreter's lock for them).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nimbed.images import Image

__all__ = ["Cutting", "Grid", "Tiles", "Tiling", "cut", "decoders"]

_ENOUGH_AREA = 0.6


class Grid(NamedTuple):
    """How one image is cut: columns, rows, and whether a thumbnail of the whole follows."""

    columns: int
    rows: int
    thumbnail: bool

    @property
    def tiles(self) -> int:
        """Tiles in all, the thumbnail included."""
        return self.columns * self.rows + self.thumbnail


class Cutting(Hashable, Protocol):
    """How one image becomes the pixels that a tower reads."""

    def __call__(self, image: Image, /) -> NDArray[Any]:
        """Return the pixels; raises InputError if the image is damaged."""
        ...


class Tiles(NamedTuple):
    """How one image becomes tiles: its grid, and pixels of a tile's side."""

    grid: Grid
    side: int

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """Return the tiles; see :func:`cut`."""
        return cut(image, self.grid, self.side)


class Tiling(NamedTuple):
    """The tiling rule of one model.

    Attributes:
        side: Pixels of a tile's side.
        least: Fewest tiles of a grid.
        most: Most tiles of a grid, the thumbnail not counted.
        thumbnail: Whether an image of more than one tile is also shown as a whole.
    """

    side: int
    least: int
    most: int
    thumbnail: bool

    def grid(self, width: int, height: int) -> Grid:
        """Choose the grid for an image of this size in pixels."""
        columns, rows = self._best(width, height)
        return Grid(columns, rows, self.thumbnail and columns * rows > 1)

    def _best(self, width: int, height: int) -> tuple[int, int]:
        # Floats, in this order of operations: ties are decided by the last bit.
        aspect, area = width / height, width * height
        best, chosen = float("-inf"), (1, 1)
        for columns, rows in _candidates(self.least, self.most):
            shape = columns / rows
            kept = min(columns * rows * self.side * self.side / area, _ENOUGH_AREA)
            score = kept * min(shape / aspect, aspect / shape)
            if score > best:
                best, chosen = score, (columns, rows)
        return chosen


@functools.cache
def _candidates(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """Return every grid of ``least`` to ``most`` tiles, smallest area first.

    The reference sorts a set of pairs, so that grids of equal area come in the set's order, and
    the first of two equally good ones wins. The same set in the same order of insertion is
    therefore built here.
    """
    pairs = {
        (columns, rows)
        for count in range(least, most + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if least <= columns * rows <= most
    }
    return tuple(sorted(pairs, key=lambda pair: pair[0] * pair[1]))


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


@functools.cache
def decoders() -> ThreadPoolExecutor:
    """Return the threads that decode, one pool for the whole process."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="nimbed-decoder")


if hasattr(os, "register_at_fork"):
    # A forked child has the pool but none of its threads, and would wait for them forever.
    os.register_at_fork(after_in_child=decoders.cache_clear)
