"""From rows with images to what a language model reads in their places.

Decodes ahead of the device, runs the tower over the tiles of all images of a batch, and
remembers the latest results by content. Knows nothing about prompts or pooling.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.local.batching import Layout
from nimbed.local.models.nemotron_vl import NemotronVL
from nimbed.local.vision.image_row import ImageRow, images_of
from nimbed.local.vision.tiling import Grid

__all__ = ["ImageReader"]

# Bytes of states kept on the device: some 36 pages of the 1B model in bfloat16.
_REMEMBERED = 256 * 2**20


class ImageReader:
    """Turns images into states for one replica of a model; one thread at a time.

    Args:
        model: Whose tower reads them.
        remembered: Bytes of states to keep.
    """

    def __init__(self, model: NemotronVL, *, remembered: int = _REMEMBERED) -> None:
        self._model = model
        self._room = remembered
        self._known: OrderedDict[tuple[str, Grid], torch.Tensor] = OrderedDict()

    def ahead(
        self, ids: Sequence[object], plan: Iterator[NDArray[np.intp]]
    ) -> Iterator[NDArray[np.intp]]:
        """Yield the batches of a plan, the images of the coming one decoded while one is used."""
        current = next(plan, None)
        while current is not None:
            coming = next(plan, None)
            self._decode([ids[row] for row in [*current, *(() if coming is None else coming)]])
            yield current
            current = coming

    def __call__(
        self, ids: torch.Tensor, layout: Layout, rows: Sequence[ImageRow], *, budget: int
    ) -> torch.Tensor:
        """Run the model over a batch that shows images.

        Args:
            ids: Packed token ids of shape (layout.rows,).
            layout: Where the sequences lie.
            rows: Those that show an image, in the order of the batch.
            budget: Patches that the tower may hold at a time.

        Returns:
            Token states of shape (layout.rows, width).

        Raises:
            InputError: If an image is damaged; it names its row.
            MissingExtraError: If Pillow is not installed.
        """
        return self._model.with_images(ids, layout, self._states(rows, budget))

    def _states(self, rows: Sequence[ImageRow], budget: int) -> torch.Tensor:
        """Return the states of images, one after the other."""
        self._decode(rows)
        found: dict[tuple[str, Grid], torch.Tensor] = {}
        unread: dict[tuple[str, Grid], ImageRow] = {}
        for row in rows:
            known = self._known.get(row.key)
            if known is None:
                unread.setdefault(row.key, row)
            else:
                self._known.move_to_end(row.key)
                found[row.key] = known
        found.update(self._read(list(unread.values()), budget))
        return torch.cat([found[row.key] for row in rows])

    def _decode(self, rows: Sequence[object]) -> None:
        for row in images_of(rows):
            if row.key not in self._known:
                row.decode()

    def _read(
        self, rows: list[ImageRow], budget: int
    ) -> Iterator[tuple[tuple[str, Grid], torch.Tensor]]:
        """Run the tower, as many tiles at a time as the budget allows, whosever they are."""
        if not rows:
            return
        tiles = torch.from_numpy(np.concatenate([row.take() for row in rows]))
        step = max(1, budget // self._model.patches_a_tile)
        states = torch.cat([self._model.image_states(part) for part in torch.split(tiles, step)])
        tokens = len(states) // len(tiles)
        lengths = [row.grid.tiles * tokens for row in rows]
        for row, own in zip(rows, torch.split(states, lengths), strict=True):
            yield row.key, own
            self._remember(row.key, own)

    def _remember(self, key: tuple[str, Grid], states: torch.Tensor) -> None:
        # Cloned: a slice would keep the whole batch of states alive.
        self._known[key] = states.clone()
        self._room -= states.nbytes
        while self._room < 0:
            _, oldest = self._known.popitem(last=False)
            self._room += oldest.nbytes
