"""bge-m3's sparse and ColBERT heads against numpy."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tokenizers
import torch
from tests.engine.local.checkpoints import Bomb, tiny_m3, tiny_xlmr
from tests.engine.local.families import TEXTS, load
from tests.engine.local.oracles import cls_vectors, oracle, states, token_ids, unit
from tests.engine.local.sentence_folders import edit

import nimbed
from nimbed import MultiVectorBatch, SparseBatch, cards
from nimbed.errors import CheckpointError, ConfigurationError, InputError
from nimbed.local.models.bert import Bert


def head(folder, name):
    linear = torch.load(folder / name)
    return linear["weight"].numpy(), linear["bias"].numpy()


def test_the_dense_vector_is_the_first_token(tmp_path):
    folder = tiny_m3(tmp_path / "model")
    expected = cls_vectors(oracle(folder), token_ids(folder, TEXTS))
    vectors = load(folder).embed(TEXTS, input_type="query").vectors
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


def test_sparse_weights_are_the_largest_of_each_word(tmp_path):
    folder = tiny_m3(tmp_path / "model")
    weight, bias = head(folder, "sparse_linear.pt")
    model, texts = oracle(folder), [*TEXTS, "cat dog cat dog cat"]
    found = load(folder).embed_sparse(texts, input_type="passage")
    dropped = 0
    for ids, (tokens, weights) in zip(token_ids(folder, texts), found.rows(), strict=True):
        expected: dict[int, float] = {}
        for token, output in zip(ids, states(model, ids) @ weight[0] + bias[0], strict=True):
            if token in (0, 1, 2, 3) or output <= 0:
                dropped += token > 3
            else:
                expected[token] = max(expected.get(token, 0.0), float(output))
        assert tokens.tolist() == sorted(expected)
        wanted = [expected[token] for token in sorted(expected)]
        np.testing.assert_allclose(weights, wanted, atol=1e-6, rtol=1e-6)
    assert dropped, "some words should have weighed nothing, or the test shows nothing"


def test_colbert_vectors_are_those_of_the_tokens_after_the_first(tmp_path):
    folder = tiny_m3(tmp_path / "model")
    weight, bias = head(folder, "colbert_linear.pt")
    model = oracle(folder)
    found = load(folder).embed_multi(TEXTS, input_type="passage")
    for ids, vectors in zip(token_ids(folder, TEXTS), found.rows(), strict=True):
        expected = unit(states(model, ids)[1:] @ weight.T + bias)
        assert vectors.shape == (len(ids) - 1, 32)
        np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)


def test_three_kinds_come_of_one_forward_pass_in_order(tmp_path, monkeypatch):
    """Of many lengths and small batches, and to the bit what each text gives alone."""
    folder = tiny_m3(tmp_path / "model")
    edit(folder / "config.json", lambda config: {**config, "num_attention_heads": 2})
    embedder = load(folder)
    texts = ["cat dog " * (number % 9 + 1) + str(number) for number in range(40)]
    alone = [embedder.embed_kinds([text], input_type="passage") for text in texts]
    (engine,) = embedder._load().engines
    passes = []
    run = Bert.__call__
    monkeypatch.setattr(
        Bert, "__call__", lambda self, *given: passes.append(given) or run(self, *given)
    )
    monkeypatch.setattr(engine, "budget", 100)
    done = []
    found = embedder.embed_kinds(
        texts, input_type="passage", progress=lambda *counts: done.append(counts)
    )
    assert len(passes) > 5
    assert done[-1] == (40, 40)
    assert sum(layout.tokens for _, layout in passes) == found.dense.token_counts.sum()
    plain = embedder.embed(texts, input_type="passage")
    np.testing.assert_array_equal(found.dense.vectors, plain.vectors)
    for kind in (found.dense, found.sparse, found.multi):
        np.testing.assert_array_equal(kind.token_counts, plain.token_counts)
    vectors = np.concatenate([each.dense.vectors for each in alone])
    np.testing.assert_array_equal(found.dense.vectors, vectors)
    sparse = SparseBatch.concatenate([each.sparse for each in alone])
    np.testing.assert_array_equal(found.sparse.ids, sparse.ids)
    np.testing.assert_array_equal(found.sparse.weights, sparse.weights)
    multi = MultiVectorBatch.concatenate([each.multi for each in alone])
    np.testing.assert_array_equal(found.multi.offsets, multi.offsets)
    np.testing.assert_array_equal(found.multi.vectors, multi.vectors)


def test_kinds_and_contracts_are_known_without_weights(tmp_path):
    folder = tiny_m3(tmp_path / "model")
    (folder / "pytorch_model.bin").rename(tmp_path / "away")
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    embedder = load(folder)
    assert isinstance(embedder, nimbed.HybridEmbedder)
    assert embedder.kinds == embedder.card.kinds == ("dense", "sparse", "multi")
    sparse, multi = embedder.sparse_spec(max_active=8), embedder.multi_spec(token_type="half")
    vocabulary = oracle_vocabulary(folder)
    assert (sparse.dimensions, sparse.max_active) == (len(vocabulary), 8)
    assert (multi.dimensions, multi.token_type) == (32, "half")
    assert embedder.multi_spec(pool_factor=2).pool_factor == 2
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words[-1], words[-2] = words[-2], words[-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load(other).sparse_spec().vocabulary != sparse.vocabulary


def oracle_vocabulary(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


def test_a_heads_weights_change_the_space_of_its_kind_alone(tmp_path):
    folder = tiny_m3(tmp_path / "model")

    def specs():
        embedder = load(folder)
        return embedder.sparse_spec(), embedder.multi_spec(), embedder.spec()

    before = specs()
    linear = torch.load(folder / "sparse_linear.pt")
    torch.save({**linear, "bias": linear["bias"] + 1}, folder / "sparse_linear.pt")
    after = specs()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


def test_tokens_of_passages_are_pooled(tmp_path):
    pytest.importorskip("scipy")  # which clusters them
    embedder = load(tiny_m3(tmp_path / "model"))
    pooled = embedder.embed_multi(TEXTS, input_type="passage", pool_factor=2)
    whole = embedder.embed_multi(TEXTS, input_type="passage")
    expected = whole.compressed("float", pool_factor=2)
    assert pooled.spec == embedder.multi_spec(pool_factor=2)
    np.testing.assert_array_equal(pooled.offsets, expected.offsets)
    np.testing.assert_allclose(pooled.vectors, expected.vectors, atol=1e-6)


def test_no_texts_give_empty_batches(tmp_path):
    found = load(tiny_m3(tmp_path / "model")).embed_kinds([], input_type="query")
    assert [len(kind) for kind in (found.dense, found.sparse, found.multi)] == [0, 0, 0]


def test_a_model_without_the_heads_says_so(tmp_path):
    embedder = load(tiny_xlmr(tmp_path / "model"))
    assert embedder.kinds == ("dense",)
    with pytest.raises(ConfigurationError, match="gives no sparse vectors; it gives dense"):
        embedder.embed_sparse(["cat"], input_type="query")
    found = embedder.embed_kinds(["cat"], input_type="query")
    assert found.sparse is found.multi is None
    np.testing.assert_array_equal(
        found.dense.vectors, embedder.embed(["cat"], input_type="query").vectors
    )


def test_a_head_that_a_catalogued_models_folder_lacks_is_named(tmp_path):
    folder = tiny_m3(tmp_path / "model")
    (folder / "colbert_linear.pt").unlink()
    card = dataclasses.replace(cards.find("baai/bge-m3"), dimensions=32, max_tokens=64)
    embedder = load(folder, card=card)
    assert embedder.kinds == ("dense", "sparse")
    with pytest.raises(ConfigurationError, match=r"multi vectors by a head that is not in .*model"):
        embedder.embed_multi(["cat"], input_type="query")


def test_arguments_are_checked_as_embed_checks_them(tmp_path):
    embedder = load(tiny_m3(tmp_path / "model"))
    with pytest.raises(ConfigurationError, match="input_type"):
        embedder.embed_sparse(["cat"], input_type="text")
    with pytest.raises(InputError, match="row 1"):
        embedder.embed_multi(["cat", " "], input_type="query")
    with pytest.raises(InputError, match="exceeds maximum"):
        embedder.embed_multi(["cat " * 100], input_type="query")
    cut = embedder.embed_multi(["cat", "cat " * 100], input_type="query", truncate="END")
    assert cut.truncated == (1,)
    assert np.diff(cut.offsets)[1] == 63


def test_tokens_in_half_precision_stay_near(tmp_path):
    folder = tiny_m3(tmp_path / "model")
    near, exact = (
        load(folder, dtype=dtype).embed_kinds(TEXTS, input_type="passage")
        for dtype in ("bfloat16", "float32")
    )
    assert (near.multi.vectors * exact.multi.vectors).sum(axis=1).min() > 0.999
    for found, wanted in zip(near.sparse.dicts(), exact.sparse.dicts(), strict=True):
        for token in found.keys() | wanted.keys():
            assert abs(found.get(token, 0.0) - wanted.get(token, 0.0)) < 0.05


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
@pytest.mark.parametrize("damage", ["code", "shape", "nan", "cut"])
def test_a_bad_head_is_named_and_runs_no_code(tmp_path, name, damage):
    folder = tiny_m3(tmp_path / "model")
    path = folder / name
    linear = torch.load(path)
    if damage == "code":
        torch.save({"weight": Bomb(tmp_path / "boom")}, path)
    elif damage == "shape":
        torch.save({"weight": linear["weight"][:, 1:], "bias": linear["bias"]}, path)
    elif damage == "nan":
        linear["bias"][0] = torch.nan
        torch.save(linear, path)
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=name):
        load(folder).embed_kinds(["cat"], input_type="query")
    assert not (tmp_path / "boom").exists()
