"""Tiny random NV-Embed checkpoints against transformers' Mistral and a numpy latent attention."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.engine.local.families import TEXTS, load
from tests.engine.local.oracles import (
    config_of,
    latent_attention,
    network,
    states,
    unit,
    weights_of,
)
from tests.engine.local.tiny_decoders import tiny_nvembed
from tokenizers import Tokenizer

from nimbed.errors import CheckpointError, ConfigurationError, InputError

INSTRUCTION = "Instruct: Given a question, retrieve passages that answer the question\nQuery: "


@pytest.fixture
def folder(tmp_path):
    return tiny_nvembed(tmp_path / "model")


def reference(folder, texts, *, instruction="", causal=False, longest=None, eos="</s>"):
    """Do what NV-Embed's own encode() does, word for word."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = config_of(folder)
    model = network(config["text_config"], weights_of(folder, "embedding_model."), causal=causal)
    weights = weights_of(folder, "latent_attention_model.")
    vectors, rows = [], []
    for text in texts:
        ids = tokenizer.encode(instruction + text + eos).ids[:longest]
        hidden = latent_attention(states(model, ids), weights, config["latent_attention_config"])
        mask = np.ones(len(ids))
        if instruction:
            mask[: len(tokenizer.encode(instruction, add_special_tokens=False).ids)] = 0
        vectors.append((hidden * mask[:, None]).sum(0) / mask.sum())
        rows.append(ids)
    return unit(np.stack(vectors)), rows


def test_passages_pool_everything_and_carry_no_instruction(folder):
    got = load(folder).embed(TEXTS, input_type="passage")
    expected, rows = reference(folder, TEXTS)
    np.testing.assert_allclose(got.vectors, expected, atol=1e-5, rtol=0)
    assert got.token_counts.tolist() == [len(row) for row in rows]
    assert all(row[0] == 1 and row[-1] == 2 for row in rows)


def test_queries_leave_their_instruction_out_of_the_mean(folder):
    embedder = load(folder)
    assert embedder.card.query_prompt == INSTRUCTION
    assert embedder.card.pooling == "latent"
    got = embedder.embed(TEXTS, input_type="query").vectors
    expected, _ = reference(folder, TEXTS, instruction=INSTRUCTION)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    plain, _ = reference(folder, [INSTRUCTION + text for text in TEXTS])
    assert np.abs(got - plain).max() > 1e-2


