"""The SigLIP vision tower.

A pre-norm transformer with learnt positions; every tile is one sequence of the packed batch. The
state dict is that of ``transformers.SiglipVisionModel``; its pooling head is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nimbed.errors import CheckpointError
from nimbed.local.attention import Attention, attention_for
from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Dense, dense, read_dense
from nimbed.local.models.fields import heads_fit, only, real, whole
from nimbed.local.norms import LayerNorm
from nimbed.local.weights import Tensors

__all__ = ["Siglip", "patches"]


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: LayerNorm
    qkv: Dense
    attended: Dense
    mlp_norm: LayerNorm
    up: Dense
    down: Dense

    def __call__(
        self, x: torch.Tensor, layout: Layout, attention: Attention, heads: int
    ) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).view(layout.rows, 3, heads, -1).unbind(1)
        x = self.attended.plus(attention(q, k, v, layout), x)
        inner = self.up.gelu_tanh(self.mlp_norm(x))
        return self.down.plus(inner, x)


class Siglip:
    """A SigLIP vision tower on one device.

    Args:
        config: ``vision_config`` of the checkpoint.
        tensors: Its weights; ``vision_model.`` may stand before a name once, twice or never.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration asks for
            something that this tower does not do.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Tensors, placement: Placement) -> None:
        only(config, hidden_act="gelu_pytorch_tanh", num_channels=3)
        # transformers 5 flattened the module, so files have one or two of these before a name.
        tensors = tensors.stripped("model.", "vision_model.", "vision_model.")
        self._placement = placement
        self._attention = attention_for(placement)
        self.width, self.side = whole(config, "hidden_size"), whole(config, "image_size")
        self._heads, self._patch = whole(config, "num_attention_heads"), whole(config, "patch_size")
        heads_fit(self.width, self._heads)
        if self.side % self._patch:
            raise CheckpointError(
                f"config.json divides tiles of {self.side} pixels into patches of {self._patch}, "
                f"which leaves a remainder"
            )
        self.patches_a_side = self.side // self._patch
        eps = real(config, "layer_norm_eps", default=1e-6)
        table = tensors.get(
            "embeddings.position_embedding.weight", self.patches_a_side**2, self.width
        )
        self._positions = table.to(placement.device, placement.dtype)
        # A convolution whose stride is its width is one product a patch.
        name, wide = "embeddings.patch_embedding", (3, self._patch, self._patch)
        weight = tensors.get(f"{name}.weight", self.width, *wide).flatten(1)
        self._patches = dense(weight, tensors.get(f"{name}.bias", self.width), placement)
        inner = whole(config, "intermediate_size")
        self._layers = [
            self._layer(tensors, f"encoder.layers.{number}", inner, eps)
            for number in range(whole(config, "num_hidden_layers"))
        ]
        self._norm = LayerNorm.read(tensors, "post_layernorm", self.width, placement, eps=eps)

    def _layer(self, tensors: Tensors, at: str, inner: int, eps: float) -> _Layer:
        width, placement, own = self.width, self._placement, f"{at}.self_attn"
        names = [f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj"]

        def product(names: list[str], outputs: int, inputs: int) -> Dense:
            sizes = dict.fromkeys(names, outputs)
            return read_dense(tensors, sizes, inputs, placement, bias=True)

        return _Layer(
            norm=LayerNorm.read(tensors, f"{at}.layer_norm1", width, placement, eps=eps),
            qkv=product(names, width, width),
            attended=product([f"{own}.out_proj"], width, width),
            mlp_norm=LayerNorm.read(tensors, f"{at}.layer_norm2", width, placement, eps=eps),
            up=product([f"{at}.mlp.fc1"], inner, width),
            down=product([f"{at}.mlp.fc2"], width, inner),
        )

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the last layer's normed states.

        Args:
            tiles: uint8 of shape (count, side, side, 3) on the tower's device.

        Returns:
            Tensor of shape (count, patches a side, patches a side, width).
        """
        count, a_side = tiles.shape[0], self.patches_a_side
        layout = Layout.of([a_side * a_side] * count, self._placement.device)
        x = self._patches(patches(tiles, self._patch, self._placement.dtype))
        x = (x.view(count, -1, self.width) + self._positions).flatten(0, 1)
        x = F.pad(x, (0, 0, 0, layout.rows - layout.tokens))
        for layer in self._layers:
            x = layer(x, layout, self._attention, self._heads)
        return self._norm(x[: layout.tokens]).view(count, a_side, a_side, self.width)


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
