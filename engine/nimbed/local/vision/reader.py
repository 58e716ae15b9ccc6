"""Images of a batch, and what a language model reads in their places.

Decodes ahead of the device, runs the tower over all images of a batch, and remembers the latest
results by content.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.errors import InputError
from nimbed.images import Image
from nimbed.local.batching import Layout
from nimbed.local.vision.tiles import Cutting, decoders

__all__ = ["ImageReader", "ImageRow", "VisionModel", "images_of"]

# Bytes of states kept on the device: some 36 pages of the 1B model in bfloat16.
_REMEMBERED = 256 * 2**20


class VisionModel(Protocol):
    """A language model with a tower before it."""

    def patches(self, cutting: Any) -> int:
        """Return how many patches the tower reads of an image that becomes pixels so."""
        ...

    def read_images(self, images: Sequence[NDArray[Any]], *, budget: int) -> list[torch.Tensor]:
        """Return the states of images, of shape (tokens, width), from their pixels."""
        ...

    def with_images(self, ids: torch.Tensor, layout: Layout, images: torch.Tensor) -> torch.Tensor:
        """Return states of shape (layout.rows, width) for ids, some of which stand for images."""
        ...


class ImageRow(list[int]):
    """Token ids with one context token a piece of the image; a list, as those of any other row.

    Args:
        ids: Token ids, special and context tokens included.
        image: What the context tokens stand for.
        cutting: How it becomes pixels.
        row: The caller's number of this input, for messages.
    """

    __slots__ = ("_decoding", "cutting", "image", "row")

    def __init__(self, ids: Sequence[int], *, image: Image, cutting: Cutting, row: int) -> None:
        super().__init__(ids)
        self.image, self.cutting, self.row = image, cutting, row
        self._decoding: Future[NDArray[Any]] | None = None

    @property
    def key(self) -> tuple[str, Cutting]:
        """What decides the pixels: the image's content and how it is cut."""
        return self.image.digest, self.cutting

    def decode(self) -> Future[NDArray[Any]]:
        """Begin to decode in a thread, if that has not begun yet."""
        if self._decoding is None:
            self._decoding = decoders().submit(self.cutting, self.image)
        return self._decoding

    def take(self) -> NDArray[Any]:
        """Return the pixels, and let go of them.

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


class ImageReader:
    """Turns images into states for one replica of a model; one thread at a time.

    Args:
        model: Whose tower reads them.
        remembered: Bytes of states to keep.
    """

    def __init__(self, model: VisionModel, *, remembered: int = _REMEMBERED) -> None:
        self._model = model
        self._room = remembered
        self._known: OrderedDict[tuple[str, Cutting], torch.Tensor] = OrderedDict()

    def size(self, row: Sized) -> int:
        """Return a row's share of a batch's tokens: of an image the tower reads more of them.

        A batch whose images fill the tower once is over soon, so that the first does not wait for
        many to be decoded.
        """
        patches = self._model.patches(row.cutting) if isinstance(row, ImageRow) else 0
        return max(len(row), patches)

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
        found: dict[tuple[str, Cutting], torch.Tensor] = {}
        unread: dict[tuple[str, Cutting], ImageRow] = {}
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
        images = list(images_of(rows))
        # Hashing a page takes 5 ms.
        keys = list(decoders().map(operator.attrgetter("key"), images)) if images else []
        for row, key in zip(images, keys, strict=True):
            if key not in self._known:
                row.decode()

    def _read(
        self, rows: list[ImageRow], budget: int
    ) -> Iterator[tuple[tuple[str, Cutting], torch.Tensor]]:
        """Run the tower over images that are not known yet."""
        if not rows:
            return
        states = self._model.read_images([row.take() for row in rows], budget=budget)
        for row, own in zip(rows, states, strict=True):
            yield row.key, own
            self._remember(row.key, own)

    def _remember(self, key: tuple[str, Cutting], states: torch.Tensor) -> None:
        # Cloned: a slice would keep the whole batch of states alive.
        self._known[key] = states.clone()
        self._room -= states.nbytes
        while self._room < 0:
            _, oldest = self._known.popitem(last=False)
            self._room += oldest.nbytes
