"""Gemma 3 of texts (EmbeddingGemma) against transformers and sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tests.engine.local.checkpoints import change_config, change_tensors
from tests.engine.local.families import TEXTS, embed, load
from tests.engine.local.oracles import mean_vectors, oracle, states, token_ids, unit
from tests.engine.local.tiny_decoders import tiny_gemma

from nimbed.errors import CheckpointError

LONG = [*TEXTS, "the warm sky by the river " * 7]
DOCUMENT = "title: none | text: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gemma(tmp_path_factory.mktemp("gemma") / "model")


@pytest.mark.parametrize(("role", "name"), [("query", "query"), ("passage", "document")])
def test_both_roles_are_those_of_sentence_transformers(folder, role, name):
    ours, theirs = load(folder), SentenceTransformer(str(folder), device="cpu")
    got = ours.embed(LONG, input_type=role, truncate="END")
    expected = theirs.encode(LONG, prompt_name=name, normalize_embeddings=True)
    np.testing.assert_allclose(got.vectors, expected, atol=1e-5, rtol=0)
    prompt = ours.card.prompt(role)
    rows = token_ids(folder, LONG, prompt=prompt)
    assert [theirs.tokenizer(prompt + text)["input_ids"] for text in LONG] == rows
    assert got.token_counts.tolist() == list(map(len, rows))


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_a_text_that_is_cut_equals_sentence_transformers(folder, truncate):
    text = "the warm sky by the river " * 100
    batch = load(folder).embed([text], input_type="passage", truncate=truncate)
    assert batch.token_counts.tolist() == [200]
    theirs = SentenceTransformer(str(folder), device="cpu")
    if truncate == "END":
        expected = theirs.encode([text], prompt_name="document", normalize_embeddings=True)
        np.testing.assert_allclose(batch.vectors, expected, atol=1e-5, rtol=0)


VARIANTS = {
    "another window": {"sliding_window": 9},
    "a pattern": {"sliding_window_pattern": 3},
    "the usual pattern": {"sliding_window_pattern": None, "num_hidden_layers": 7},
    "named layers": {
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
    },
    "usual rotations": {"rope_theta": None, "rope_local_base_freq": None, "rope_scaling": None},
    "version 5": {
        **{"rope_theta": None, "rope_local_base_freq": None, "rope_scaling": None},
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 777.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 333.0},
        },
    },
    "scale": {"query_pre_attn_scalar": 64},
    "biases": {"attention_bias": True},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_configuration_equals_transformers(tmp_path, changes, bidirectional):
    folder = tiny_gemma(
        tmp_path / "model",
        dense=False,
        **{"use_bidirectional_attention": bidirectional, **changes},
    )
    expected = mean_vectors(oracle(folder), token_ids(folder, LONG, prompt=DOCUMENT))
    np.testing.assert_allclose(embed(folder, LONG), expected, atol=1e-5, rtol=0)


def test_the_states_are_those_of_transformers_whatever_the_size_of_the_norms(tmp_path):
    """Gemma's norms multiply by far more than 1, which float16 would not hold between layers."""
    folder = tiny_gemma(tmp_path / "model", dense=False)
    change_tensors(
        folder,
        lambda tensors: [
            tensor.mul_(0).add_(3000) for name, tensor in tensors.items() if "post_" in name
        ],
    )
    expected = mean_vectors(oracle(folder), token_ids(folder, TEXTS, prompt=DOCUMENT))
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)
    half = load(folder, dtype="float16").embed(TEXTS, input_type="passage").vectors
    assert (half * expected).sum(1).min() >= 0.999


def test_packed_and_alone_are_equal_to_the_bit(folder):
    ours = load(folder)
    together = ours.embed(LONG, input_type="query").vectors
    alone = np.concatenate([ours.embed([text], input_type="query").vectors for text in LONG])
    np.testing.assert_array_equal(together, alone)


def test_its_causal_self_embeds_by_its_last_token(tmp_path):
    folder = tiny_gemma(tmp_path / "model", use_bidirectional_attention=False, dense=False)
    import json

    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    rows = token_ids(folder, LONG, prompt=DOCUMENT)
    expected = unit(np.stack([states(oracle(folder), row)[-1] for row in rows]))
    np.testing.assert_allclose(embed(folder, LONG), expected, atol=1e-5, rtol=0)
    (folder / "modules.json").unlink()
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match='causal gemma3_text.*"use_bidirectional_attention"'):
        load(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"is_causal": False}, "is_causal False; a gemma3 says by use_bidirectional_attention"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types"),
        ({"sliding_window": 0}, "sliding_window 0"),
        ({"num_key_value_heads": 3}, "4 dimensions among 3 heads"),
        ({"query_pre_attn_scalar": -1}, "query_pre_attn_scalar -1"),
        ({"altup_coef": 1}, "the key 'altup_coef'"),
    ],
)
def test_a_configuration_it_cannot_follow_is_refused(tmp_path, facts, message):
    folder = tiny_gemma(tmp_path / "model")
    change_config(folder, **facts)
    with pytest.raises(CheckpointError, match=message):
        load(folder).warmup()