def test_the_count_of_masked_tokens_ends_where_the_text_begins(folder):
    """Without <s>, but with a lone trailing ▁, the instruction counts as many as with <s>."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone = tokenizer.encode(INSTRUCTION, add_special_tokens=False).tokens
    together = tokenizer.encode(INSTRUCTION + "are cat dog</s>").tokens
    assert alone[-1] == "▁"
    assert together[len(alone) - 1 :] == [":", "▁are", "▁cat", "▁dog", "</s>"]


@pytest.mark.parametrize("instruction", ["Query:", "Instruct: words\nQuery: ", "▁"])
def test_other_instructions_are_counted_literally_too(folder, instruction):
    import dataclasses

    card = dataclasses.replace(load(folder).card, id=str(folder), query_prompt=instruction)
    embedder = load(card)
    got = embedder.embed(TEXTS, input_type="query").vectors
    expected, _ = reference(folder, TEXTS, instruction=instruction)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_an_instruction_that_melts_into_the_text_still_leaves_a_token(folder):
    """Alone it counts more tokens than it has with the text: the reference divides by zero."""
    import dataclasses

    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for number, piece in enumerate(("xq", "xxq", "xxxq", "▁xxxq")):
        vocabulary[piece] = vocabulary.pop(f"<0xF{number}>")
    content["model"]["merges"] += [["x", "q"], ["x", "xq"], ["x", "xxq"], ["▁", "xxxq"]]
    path.write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(str(path))
    whole = tokenizer.encode("xxxq</s>")
    assert whole.tokens == ["<s>", "▁xxxq", "</s>"]
    assert len(tokenizer.encode("xxx", add_special_tokens=False).ids) == 4
    card = dataclasses.replace(load(folder).card, id=str(folder), query_prompt="xxx")
    embedder = load(card)
    got = embedder.embed(["q"], input_type="query").vectors
    config, weights = config_of(folder), weights_of(folder, "latent_attention_model.")
    model = network(config["text_config"], weights_of(folder, "embedding_model."))
    hidden = states(model, whole.ids)
    expected = latent_attention(hidden, weights, config["latent_attention_config"])
    np.testing.assert_allclose(got[0], unit(expected[-1]), atol=1e-5, rtol=0)


def test_queries_and_passages_may_share_a_batch(folder):
    """What a server does: rows that skip tokens beside rows that do not."""
    embedder = load(folder)
    alone = [embedder.embed(TEXTS, input_type=role).vectors for role in ("query", "passage")]
    loaded = embedder._load()
    tokens = [
        loaded.tokenizer.encode(TEXTS, prompt=prompt, truncate="NONE")
        for prompt in (INSTRUCTION, "")
    ]
    assert tokens[1].skip is None
    skip = [*tokens[0].skip, *[0] * len(TEXTS)]
    out = np.empty((2 * len(TEXTS), 32), np.float32)
    loaded.engines[0].run([*tokens[0].ids, *tokens[1].ids], out, lambda rows: None, skip=skip)
    np.testing.assert_allclose(unit(out), np.concatenate(alone), atol=1e-6, rtol=0)


def test_the_causal_answer_differs(folder):
    got = load(folder).embed(TEXTS, input_type="passage").vectors
    causal, _ = reference(folder, TEXTS, causal=True)
    assert np.abs(got - causal).max() > 1e-2


def test_the_end_token_is_part_of_the_text_and_may_be_cut_off_with_it(tmp_path):
    import dataclasses

    folder = tiny_nvembed(tmp_path / "model")
    card = dataclasses.replace(load(folder).card, id=str(folder), max_tokens=12)
    embedder = load(card)
    texts = ["cat", "dog " * 30]
    got = embedder.embed(texts, input_type="passage", truncate="END")
    expected, rows = reference(folder, texts, longest=12)
    assert [row[-1] == 2 for row in rows] == [True, False]
    assert got.truncated == (1,)
    np.testing.assert_allclose(got.vectors, expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="input length 33 exceeds"):
        embedder.embed(texts, input_type="passage")
    with pytest.raises(ConfigurationError, match="leave none of 12 for the text"):
        embedder.embed(texts, input_type="query", truncate="END")


def test_without_add_eos_there_is_no_end_token(tmp_path):
    folder = tiny_nvembed(tmp_path / "model", add_eos=False)
    expected, _ = reference(folder, TEXTS, eos="")
    got = load(folder).embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_without_the_mask_the_instruction_is_pooled(tmp_path):
    folder = tiny_nvembed(tmp_path / "model", is_mask_instruction=False)
    expected, _ = reference(folder, [INSTRUCTION + text for text in TEXTS])
    got = load(folder).embed(TEXTS, input_type="query").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", ["text_config", "latent_attention_config"])
def test_half_a_configuration_is_refused(folder, part):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[part]
    path.write_text(json.dumps({**config, "max_position_embeddings": 64}))
    with pytest.raises(CheckpointError, match=f"lacks {part}"):
        load(folder).embed(["cat"], input_type="query")


@pytest.mark.parametrize(
    "name",
    [
        "latent_attention_model.latents",
        "latent_attention_model.cross_attend_blocks.0.fn.to_kv.weight",
        "latent_attention_model.cross_attend_blocks.1.fn.net.0.bias",
        "embedding_model.layers.1.mlp.up_proj.weight",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "misshapen", "nan"])
def test_a_bad_tensor_is_named(folder, name, damage):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if damage == "missing":
        del tensors[name]
    elif damage == "misshapen":
        tensors[name] = tensors[name][1:].clone()
    else:
        tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, path)
    short = name.split("_model.")[1]
    with pytest.raises(CheckpointError, match=short.replace(".", r"\.")):
        load(folder).embed(["cat"], input_type="query")
