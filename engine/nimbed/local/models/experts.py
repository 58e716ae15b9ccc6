"""A mixture of experts: an MLP of which each token meets a few parts (nomic-embed-text-v2-moe)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nimbed.errors import CheckpointError
from nimbed.local.batching import padded_total
from nimbed.local.device import Placement
from nimbed.local.linear import Activations, Dense, dense
from nimbed.local.weights import Tensors

__all__ = ["Experts"]


@dataclass(frozen=True, slots=True)
class Experts:
    """Σ shareₑ · downₑ(gelu(upₑ·x)) + bias over the experts e that the router likes best.

    A share is the softmax over all experts, in float32, and not divided by the sum of those chosen.

    Attributes:
        router: One output an expert, in float32.
        parts: Both products of each expert.
        bias: Of shape (width,), added once.
        chosen: How many experts a token meets.
    """

    router: Dense
    parts: Sequence[tuple[Dense, Dense]]
    bias: torch.Tensor
    chosen: int

    def __call__(self, x: Activations) -> torch.Tensor:
        """Return what the experts make of x of shape (rows, width)."""
        assert isinstance(x, torch.Tensor)
        shares, experts = self.router(x.float()).softmax(-1).topk(self.chosen)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for number, (up, down) in enumerate(self.parts):
            if not x.is_cpu:
                # Which rows are whose is a value, for which a device would have to be waited.
                share = shares.masked_fill(experts != number, 0).sum(-1, keepdim=True)
                out += down(up.gelu(x)).float() * share
                continue
            rows, places = torch.where(experts == number)
            if len(rows):
                # Products of few shapes, and of enough rows for each to be independent of them.
                filled = F.pad(rows, (0, padded_total(len(rows)) - len(rows)))
                made = down(up.gelu(x[filled]))[: len(rows)].float()
                out.index_add_(0, rows, made * shares[rows, places, None])
        return out.add_(self.bias).to(x.dtype)

    def plus(self, x: Activations, residual: torch.Tensor) -> torch.Tensor:
        """Return what the experts make of x, plus a residual."""
        return self(x).add_(residual)

    @classmethod
    def read(
        cls,
        tensors: Tensors,
        at: str,
        placement: Placement,
        *,
        width: int,
        inner: int,
        experts: int,
        chosen: int,
    ) -> Experts:
        """Read the experts of a layer, whose weights lie in two tensors, expert by expert.

        Args:
            tensors: Of the checkpoint.
            at: Name of the layer's MLP.
            placement: Device and dtype.
            width: Of the states.
            inner: Of an expert's hidden layer.
            experts: How many there are.
            chosen: How many a token meets.

        Raises:
            CheckpointError: If a weight is missing or misshapen, or there are fewer experts.
        """
        if chosen > experts:
            raise CheckpointError(f"config.json has a token meet {chosen} experts of {experts}")
        whole = Placement(placement.device, torch.float32)
        up, down = (  # of each expert as (inner, width)
            tensors.get(f"{at}.experts.mlp.{name}", experts * inner, width).chunk(experts)
            for name in ("w1", "w2")
        )
        return cls(
            router=dense(tensors.get(f"{at}.router.layer.weight", experts, width), None, whole),
            parts=[
                (dense(first, None, placement), dense(second.t().contiguous(), None, placement))
                for first, second in zip(up, down, strict=True)
            ],
            bias=tensors.placed(whole, f"{at}.experts.bias", width),
            chosen=chosen,
        )
