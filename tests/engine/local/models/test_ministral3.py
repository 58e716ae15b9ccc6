"""Tiny random bidirectional Ministral 3 checkpoints (Nemotron-3-Embed) against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.local.families import TEXTS, embed
from tests.engine.local.oracles import (
    config_of,
    mean_vectors,
    network,
    oracle,
    padded_mean_vectors,
    token_ids,
    weights_of,
)
from tests.engine.local.tiny_decoders import tiny_ministral

from nimbed.errors import CheckpointError

LONG = ["cat dog sky river " * 30, *TEXTS]


def test_it_equals_transformers_and_not_its_causal_self(tmp_path):
    folder = tiny_ministral(tmp_path / "model")
    rows = token_ids(folder, LONG)
    got = embed(folder, LONG)
    np.testing.assert_allclose(got, mean_vectors(oracle(folder), rows), atol=1e-5, rtol=0)
    assert np.abs(got - mean_vectors(oracle(folder, causal=True), rows)).max() > 1e-2


def test_queries_grow_with_their_position(tmp_path):
    folder = tiny_ministral(tmp_path / "model")
    config = config_of(folder)
    config["rope_parameters"]["llama_4_scaling_beta"] = 0.0
    flat = mean_vectors(network(config, weights_of(folder)), token_ids(folder, LONG))
    difference = np.abs(embed(folder, LONG) - flat).max(1)
    trained = config["rope_parameters"]["original_max_position_embeddings"]
    for text, moved in zip(LONG, difference, strict=True):
        beyond = len(token_ids(folder, [text])[0]) > trained
        assert moved > 1e-4 if beyond else moved < 1e-5
    assert min(map(len, token_ids(folder, LONG))) <= trained


def test_a_batch_padded_on_the_right_agrees(tmp_path):
    """On the left it would not: padding there moves the absolute positions."""
    folder = tiny_ministral(tmp_path / "model")
    rows = token_ids(folder, LONG)
    expected = padded_mean_vectors(oracle(folder), rows, side="right", pad=2)
    np.testing.assert_allclose(embed(folder, LONG), expected, atol=1e-5, rtol=0)
    shifted = padded_mean_vectors(oracle(folder), rows, side="left", pad=2)
    assert np.abs(embed(folder, LONG) - shifted).max() > 1e-4


@pytest.mark.parametrize(
    "changes", [{"mscale_all_dim": None}, {"attention_factor": 1.5}, {"truncate": False}]
)
def test_every_spelling_of_yarn_equals_transformers(tmp_path, changes):
    folder = tiny_ministral(tmp_path / "plain")
    rope = {**config_of(folder)["rope_parameters"], **changes}
    rope = {name: value for name, value in rope.items() if value is not None}
    folder = tiny_ministral(tmp_path / "model", rope_parameters=rope)
    expected = mean_vectors(oracle(folder), token_ids(folder, LONG))
    np.testing.assert_allclose(embed(folder, LONG), expected, atol=1e-5, rtol=0)


def test_a_text_generator_is_refused(tmp_path):
    folder = tiny_ministral(tmp_path / "model", is_causal=True)
    with pytest.raises(CheckpointError, match="causal ministral3"):
        embed(folder, LONG)
