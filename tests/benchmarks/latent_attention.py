"""NV-Embed's latent attention as published, its projections unfolded."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LATENT = {"num_latents_value": 512, "num_cross_heads": 8, "cross_dim_head": 4096}


class LatentAttention(torch.nn.Module):
    """The block that NV-Embed puts behind its last layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = LATENT["num_cross_heads"] * LATENT["cross_dim_head"]
        self.latents = torch.nn.Parameter(torch.randn(LATENT["num_latents_value"], width))
        attend, attended, mlp, net = (torch.nn.Module() for _ in range(4))
        attend.norm, attend.norm_context = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        attended.to_q = torch.nn.Linear(width, inner, bias=False)
        attended.to_kv = torch.nn.Linear(width, 2 * inner, bias=False)
        attended.to_out = torch.nn.Linear(inner, width, bias=False)
        net.add_module("0", torch.nn.Linear(width, 8 * width))
        net.add_module("2", torch.nn.Linear(4 * width, width))
        attend.fn, mlp.norm, mlp.fn = attended, torch.nn.LayerNorm(width), torch.nn.Module()
        mlp.fn.net = net
        self.cross_attend_blocks = torch.nn.ModuleList([attend, mlp])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend, mlp = self.cross_attend_blocks
        q = attend.fn.to_q(attend.norm(x))
        k, v = attend.fn.to_kv(attend.norm_context(self.latents)).chunk(2, -1)
        heads = LATENT["num_cross_heads"]
        q, k, v = (t.view(*t.shape[:-1], heads, -1).transpose(-3, -2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k[None], v[None])
        x = attend.fn.to_out(mixed.transpose(1, 2).flatten(2)) + x
        value, gate = getattr(mlp.fn.net, "0")(mlp.norm(x)).chunk(2, -1)
        return getattr(mlp.fn.net, "2")(value * F.gelu(gate)) + x
