"""Causal decoders by their last token: what transformers and sentence-transformers give."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tests.engine.local.checkpoints import change_config
from tests.engine.local.families import TEXTS, load
from tests.engine.local.oracles import mean_vectors, oracle, states, token_ids, unit
from tests.engine.local.tiny_decoders import tiny_causal, tiny_ministral

from nimbed import cards
from nimbed.errors import CheckpointError

KINDS = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp(request.param) / "model", request.param)


def last_tokens(folder, rows):
    model = oracle(folder, causal=True)
    return unit(np.stack([states(model, row)[-1] for row in rows]))


@pytest.mark.parametrize(("role", "name"), [("query", "query"), ("passage", "document")])
def test_both_roles_are_those_of_transformers_and_of_sentence_transformers(folder, role, name):
    ours = load(folder)
    got = ours.embed(TEXTS, input_type=role).vectors
    prompt = {"query": "Instruct: find it\nQuery:", "passage": ""}[role]
    rows = token_ids(folder, TEXTS, prompt=prompt)
    np.testing.assert_allclose(got, last_tokens(folder, rows), atol=1e-5, rtol=0)
    theirs = SentenceTransformer(str(folder), device="cpu")  # which pads on the left
    assert [theirs.tokenizer(prompt + text)["input_ids"] for text in TEXTS] == rows
    expected = theirs.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    theirs.tokenizer.padding_side = "right"
    expected = theirs.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    assert (ours.card.query_prompt, ours.card.pooling) == ("Instruct: find it\nQuery:", "lasttoken")
    assert ours.card.max_tokens == 200


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_a_text_that_is_cut_keeps_its_end_token(folder, truncate):
    text = "the warm sky by the river " * 100
    batch = load(folder).embed([text], input_type="passage", truncate=truncate)
    assert batch.token_counts.tolist() == [200]
    whole = token_ids(folder, [text])[0]
    row = [*whole[:199], whole[-1]] if truncate == "END" else whole[-200:]
    np.testing.assert_allclose(batch.vectors, last_tokens(folder, [row]), atol=1e-5, rtol=0)


def test_a_token_sees_nothing_behind_it(folder):
    engine = load(folder).replicas()[0]
    rows = token_ids(folder, ["a cat sleeps", "a cat sleeps under the warm sky"])
    apart = engine.compute(lambda: [engine.states([row], None).states for row in rows])
    torch.testing.assert_close(apart[0][:3], apart[1][:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_says_it_looks_both_ways_does(tmp_path, kind):
    folder = tiny_causal(tmp_path / "model", kind, pooling="mean", is_causal=False)
    expected = mean_vectors(oracle(folder), token_ids(folder, TEXTS))
    got = load(folder).embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


WINDOWS = {
    "from a layer on": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "layer by layer": {
        **{"use_sliding_window": True, "sliding_window": 3},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "another size": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("changes", WINDOWS.values(), ids=WINDOWS)
def test_windows_are_those_of_transformers(tmp_path, kind, changes, causal):
    folder = tiny_causal(tmp_path / "model", kind, is_causal=causal, **changes)
    rows = token_ids(folder, TEXTS)
    model = oracle(folder, causal=causal)
    expected = unit(np.stack([states(model, row)[-1] for row in rows]))
    got = load(folder).embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [*KINDS, "ministral3"])
def test_a_generator_without_a_pooling_is_refused(tmp_path, kind):
    if kind == "ministral3":
        plain = tiny_ministral(tmp_path / "model", is_causal=True)
    else:
        plain = tiny_causal(tmp_path / "model", kind)
        (plain / "modules.json").unlink()
        (plain / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=f"a causal {kind}, a text generator, and no file"):
        load(plain)


def test_code_of_its_own_may_change_the_direction_so_the_configuration_has_to_say_it(tmp_path):
    remote = {"AutoModel": "modeling_qwen.Qwen2Model"}  # as gte-Qwen2 has it
    folder = tiny_causal(tmp_path / "model", "qwen2", auto_map=remote)
    with pytest.raises(CheckpointError, match=r'put "is_causal": true or false into it'):
        load(folder)
    told = dataclasses.replace(
        cards.find("Alibaba-NLP/gte-Qwen2-7B-instruct"), dimensions=32, max_tokens=200
    )
    same = load(folder, card=told).embed(TEXTS, input_type="passage").vectors
    change_config(folder, is_causal=False)
    expected = unit(np.stack([states(oracle(folder), row)[-1] for row in token_ids(folder, TEXTS)]))
    got = load(folder).embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(same, got)


def test_an_end_token_that_only_a_tokenizers_code_would_add_is_missed(tmp_path):
    folder = tiny_causal(tmp_path / "model", "llama")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_eos_token": True}))
    load(folder).warmup()
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    with pytest.raises(CheckpointError, match="add_eos_token"):
        load(folder).warmup()


def test_the_heads_of_a_generator_are_not_read(tmp_path):
    """Published files may hold lm_head, and ``model.`` before every name, in many shards."""
    from safetensors.torch import load_file, save_file

    folder = tiny_causal(tmp_path / "model", "qwen3")
    expected = load(folder).embed(TEXTS, input_type="passage").vectors
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    renamed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    renamed["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    index = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        part = {name: renamed[name] for name in sorted(renamed)[number::3]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    got = load(folder).embed(TEXTS, input_type="passage").vectors
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": "2"}, "max_window_layers '2'"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen2", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"is_causal": "no"}, "is_causal 'no'"),
        ("mistral", {"sliding_window": 0}, "sliding_window 0"),
        ("mistral", {"attention_sinks": 4}, "has the key 'attention_sinks'"),
        ("llama", {"sliding_window": 4}, "has the key 'sliding_window'"),
        ("llama", {"residual_multiplier": 0.2}, "has the key 'residual_multiplier'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "x": 1}}, "the key 'x'"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(tmp_path, kind, changes, message):
    folder = tiny_causal(tmp_path / "model", kind)
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder).warmup()


@pytest.mark.parametrize("size", ["0.6B", "4B", "8B"])
def test_the_catalogue_knows_the_published_models(size):
    card = cards.find(f"qwen3-embedding-{size.lower()}")
    assert card.id == f"Qwen/Qwen3-Embedding-{size}"
    assert (card.architecture, card.pooling, card.max_tokens) == ("qwen3", "lasttoken", 32768)
    assert card.sizes[-1] == {"0.6B": 1024, "4B": 2560, "8B": 4096}[size]
    assert card.prompt("query").endswith("\nQuery:")
    assert cards.find(card.id).prompt("passage") == ""


def test_matryoshka_sizes_are_those_of_sentence_transformers(tmp_path):
    folder = tiny_causal(tmp_path / "model", "qwen3", matryoshka_dimensions=[8, 16, 32])
    ours = load(folder)
    assert ours.card.sizes == (8, 16, 32)
    got = ours.embed(TEXTS, input_type="query", dimensions=8).vectors
    theirs = SentenceTransformer(str(folder), device="cpu", truncate_dim=8)
    expected = theirs.encode(TEXTS, prompt_name="query", normalize_embeddings=True)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
