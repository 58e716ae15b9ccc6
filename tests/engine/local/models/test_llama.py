"""Tiny random bidirectional Llama checkpoints against transformers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from tests.engine.local.checkpoints import change_config, sentence_transformers_files
from tests.engine.local.families import TEXTS, embed, load
from tests.engine.local.oracles import (
    config_of,
    mean_vectors,
    network,
    oracle,
    padded_mean_vectors,
    token_ids,
    weights_of,
)
from tests.engine.local.tiny_decoders import LLAMA3_ROPE, tiny_llama

from nimbed.errors import CheckpointError


def rows(folder, texts=TEXTS):
    return token_ids(folder, texts, prompt="passage: ")


def test_it_equals_transformers_and_not_its_causal_self(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    got = embed(folder)
    expected = mean_vectors(oracle(folder), rows(folder))
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    causal = mean_vectors(oracle(folder, causal=True), rows(folder))
    assert np.abs(got - causal).max() > 1e-2


def test_the_argument_that_transformers_drops_would_have_given_the_causal_answer(tmp_path):
    """LlamaConfig.from_pretrained(folder, is_causal=False) forgets it: why nimbed reads JSON."""
    folder = tiny_llama(tmp_path / "model", model_type="llama", auto_map=None)
    settings = transformers.LlamaConfig.from_pretrained(folder, is_causal=False)
    model = transformers.LlamaModel(settings)
    model.load_state_dict(weights_of(folder))
    assert (
        np.abs(
            embed(tiny_llama(tmp_path / "same")) - mean_vectors(model.eval(), rows(folder))
        ).max()
        > 1e-2
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_references_agree(tmp_path, side):
    folder = tiny_llama(tmp_path / "model")
    expected = padded_mean_vectors(oracle(folder), rows(folder), side=side, pad=0)
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


ROPES = {
    "none": {"rope_scaling": None},
    "no theta": {"rope_scaling": None, "rope_theta": None},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3_ROPE},
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 16,
        }
    },
    "version 5": {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0},
    },
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_every_rotation_equals_transformers(tmp_path, rope):
    folder = tiny_llama(tmp_path / "model", **rope)
    texts = ["cat dog sky river " * 20, *TEXTS]
    expected = mean_vectors(oracle(folder), rows(folder, texts))
    np.testing.assert_allclose(embed(folder, texts), expected, atol=1e-5, rtol=0)


def test_rope_scaling_and_rope_parameters_are_two_spellings(tmp_path):
    old = embed(tiny_llama(tmp_path / "old", **ROPES["llama3"]))
    new = embed(tiny_llama(tmp_path / "new", **ROPES["version 5"]))
    none = embed(tiny_llama(tmp_path / "none", **ROPES["none"]))
    np.testing.assert_array_equal(old, new)
    assert np.abs(old - none).max() > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 16},
        {"rms_norm_eps": 0.1},
    ],
)
def test_every_shape_equals_transformers(tmp_path, changes):
    folder = tiny_llama(tmp_path / "model", **changes)
    expected = mean_vectors(oracle(folder), rows(folder))
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_both_key_layouts_and_needless_tensors_are_read(tmp_path, prefix):
    from safetensors.torch import load_file, save_file

    plain = embed(tiny_llama(tmp_path / "plain"))
    folder = tiny_llama(tmp_path / "other", prefix=prefix)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors[f"{prefix}embed_tokens.weight"].clone()
    tensors[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, path)
    np.testing.assert_array_equal(plain, embed(folder))


def test_shards_are_joined(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_llama(tmp_path / "model")
    whole = embed(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::3]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    np.testing.assert_array_equal(whole, embed(folder))


def test_a_stock_llama_that_says_it_looks_both_ways_equals_sentence_transformers(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny_llama(
        tmp_path / "model", model_type="llama", auto_map=None, is_causal=False,
        architectures=["LlamaModel"],
    )  # fmt: skip
    sentence_transformers_files(folder, pooling="mean", prompts=None, longest=512)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|end_of_text|>"})
    )
    theirs = SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(TEXTS, normalize_embeddings=True, batch_size=1)
    for text in TEXTS:
        assert theirs.tokenizer(text)["input_ids"] == token_ids(folder, [text])[0]
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "facts",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "llama", "architectures": ["LlamaModel"], "is_causal": True},
        {"model_type": "mistral", "architectures": None},
        {"is_causal": True},
    ],
)
def test_a_text_generator_is_refused(tmp_path, facts):
    folder = tiny_llama(tmp_path / "model", **facts)
    with pytest.raises(CheckpointError, match=r'causal .*put "is_causal": false'):
        embed(folder)


def test_an_architecture_that_names_both_directions_is_enough(tmp_path):
    named = tiny_llama(tmp_path / "named", model_type="llama")
    assert config_of(named)["architectures"] == ["LlamaBidirectionalModel"]
    texts = ["passage: " + text for text in TEXTS]  # a stock type has no prompts of its own
    np.testing.assert_array_equal(embed(named, texts), embed(tiny_llama(tmp_path / "other"), TEXTS))


def test_roles_have_the_prompts_it_was_trained_with_and_files_may_change_them(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    card = load(folder).card
    assert (card.query_prompt, card.passage_prompt, card.pooling) == (
        "query: ",
        "passage: ",
        "mean",
    )
    expected = mean_vectors(oracle(folder), token_ids(folder, TEXTS, prompt="query: "))
    np.testing.assert_allclose(embed(folder, role="query"), expected, atol=1e-5, rtol=0)
    sentence_transformers_files(folder, pooling="mean", prompts={"query": "Query: "}, longest=512)
    card = load(folder).card
    assert (card.query_prompt, card.passage_prompt) == ("Query: ", "")


def test_smaller_sizes_are_sliced_before_they_are_normalized(tmp_path):
    import dataclasses

    folder = tiny_llama(tmp_path / "model")
    card = dataclasses.replace(load(folder).card, id=str(folder), matryoshka=(8, 32))
    got = load(card).embed(TEXTS, input_type="passage", dimensions=8)
    model = network(config_of(folder), weights_of(folder))
    whole = mean_vectors(model, rows(folder))[:, :8]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(got.vectors, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rms_norm_eps": None}, "rms_norm_eps None"),
        ({"num_key_value_heads": 3}, "4 dimensions among 3 heads"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' rotary"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor None"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "expected one table"),
        ({"partial_rotary_factor": 0.5}, "only part of each head"),
        ({"pooling": "colbert"}, "pools by colbert"),
    ],
)
def test_a_configuration_it_cannot_follow_is_refused(tmp_path, changes, message):
    folder = tiny_llama(tmp_path / "model")
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        embed(folder)


def test_remote_code_is_neither_asked_about_nor_run(tmp_path):
    """transformers would prompt on standard input here and then fail."""
    folder = tiny_llama(tmp_path / "model")
    assert "auto_map" in config_of(folder)
    code = (
        "import sys, nimbed; e = nimbed.load(sys.argv[1], device='cpu');"
        "print(e.embed(['cat'], input_type='query').vectors.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(1, 32)", "")
