"""Qwen3 gives what transformers and sentence-transformers give for the same files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tests.engine.local.families import TEXTS, load
from tests.engine.local.oracles import oracle, states, token_ids, unit
from tests.engine.local.tiny_decoders import tiny_qwen3

import nimbed
from nimbed import cards
from nimbed.errors import CheckpointError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3") / "model")


def test_the_last_token_is_that_of_transformers(folder):
    rows = token_ids(folder, TEXTS)
    model = oracle(folder, causal=True)
    expected = unit(np.stack([states(model, row)[-1] for row in rows]))
    got = load(folder).embed(TEXTS, input_type="passage").vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("role", "name"), [("query", "query"), ("passage", "document")])
def test_both_roles_are_those_of_sentence_transformers(folder, role, name):
    theirs = SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
    ours = load(folder)
    got = ours.embed(TEXTS, input_type=role).vectors
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    assert ours.card.query_prompt == "Instruct: find it\nQuery:"
    assert (ours.card.pooling, ours.card.max_tokens) == ("lasttoken", 200)


def test_a_text_that_is_cut_keeps_its_last_token(folder):
    ours = load(folder)
    batch = ours.embed(["the warm sky " * 200], input_type="passage", truncate="END")
    assert batch.token_counts.tolist() == [200]
    whole = token_ids(folder, ["the warm sky " * 200])[0]
    row = [*whole[:199], whole[-1]]
    expected = unit(states(oracle(folder, causal=True), row)[-1:])
    np.testing.assert_allclose(batch.vectors, expected, atol=1e-5, rtol=0)


def test_a_token_sees_nothing_behind_it(folder):
    engine = load(folder).replicas()[0]
    rows = token_ids(folder, ["a cat sleeps", "a cat sleeps under the warm sky"])
    with engine.current():
        apart = [engine.states([row])[0] for row in rows]
    torch.testing.assert_close(apart[0][:3], apart[1][:3], atol=1e-5, rtol=0)


def test_a_generator_without_a_pooling_is_refused(folder, tmp_path):
    plain = tiny_qwen3(tmp_path / "model")
    (plain / "modules.json").unlink()
    (plain / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="a qwen3 without a modules.json is a text generator"):
        load(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_it_does_not_do_is_refused(tmp_path, changes, message):
    plain = tiny_qwen3(tmp_path / "model")
    config = json.loads((plain / "config.json").read_text("utf-8"))
    (plain / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")
    with pytest.raises(CheckpointError, match=message):
        load(plain).warmup()


@pytest.mark.parametrize("size", ["0.6B", "4B", "8B"])
def test_the_catalogue_knows_the_published_models(size):
    card = cards.find(f"qwen3-embedding-{size.lower()}")
    assert card.id == f"Qwen/Qwen3-Embedding-{size}"
    assert (card.architecture, card.pooling, card.max_tokens) == ("qwen3", "lasttoken", 32768)
    assert card.sizes[-1] == {"0.6B": 1024, "4B": 2560, "8B": 4096}[size]
    assert card.prompt("query").endswith("\nQuery:")
    assert nimbed.cards.find(card.id).prompt("passage") == ""
