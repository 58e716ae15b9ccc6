"""A folder may be told which model it holds: it is checked, and then is that model."""

from __future__ import annotations

import dataclasses
import pickle
import shutil

import numpy as np
import pytest

import nimbed
from nimbed import cards
from nimbed.errors import CheckpointError, ConfigurationError
from nimbed.local.hub import locate

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(locate(None).folder, tmp_path / "copy")


@pytest.mark.parametrize("card", ["minilm", MINILM, cards.find(MINILM)], ids=str)
def test_a_copy_is_the_model_itself(folder, card):
    ours = nimbed.load(str(folder), card=card, device="cpu", dtype="float32")
    theirs = nimbed.load(device="cpu", dtype="float32")
    assert ours.card == theirs.card
    assert ours.spec() == theirs.spec()
    assert ours.spec().fingerprint != nimbed.load(str(folder)).spec().fingerprint
    ask = {"input_type": "query"}
    np.testing.assert_array_equal(
        ours.embed(["hello"], **ask).vectors, theirs.embed(["hello"], **ask).vectors
    )


def test_a_card_of_ones_own_names_the_model_but_not_its_weights(folder):
    own = dataclasses.replace(cards.find(MINILM), id="mine", matryoshka=(128,), aliases=())
    ours = nimbed.load(str(folder), card=own, device="cpu")
    assert (ours.card.id, ours.card.sizes) == ("mine", (128, 384))
    assert str(ours.spec().revision).startswith("content:")


def test_a_folder_of_another_model_is_refused(folder):
    with pytest.raises(CheckpointError, match="describes a bert of 384 dimensions; nvidia/llama"):
        nimbed.load(str(folder), card="nvidia/llama-nemotron-embed-1b-v2")


def test_what_is_no_folder_needs_no_card():
    with pytest.raises(ConfigurationError, match="card= says what a folder holds"):
        nimbed.load(MINILM, card="minilm")


def test_a_server_is_told_nothing(folder):
    with pytest.raises(ConfigurationError, match="card can only be used with a local model"):
        nimbed.load("m", card="minilm", base_url="http://localhost:1/v1")


def test_a_pickle_keeps_it(folder):
    ours = nimbed.load(str(folder), card="minilm", device="cpu")
    assert pickle.loads(pickle.dumps(ours)).spec() == ours.spec()
