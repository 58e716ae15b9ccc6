"""bge-m3's sparse and ColBERT heads against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.engine.local.checkpoints import Bomb, tiny_m3, tiny_xlmr
from tests.engine.local.families import TEXTS, load
from tests.engine.local.oracles import cls_vectors, oracle, states, token_ids, unit

from nimbed.errors import CheckpointError, ConfigurationError, InputError


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
    for ids, vector in zip(token_ids(folder, texts), found, strict=True):
        expected: dict[int, float] = {}
        for token, output in zip(ids, states(model, ids) @ weight[0] + bias[0], strict=True):
            if token in (0, 1, 2, 3) or output <= 0:
                dropped += token > 3
            else:
                expected[token] = max(expected.get(token, 0.0), float(output))
        assert vector.ids.tolist() == sorted(expected)
        assert (vector.ids.dtype, vector.weights.dtype) == (np.int32, np.float32)
        wanted = [expected[token] for token in sorted(expected)]
        np.testing.assert_allclose(vector.weights, wanted, atol=1e-6, rtol=1e-6)
    assert dropped, "some words should have weighed nothing, or the test shows nothing"


def test_colbert_vectors_are_those_of_the_tokens_after_the_first(tmp_path):
    folder = tiny_m3(tmp_path / "model")
    weight, bias = head(folder, "colbert_linear.pt")
    model = oracle(folder)
    found = load(folder).embed_multi(TEXTS, input_type="passage")
    for ids, vectors in zip(token_ids(folder, TEXTS), found, strict=True):
        expected = unit(states(model, ids)[1:] @ weight.T + bias)
        assert vectors.shape == (len(ids) - 1, 32)
        np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)


def test_no_texts_give_no_outputs(tmp_path):
    embedder = load(tiny_m3(tmp_path / "model"))
    assert embedder.embed_sparse([], input_type="query") == []
    assert embedder.embed_multi([], input_type="query") == []


def test_a_model_without_the_heads_says_so(tmp_path):
    embedder = load(tiny_xlmr(tmp_path / "model"))
    with pytest.raises(ConfigurationError, match=r"sparse_linear\.pt"):
        embedder.embed_sparse(["cat"], input_type="query")


def test_arguments_are_checked_as_embed_checks_them(tmp_path):
    embedder = load(tiny_m3(tmp_path / "model"))
    with pytest.raises(ConfigurationError, match="input_type"):
        embedder.embed_sparse(["cat"], input_type="text")
    with pytest.raises(InputError, match="row 1"):
        embedder.embed_multi(["cat", " "], input_type="query")
    with pytest.raises(InputError, match="exceeds maximum"):
        embedder.embed_multi(["cat " * 100], input_type="query")
    (cut,) = embedder.embed_multi(["cat " * 100], input_type="query", truncate="END")
    assert cut.shape == (63, 32)


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
        load(folder).embed_sparse(["cat"], input_type="query")
    assert not (tmp_path / "boom").exists()
