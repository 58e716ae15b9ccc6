"""Tiny random XLM-R checkpoints against transformers and sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.engine.local.checkpoints import tiny_xlmr
from tests.engine.local.families import TEXTS, embed, load
from tests.engine.local.oracles import (
    cls_vectors,
    mean_vectors,
    oracle,
    padded_mean_vectors,
    token_ids,
)
from tests.engine.local.sentence_folders import edit
from tests.engine.local.tiny_tokenizers import xlmr_tokenizer
from tokenizers import Tokenizer, normalizers

from nimbed.errors import CheckpointError, InputError


@pytest.mark.parametrize(("pooling", "pooled"), [("mean", mean_vectors), ("cls", cls_vectors)])
def test_it_equals_transformers_whose_positions_begin_behind_the_padding_id(
    tmp_path, pooling, pooled
):
    folder = tiny_xlmr(tmp_path / "model", pooling=pooling)
    expected = pooled(oracle(folder), token_ids(folder, TEXTS))
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


def test_positions_from_zero_would_give_something_else(tmp_path):
    folder = tiny_xlmr(tmp_path / "model")
    model = oracle(folder)
    shifted = []
    for row in token_ids(folder, TEXTS):
        with torch.inference_mode():
            places = torch.arange(len(row))[None]
            hidden = model(torch.tensor([row]), position_ids=places).last_hidden_state[0]
        shifted.append((hidden.mean(0) / hidden.mean(0).norm()).numpy())
    assert np.abs(embed(folder) - np.stack(shifted)).max() > 1e-2


def test_it_equals_sentence_transformers_and_so_do_the_token_ids(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny_xlmr(tmp_path / "model")
    theirs = SentenceTransformer(str(folder), device="cpu")
    for text in TEXTS:
        assert theirs.tokenizer(text)["input_ids"] == token_ids(folder, [text])[0]
    expected = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


def test_a_padded_reference_agrees(tmp_path):
    folder = tiny_xlmr(tmp_path / "model")
    rows = token_ids(folder, TEXTS)
    expected = padded_mean_vectors(oracle(folder), rows, side="right", pad=1)
    np.testing.assert_allclose(embed(folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["roberta.", "xlm_roberta."])
def test_prefixes_that_exporters_add_make_no_difference(tmp_path, prefix):
    plain = embed(tiny_xlmr(tmp_path / "plain"))
    np.testing.assert_array_equal(plain, embed(tiny_xlmr(tmp_path / "other", prefix=prefix)))


def test_pickled_weights_make_no_difference(tmp_path):
    plain = embed(tiny_xlmr(tmp_path / "plain"))
    np.testing.assert_array_equal(plain, embed(tiny_xlmr(tmp_path / "other", pickled=True)))


def test_two_of_the_positions_are_no_room_for_tokens(tmp_path):
    folder = tiny_xlmr(tmp_path / "model")
    assert load(folder).card.max_tokens == 64
    longest = " ".join(["cat"] * 62)
    expected = mean_vectors(oracle(folder), token_ids(folder, [longest]))
    np.testing.assert_allclose(embed(folder, [longest]), expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="65 exceeds maximum allowed token size 64"):
        embed(folder, [longest + " cat"])


def test_the_tokenizer_file_is_obeyed_down_to_its_normalizer(tmp_path):
    """Unless it names XLM-R's class, which transformers 5 makes anew and transformers 4 did not."""
    tokenizer = xlmr_tokenizer()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    folder = tiny_xlmr(tmp_path / "model", tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="not what transformers' XLMRobertaTokenizer makes"):
        embed(folder, ["a cat"])
    edit(folder / "tokenizer_config.json", lambda c: {**c, "tokenizer_class": "TokenizersBackend"})
    texts = ["\uff23\uff21\uff34", "What IS \u2460"]  # full-width CAT, a circled 1
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [own.encode(text).ids for text in texts]
    assert rows[0] == [0, own.token_to_id("▁cat"), 2]
    expected = mean_vectors(oracle(folder), rows)
    np.testing.assert_allclose(embed(folder, texts), expected, atol=1e-5, rtol=0)


def test_a_padding_token_within_a_text_takes_no_position(tmp_path):
    folder = tiny_xlmr(tmp_path / "model")
    texts = ["cat <pad> dog", "<pad> <pad> sky", "the <pad>", "plain words"]
    rows = token_ids(folder, texts)
    assert [1 in row for row in rows] == [True, True, True, False]
    model = oracle(folder)
    expected = np.concatenate([mean_vectors(model, [row]) for row in rows])
    np.testing.assert_allclose(embed(folder, texts), expected, atol=1e-5, rtol=0)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(embed(folder, [text])[0], expected[row], atol=1e-5, rtol=0)
