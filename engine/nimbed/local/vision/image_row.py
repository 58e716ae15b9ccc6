"""Token ids of an input that shows an image, and the image's tiles when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import InputError
from nimbed.images import Image
from nimbed.local.vision.pixels import cut, decoders
from nimbed.local.vision.tiling import Grid

__all__ = ["ImageRow", "images_of"]


class ImageRow(list[int]):
    """Token ids with one context token a piece of the image; a list, as those of any other row.

    Args:
        ids: Token ids, special and context tokens included.
        image: What the context tokens stand for.
        grid: How it is cut.
        side: Pixels of a tile's side.
        row: The caller's number of this input, for messages.
    """

    __slots__ = ("_decoding", "grid", "image", "row", "side")

    def __init__(
        self, ids: Sequence[int], *, image: Image, grid: Grid, side: int, row: int
    ) -> None:
        super().__init__(ids)
        self.image, self.grid, self.side, self.row = image, grid, side, row
        self._decoding: Future[NDArray[np.uint8]] | None = None

    @property
    def key(self) -> tuple[str, Grid]:
        """What decides the tiles: the image's content and its grid."""
        return self.image.digest, self.grid

    def decode(self) -> Future[NDArray[np.uint8]]:
        """Begin to decode in a thread, if that has not begun yet."""
        if self._decoding is None:
            self._decoding = decoders().submit(cut, self.image, self.grid, self.side)
        return self._decoding

    def take(self) -> NDArray[np.uint8]:
        """Return the tiles, of shape (tiles, side, side, 3), and let go of them.

        Raises:
            InputError: If the image is damaged.
            MissingExtraError: If Pillow is not installed.
        """
        decoding, self._decoding = self.decode(), None
        try:
            return decoding.result()
        except InputError as error:
            raise InputError(f"row {self.row}: {error}", rows=[self.row]) from error


def images_of(ids: Sequence[object]) -> Iterator[ImageRow]:
    """Yield the rows that show an image, in order."""
    return (row for row in ids if isinstance(row, ImageRow))
