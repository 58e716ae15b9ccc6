"""Rotary frequencies against transformers' own, to the last bit."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nimbed.local.rope import rope_for

REAL = {
    "llama 3.2 1B": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "mistral": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "ministral 3": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "plain yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
    },
}


@pytest.mark.parametrize("scaling", REAL.values(), ids=REAL.keys())
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_cosines_and_sines_are_equal_to_the_last_bit(scaling, head_dim, theta):
    rotary = {**scaling, "rope_theta": theta}
    config = LlamaConfig(
        hidden_size=32 * head_dim, num_attention_heads=32, head_dim=head_dim,
        max_position_embeddings=131072, rope_parameters=dict(rotary),
    )  # fmt: skip
    positions = torch.tensor([0, 1, 2, 77, 511, 8191, 8192, 32767])
    cos, sin = LlamaRotaryEmbedding(config)(torch.empty(1), positions[None])
    given = {"rope_parameters": rotary, "max_position_embeddings": 131072}
    rope = rope_for(given, head_dim, device=torch.device("cpu"), dtype=torch.float32)
    turn = rope.at(positions)
    assert torch.equal(turn.cos[:, 0], cos[0, :, : head_dim // 2])
    assert torch.equal(turn.sin[:, 0], sin[0, :, : head_dim // 2])
