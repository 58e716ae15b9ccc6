"""Mistral 3 (Nemotron-3.5-Embed): a Pixtral tower, a projector and a Ministral or Mistral.

The language model reads an image's states in the places of its tokens. The state dict is that of
``transformers.Mistral3Model``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.models.fields import mistral3_language, only
from nimbed.local.models.llama import ministral3, mistral
from nimbed.local.vision.pixtral import Pixtral, Projector
from nimbed.local.vision.settings import PixtralSettings, Resized
from nimbed.local.weights import Tensors

__all__ = ["Mistral3"]

_READERS = {"ministral3": ministral3, "ministral3_bidirec": ministral3, "mistral": mistral}


class Mistral3:
    """A Mistral 3 encoder on one device.

    Args:
        config: config.json of the checkpoint.
        tensors: Its weights.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that this model does not do.
    """

    def __init__(self, config: dict[str, Any], tensors: Tensors, placement: Placement) -> None:
        only(config, vision_feature_layer=-1)
        language = mistral3_language(config)
        # Saved from a class with or without a language model's head, old or new.
        self._language = _READERS[language["model_type"]](
            language, tensors.stripped("model.", "language_model.", "model."), placement
        )
        placement = placement.plain  # float8 is for the language model alone
        self._settings = settings = PixtralSettings.read(config)
        tensors = tensors.stripped("model.")
        self._tower = Pixtral(
            config["vision_config"], tensors.stripped("vision_tower.", "vision_model."), placement
        )
        self._projector = Projector(
            {**config, "text_config": language},
            tensors.stripped("multi_modal_projector."),
            width=self._tower.width,
            settings=settings,
            placement=placement,
        )
        self.vocabulary = self._language.vocabulary
        self.attentions = self._language.attentions

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return states of shape (layout.rows, width) for packed ids without images."""
        return self._language(ids, layout)

    def patches(self, cutting: Resized) -> int:
        """Return how many patches the tower reads of an image."""
        return cutting.width * cutting.height // self._tower.patch**2

    def read_images(
        self, images: Sequence[NDArray[np.float32]], *, budget: int
    ) -> list[torch.Tensor]:
        """Return what the language model reads for images.

        Args:
            images: Normalised pixels of shape (height, width, 3), of whole squares.
            budget: Patches that the tower may hold at a time.

        Returns:
            A tensor an image, of shape (its tokens, width).
        """
        found: list[torch.Tensor] = []
        part: list[NDArray[np.float32]] = []
        held = 0
        for image in images:
            patches = image.shape[0] * image.shape[1] // self._tower.patch**2
            if part and held + patches > budget:
                found.extend(self._read(part))
                part, held = [], 0
            part.append(image)
            held += patches
        return [*found, *self._read(part)]

    def _read(self, images: Sequence[NDArray[np.float32]]) -> list[torch.Tensor]:
        return [self._projector(states) for states in self._tower(images)]

    def with_images(self, ids: torch.Tensor, layout: Layout, images: torch.Tensor) -> torch.Tensor:
        """Return states for packed ids whose image tokens stand for images.

        Args:
            ids: Packed token ids of shape (layout.rows,).
            layout: Where the sequences lie.
            images: The images' states in the order of their tokens, of shape (tokens, width).

        Raises:
            CheckpointError: If there are not as many image tokens as states.
        """
        mark = self._settings.context[1]
        return self._language.with_images(ids, layout, images, mark=mark, key="image_token_index")
