"""NV-Embed: a bidirectional Mistral whose states pass through latent attention before pooling.

What it wants of instructions and end-of-text tokens, tokenizer.py and pooling.py do.
"""

from __future__ import annotations

from typing import Any

import torch

from nimbed.errors import CheckpointError
from nimbed.local.batching import Layout
from nimbed.local.device import Placement
from nimbed.local.linear import Affine, dense, gated
from nimbed.local.models.fields import whole
from nimbed.local.models.llama import Llama
from nimbed.local.norms import LayerNorm
from nimbed.local.weights import Tensors

__all__ = ["NvEmbed"]

_EPS = 1e-5  # torch's own default; no configuration says it


class NvEmbed:
    """An NV-Embed encoder on one device.

    Args:
        config: config.json of the checkpoint.
        tensors: Its weights.
        placement: Device and dtype.

    Raises:
        CheckpointError: If a weight is missing or misshapen, or the configuration is incomplete.
    """

    def __init__(self, config: dict[str, Any], tensors: Tensors, placement: Placement) -> None:
        language, latent = config["text_config"], config["latent_attention_config"]
        language = {"model_type": "bidir_mistral", **language}
        self._mistral = Llama(language, tensors.stripped("embedding_model."), placement)
        self._latent = _LatentAttention(
            latent,
            whole(language, "hidden_size"),
            tensors.stripped("latent_attention_model."),
            placement.plain,
        )
        self.vocabulary = self._mistral.vocabulary
        self.attentions = self._mistral.attentions

    def __call__(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the states that are pooled, of shape (layout.rows, width)."""
        return self._latent(self._mistral(ids, layout))


class _LatentAttention:
    """Cross-attention from token states to trained latents, then a gated MLP.

    The latents are constants, so keys and values are too, and the projections around them fold
    into two matrices: with keys Kₕ = LN(latents)·Wkₕᵀ and values Vₕ of a head,

        logitsₕ = LN(x)·Wqₕᵀ·Kₕᵀ = LN(x)·scoresₕᵀ      scoresₕ = Kₕ·Wqₕ        (latents, width)
        outₕ    = softmax(logitsₕ)·Vₕ·Woₕᵀ             mixₕ    = Woₕ·Vₕᵀ        (width, latents)

    537 million parameters less, for NV-Embed's sizes, and the same function.
    """

    def __init__(
        self, config: dict[str, Any], width: int, tensors: Tensors, placement: Placement
    ) -> None:
        self._heads = whole(config, "num_cross_heads", default=8)
        count = whole(config, "num_latents_value", default=512)
        head_dim = whole(config, "cross_dim_head", default=4096)
        latent_width = whole(config, "latent_dim", default=4096)
        if whole(config, "hidden_dim", default=width) != width:
            raise CheckpointError(
                f"config.json gives latent attention {config['hidden_dim']} dimensions, the "
                f"language model {width}"
            )
        attend, mlp = "cross_attend_blocks.0", "cross_attend_blocks.1"
        self._norm = LayerNorm.read(tensors, f"{attend}.norm", width, placement, eps=_EPS)
        self._mlp_norm = LayerNorm.read(tensors, f"{mlp}.norm", width, placement, eps=_EPS)
        # What is folded is folded in float32, whatever the dtype of the file or the run.
        exact = Placement(torch.device("cpu"), torch.float32)
        normed = LayerNorm.read(tensors, f"{attend}.norm_context", latent_width, exact, eps=_EPS)
        latents = normed(tensors.get("latents", count, latent_width).float())
        inner = self._heads * head_dim
        scores, mix = _folded(
            latents,
            tensors.get(f"{attend}.fn.to_q.weight", inner, width).chunk(self._heads),
            tensors.get(f"{attend}.fn.to_kv.weight", 2 * inner, latent_width).chunk(
                2 * self._heads
            ),
            tensors.get(f"{attend}.fn.to_out.weight", width, inner).chunk(self._heads, dim=1),
        )
        self._scores = dense(scores * head_dim**-0.5, None, placement)
        self._mix = dense(mix, None, placement)
        hidden = 4 * width
        value, gate = tensors.get(f"{mlp}.fn.net.0.weight", 2 * hidden, width).chunk(2)
        value_bias, gate_bias = tensors.get(f"{mlp}.fn.net.0.bias", 2 * hidden).chunk(2)
        self._gated = gated(Affine(gate, gate_bias), Affine(value, value_bias), "gelu", placement)
        self._down = dense(
            tensors.get(f"{mlp}.fn.net.2.weight", width, hidden),
            tensors.get(f"{mlp}.fn.net.2.bias", width),
            placement,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        logits = self._scores(self._norm(x)).view(x.shape[0], self._heads, -1)
        x = self._mix.plus(torch.softmax(logits, dim=-1).flatten(1), x)
        return self._down.plus(self._gated(self._mlp_norm(x)), x)


def _folded(
    latents: torch.Tensor,
    queries: tuple[torch.Tensor, ...],
    keys_values: tuple[torch.Tensor, ...],
    outputs: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold the projections of every head, one at a time and in float32.

    Args:
        latents: Normed latents of shape (latents, latent_width), float32.
        queries: Wq of each head, (head_dim, width).
        keys_values: Wk of each head, then Wv of each, (head_dim, latent_width).
        outputs: Wo of each head, (width, head_dim).

    Returns:
        Scores of shape (heads * latents, width) and mix of shape (width, heads * latents).
    """
    heads = len(queries)
    keys = [latents @ weight.float().T for weight in keys_values[:heads]]
    values = [latents @ weight.float().T for weight in keys_values[heads:]]
    scores = [key @ query.float() for key, query in zip(keys, queries, strict=True)]
    mix = [out.float() @ value.T for out, value in zip(outputs, values, strict=True)]
    return torch.cat(scores), torch.cat(mix, dim=1)
