"""Tiny random bidirectional Mistral checkpoints against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.local.families import TEXTS, embed, load
from tests.engine.local.oracles import (
    config_of,
    mean_vectors,
    oracle,
    padded_mean_vectors,
    token_ids,
    weights_of,
)
from tests.engine.local.tiny_decoders import tiny_mistral


@pytest.mark.parametrize(("role", "prompt"), [("query", "query: "), ("passage", "passage: ")])
def test_it_equals_transformers_without_a_sliding_window(tmp_path, role, prompt):
    folder = tiny_mistral(tmp_path / "model")
    expected = mean_vectors(oracle(folder), token_ids(folder, TEXTS, prompt=prompt))
    got = embed(folder, role=role)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    causal = mean_vectors(oracle(folder, causal=True), token_ids(folder, TEXTS, prompt=prompt))
    assert np.abs(got - causal).max() > 1e-2


def test_a_sliding_window_would_give_something_else(tmp_path):
    """transformers 5 applies it in both directions; the models were trained without."""
    import torch
    import transformers

    folder = tiny_mistral(tmp_path / "model")
    config = config_of(folder)
    del config["model_type"]
    settings = transformers.MistralConfig(**config, attn_implementation="eager")
    settings.is_causal = False
    model = transformers.MistralModel(settings)
    model.load_state_dict(weights_of(folder), strict=True)
    with torch.inference_mode():
        windowed = mean_vectors(model.eval(), token_ids(folder, TEXTS, prompt="passage: "))
    assert settings.sliding_window == 4
    assert np.abs(embed(folder) - windowed).max() > 1e-2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_references_agree(tmp_path, side):
    folder = tiny_mistral(tmp_path / "model")
    rows = token_ids(folder, TEXTS, prompt="passage: ")
    expected = padded_mean_vectors(oracle(folder), rows, side=side, pad=2)
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 4])
def test_a_stock_mistral_that_says_it_looks_both_ways_obeys_its_window(tmp_path, window):
    folder = tiny_mistral(
        tmp_path / "stock",
        **{"model_type": "mistral", "architectures": ["MistralModel"], "is_causal": False},
        sliding_window=window,
    )
    expected = mean_vectors(oracle(folder), token_ids(folder, TEXTS))
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


def test_catalogue_prompts_can_be_overridden_with_a_card(tmp_path):
    import dataclasses

    folder = tiny_mistral(tmp_path / "model")
    card = dataclasses.replace(load(folder).card, id=str(folder), query_prompt="question: ")
    embedder = load(card)
    expected = mean_vectors(oracle(folder), token_ids(folder, TEXTS, prompt="question: "))
    got = embedder.embed(TEXTS, input_type="query").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
