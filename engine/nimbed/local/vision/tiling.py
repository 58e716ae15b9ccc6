"""From an image's size to the grid of square tiles it is cut into.

Plain numbers; knows nothing about pixels. The rule is that of Nemotron VL (and of Eagle before
it): the grid that keeps the aspect ratio best, weighed with how much of the image's area it
keeps, where keeping 60 % counts as keeping all.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

__all__ = ["Grid", "Tiling"]

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
