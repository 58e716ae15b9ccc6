"""Tiny random BERT checkpoints against transformers and sentence-transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.families import load

TEXTS = [
    "the quick brown fox",
    "a",
    "passage about retrieval and vectors, with some words unknown: zyzzyva",
    "the quick brown fox jumps over the lazy dog " * 4,
]


def transformers_states(folder, texts):
    """Return (states, token counts) of transformers.BertModel, one text at a time."""
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    for text in texts:
        with torch.inference_mode():
            yield model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_it_equals_transformers(tmp_path, pooling):
    folder = tiny_bert(tmp_path / "model", pooling=pooling)
    expected = []
    for states in transformers_states(folder, TEXTS):
        vector = states[0] if pooling == "cls" else states.mean(0)
        expected.append(vector / np.linalg.norm(vector))
    ours = load(folder).embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(ours.vectors, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [("query", "passage"), ("query", "document")])
def test_prompts_of_the_checkpoint_equal_sentence_transformers(tmp_path, names):
    from sentence_transformers import SentenceTransformer

    prompts = {names[0]: "query: ", names[1]: "passage: "}
    folder = tiny_bert(tmp_path / "model", prompts=prompts)
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = load(folder)
    assert ours.card.asymmetric
    for role, name in zip(("query", "passage"), names, strict=True):
        expected = theirs.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
        got = ours.embed(TEXTS, input_type=role)
        np.testing.assert_allclose(got.vectors, expected, atol=1e-5, rtol=0)


def test_a_card_of_ones_own_overrides_the_prompts(tmp_path):
    import dataclasses

    folder = tiny_bert(tmp_path / "model")
    plain = load(folder)
    prompted = dataclasses.replace(
        plain.card, query_prompt="query: ", asymmetric=True, id=str(folder)
    )
    other = load(prompted)
    expected = plain.embed(["query: fox"], input_type="query").vectors
    np.testing.assert_allclose(
        other.embed(["fox"], input_type="query").vectors, expected, atol=1e-6
    )
    assert other.spec().fingerprint != plain.spec().fingerprint


@pytest.mark.parametrize("layout", ["bert.", "gamma", "position_ids", "shards", "bin"])
def test_every_layout_of_the_files_gives_the_same_vectors(tmp_path, layout):
    expected = load(tiny_bert(tmp_path / "plain")).embed(TEXTS, input_type="query").vectors
    folder = tiny_bert(tmp_path / "other")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if layout == "bert.":
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    if layout == "gamma":
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): tensor
            for name, tensor in tensors.items()
        }
    if layout == "position_ids":
        tensors["embeddings.position_ids"] = torch.arange(128)[None]
        tensors["pooler.dense.weight"] = torch.zeros(32, 32)
    path.unlink()
    if layout == "shards":
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, own in parts.items():
            save_file({name: tensors[name] for name in own}, folder / file)
        index = {name: file for file, own in parts.items() for name in own}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    elif layout == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, path)
    np.testing.assert_array_equal(load(folder).embed(TEXTS, input_type="query").vectors, expected)


def test_half_precisions_stay_close(tmp_path):
    folder = tiny_bert(tmp_path / "model")
    exact = load(folder).embed(TEXTS, input_type="query").vectors
    for dtype, least in (("bfloat16", 0.999), ("float16", 0.9999)):
        close = load(folder, dtype=dtype).embed(TEXTS, input_type="query").vectors
        assert (exact * close).sum(1).min() >= least


def test_the_spec_is_known_before_torch_is_imported(tmp_path):
    import subprocess
    import sys

    folder = tiny_bert(tmp_path / "model")
    code = (
        "import nimbed, sys; s = nimbed.load(sys.argv[1]).spec(embedding_type='binary');"
        "print(s.width, s.metric, 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["4", "hamming", "False"]
