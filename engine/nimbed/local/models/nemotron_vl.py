"""Nemotron VL: a SigLIP tower, a projector and a bidirectional Llama.

The Llama reads an image's states in the places of its context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.linear import read_dense
from nimbed.local.models.fields import whole
from nimbed.local.models.llama import Llama
from nimbed.local.norms import LayerNorm
from nimbed.local.vision.settings import VisionSettings
from nimbed.local.vision.siglip import Siglip
from nimbed.local.vision.tiles import Tiles
from nimbed.local.weights import Tensors

__all__ = ["NemotronVL", "pixel_shuffle"]


class NemotronVL:
    """A Nemotron VL encoder on one device.

    Args:
        config: config.json of the checkpoint.
        tensors: Its weights.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that this model does not do.
    """

    def __init__(self, config: dict[str, Any], tensors: Tensors, placement: Placement) -> None:
        language, vision = config["llm_config"], config["vision_config"]
        if config.get("bidirectional_attention") is True:
            language = {**language, "is_causal": False}
        # Files in the wild put these words before a name in any of the usual combinations.
        self._language = Llama(
            language, tensors.stripped("model.", "language_model.", "model."), placement
        )
        placement = placement.plain  # float8 is for the language model alone
        self._tower = Siglip(vision, tensors, placement)
        self._settings, self._placement = VisionSettings.read(config), placement
        self.vocabulary = self._language.vocabulary
        self.attentions = self._language.attentions
        self._patches_a_tile = self._tower.patches_a_side**2
        joined = self._tower.width * self._settings.shrink**2
        width = whole(language, "hidden_size")
        tensors = tensors.stripped("model.")
        self._norm = LayerNorm.read(tensors, "mlp1.0", joined, placement, eps=1e-5)
        self._up = read_dense(tensors, {"mlp1.1": width}, joined, placement, bias=True)
        self._down = read_dense(tensors, {"mlp1.3": width}, width, placement, bias=True)

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return states of shape (layout.rows, width) for packed ids without images."""
        return self._language(ids, layout)

    def patches(self, cutting: Tiles) -> int:
        """Return how many patches the tower reads of an image."""
        return cutting.grid.tiles * self._patches_a_tile

    def read_images(
        self, images: Sequence[NDArray[np.uint8]], *, budget: int
    ) -> list[torch.Tensor]:
        """Return what the language model reads for images, whosever tiles the tower has at a time.

        Args:
            images: Their tiles, uint8 of shape (tiles, side, side, 3).
            budget: Patches that the tower may hold at a time.

        Returns:
            A tensor an image, of shape (tiles * tokens a tile, width).
        """
        tiles = torch.from_numpy(np.concatenate(images))
        parts = torch.split(tiles, max(1, budget // self._patches_a_tile))
        states = torch.cat([self.image_states(part) for part in parts])
        tokens = len(states) // len(tiles)
        return list(torch.split(states, [len(image) * tokens for image in images]))

    def image_states(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return what the language model reads for tiles.

        Args:
            tiles: uint8 of shape (count, side, side, 3), on any device.

        Returns:
            Tensor of shape (count * tokens a tile, width).
        """
        states = self._tower(tiles.to(self._placement.device, non_blocking=True))
        states = pixel_shuffle(
            states, self._settings.shrink, legacy=self._settings.legacy_shuffle
        ).flatten(0, 2)
        return self._down(self._up.gelu(self._norm(states)))

    def with_images(self, ids: torch.Tensor, layout: Layout, images: torch.Tensor) -> torch.Tensor:
        """Return states for packed ids whose context tokens stand for images.

        Args:
            ids: Packed token ids of shape (layout.rows,).
            layout: Where the sequences lie.
            images: The images' states in the order of the context tokens, of shape (context
                tokens, width).

        Raises:
            CheckpointError: If there are not as many context tokens as states.
        """
        mark = self._settings.context[1]
        return self._language.with_images(
            ids, layout, images, mark=mark, key="img_context_token_id"
        )


def pixel_shuffle(x: torch.Tensor, shrink: int, *, legacy: bool) -> torch.Tensor:
    """Join each square of ``shrink`` x ``shrink`` patches into one of as many more channels.

    Args:
        x: States of shape (count, height, width, channels).
        shrink: Patches a side that are joined.
        legacy: Leave height and width swapped, as ``ps_version`` v1 does.

    Returns:
        Tensor of shape (count, height / shrink, width / shrink, channels * shrink²).
    """
    count, height, width, channels = x.shape
    low, narrow = height // shrink, width // shrink
    squares = x.view(count, low, shrink, narrow, shrink, channels)
    # -> columns before rows for v1, rows before columns for v2; within, row then column
    order = (0, 3, 1, 2, 4, 5) if legacy else (0, 1, 3, 2, 4, 5)
    grid = (narrow, low) if legacy else (low, narrow)
    return squares.permute(*order).reshape(count, *grid, channels * shrink * shrink)
