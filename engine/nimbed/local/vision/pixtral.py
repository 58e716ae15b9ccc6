"""The Pixtral vision tower, and the projector of Mistral 3 behind it.

A pre-norm transformer whose rotary positions have two axes: half of a head's frequencies turn with
a patch's row, half with its column. Every image is one sequence of the packed batch, of whatever
size it is. The state dict is that of ``transformers.PixtralVisionModel``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nimbed.errors import CheckpointError
from nimbed.local import kernels
from nimbed.local.attention import attention_for
from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Activation, dense, read_affine, read_dense
from nimbed.local.models.fields import heads_fit, only, real, whole
from nimbed.local.models.llama import GatedLayers, LayerShape
from nimbed.local.norms import RmsNorm
from nimbed.local.rope import Turn
from nimbed.local.vision.settings import PixtralSettings
from nimbed.local.weights import Tensors

__all__ = ["Pixtral", "Projector"]

_EPS = 1e-5  # transformers' own; no configuration says it
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}


class Pixtral:
    """A Pixtral vision tower on one device.

    Args:
        config: ``vision_config`` of the checkpoint.
        tensors: Its weights.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that this tower does not do.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Tensors, placement: Placement) -> None:
        only(config, num_channels=3)
        named = config.get("hidden_act", "gelu")
        if named not in _ACTIVATIONS:
            raise CheckpointError(
                f"config.json asks for hidden_act {named!r} in vision_config; nimbed has "
                f"{', '.join(_ACTIVATIONS)}"
            )
        self._placement = placement
        self.width, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
        head_dim = heads_fit(self.width, heads)
        only(config, head_dim=head_dim)
        self._frequencies = _frequencies(config, head_dim, placement.device)
        self.patch = whole(config, "patch_size")
        # A convolution whose stride is its width is one product a patch.
        weight = tensors.get("patch_conv.weight", self.width, 3, self.patch, self.patch)
        self._patches = dense(weight.flatten(1), None, placement)
        self._norm = RmsNorm.read(
            tensors, "ln_pre", self.width, placement, eps=_EPS, before_product=False
        )
        shape = LayerShape(
            width=self.width,
            inner=whole(config, "intermediate_size"),
            heads=heads,
            key_heads=heads,
            head_dim=head_dim,
            eps=_EPS,
            activation=_ACTIVATIONS[named],
            names=("attention", "feed_forward", "attention_norm", "ffn_norm"),
        )
        attention = attention_for(placement)
        self._layers = GatedLayers(
            shape,
            tensors,
            placement,
            [attention] * whole(config, "num_hidden_layers"),
            at="transformer.layers",
            last=None,
        )

    def __call__(self, images: Sequence[NDArray[np.float32]]) -> list[torch.Tensor]:
        """Return the last layer's states.

        Args:
            images: Normalised pixels of shape (height, width, 3), both multiples of a patch's side.

        Returns:
            A tensor an image, of shape (rows of patches, columns of patches, width).
        """
        device, dtype = self._placement.device, self._placement.dtype
        grids = [(image.shape[0] // self.patch, image.shape[1] // self.patch) for image in images]
        flat = [_patches(torch.from_numpy(image).to(device, dtype), self.patch) for image in images]
        layout = Layout.of([rows * columns for rows, columns in grids], device)
        spare = layout.rows - layout.tokens
        x = self._patches(F.pad(torch.cat(flat), (0, 0, 0, spare)))
        normed = self._norm(x)
        assert isinstance(normed, torch.Tensor)  # no product follows this norm
        angles = torch.cat([self._angles(*grid) for grid in grids])
        angles = F.pad(angles, (0, 0, 0, spare))[:, None]
        turn = Turn(angles.cos().to(dtype), angles.sin().to(dtype), kernels.usable(device))
        states = self._layers(normed, layout, turn)[: layout.tokens]
        parts = torch.split(states, [rows * columns for rows, columns in grids])
        return [part.view(*grid, -1) for part, grid in zip(parts, grids, strict=True)]

    def _angles(self, rows: int, columns: int) -> torch.Tensor:
        """Return each patch's angles, of shape (rows * columns, head_dim / 2), row by row."""
        device = self._placement.device
        row, column = (torch.arange(n, device=device).float() for n in (rows, columns))
        by_row = (row[:, None] * self._frequencies[0::2])[:, None].expand(-1, columns, -1)
        by_column = (column[:, None] * self._frequencies[1::2])[None].expand(rows, -1, -1)
        return torch.cat([by_row, by_column], dim=-1).flatten(0, 1)


class Projector:
    """Joins each square of patches into one state of the language model's.

    Args:
        config: config.json of the checkpoint.
        tensors: Its weights.
        width: Of the tower's states.
        settings: Of the images.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Tensors,
        *,
        width: int,
        settings: PixtralSettings,
        placement: Placement,
    ) -> None:
        only(config, projector_hidden_act="gelu")
        language, self._shrink = config["text_config"], settings.shrink
        outer, bias = whole(language, "hidden_size"), bool(config.get("multimodal_projector_bias"))
        eps = real(language, "rms_norm_eps")
        self._norm = RmsNorm.read(tensors, "norm", width, placement, eps=eps, before_product=False)
        name, joined = "patch_merger.merging_layer", self._shrink**2
        merged = read_affine(tensors, {name: width}, width * joined, bias=False).weight
        # Stored with a channel's patches side by side; here a patch's channels lie so.
        merged = merged.view(width, width, joined).transpose(1, 2).reshape(width, -1)
        self._merged = dense(merged, None, placement)
        self._up = read_dense(tensors, {"linear_1": outer}, width, placement, bias=bias)
        self._down = read_dense(tensors, {"linear_2": outer}, outer, placement, bias=bias)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the language model reads for one image.

        Args:
            states: The tower's, of shape (rows, columns, width).

        Returns:
            Tensor of shape (rows / shrink * columns / shrink, width of the language model).
        """
        shrink, (rows, columns, width) = self._shrink, states.shape
        normed = self._norm(states.flatten(0, 1))
        assert isinstance(normed, torch.Tensor)  # no product follows this norm
        squares = normed.view(rows // shrink, shrink, columns // shrink, shrink, width)
        joined = squares.transpose(1, 2).reshape(-1, shrink * shrink * width)
        return self._down(self._up.gelu(self._merged(joined)))


def _frequencies(config: Mapping[str, Any], head_dim: int, device: torch.device) -> torch.Tensor:
    """Return radians a patch, of shape (head_dim / 2,): even ones for rows, odd for columns."""
    asked = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
    if not isinstance(asked, dict) or asked.get("rope_type") not in (None, "axial", "default"):
        raise CheckpointError(
            f"config.json gives rope_parameters {asked!r} in vision_config; Pixtral's are axial"
        )
    if head_dim % 4:
        raise CheckpointError(
            f"config.json gives the vision tower heads of {head_dim} dimensions, which two axes "
            f"cannot share"
        )
    base = real(asked, "rope_theta", default=10000.0)
    powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return (1.0 / base**powers).to(device)


def _patches(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Turn an image into patches, as a matrix product wants them.

    Args:
        pixels: Of shape (height, width, 3).
        side: Of a patch, in pixels.

    Returns:
        Tensor of shape (patches, 3 * side * side): row by row; within one the channels outermost,
        as a convolution's weight has them.
    """
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    grid = pixels.view(rows, side, columns, side, 3).permute(0, 2, 4, 1, 3)
    return grid.reshape(rows * columns, 3 * side * side)
