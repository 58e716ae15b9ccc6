"""Files of a tokenizer that contradict each other are followed as transformers does, or refused."""

from __future__ import annotations

import json
import shutil

import pytest
from sentence_transformers import SentenceTransformer
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.sentence_folders import assert_same, edit

import nimbed
from nimbed.errors import CheckpointError

TEXTS = ["The River in YORK", "münchen was Café", "a [MASK] of thedogsjumped over", "rains 東京"]
CONFIG, TOKENIZER, LENGTHS = "tokenizer_config.json", "tokenizer.json", "sentence_bert_config.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


def normalizer(**changes):
    return lambda tokenizer: {**tokenizer, "normalizer": {**tokenizer["normalizer"], **changes}}


def without_normalizer(tokenizer):
    return {**tokenizer, "normalizer": None}


def said(**changes):
    return lambda config: {**config, **changes}


OTHER_CLASS = said(tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]")
MASK = {"content": "[MASK]", "lstrip": True, "rstrip": True, "special": True}


@pytest.mark.parametrize(
    "edits",
    [
        {CONFIG: said(do_lower_case=False)},
        {CONFIG: said(do_lower_case=False, strip_accents=True)},
        {CONFIG: said(strip_accents=False, tokenize_chinese_chars=False)},
        {TOKENIZER: normalizer(lowercase=False)},
        {TOKENIZER: without_normalizer},
        {TOKENIZER: normalizer(lowercase=False), CONFIG: OTHER_CLASS},
        {
            TOKENIZER: normalizer(lowercase=False),
            CONFIG: OTHER_CLASS,
            LENGTHS: said(do_lower_case=True),
        },
        {TOKENIZER: without_normalizer, CONFIG: OTHER_CLASS, LENGTHS: said(do_lower_case=True)},
        {CONFIG: said(additional_special_tokens=["dog"])},
        {CONFIG: said(mask_token="river")},
        {CONFIG: said(added_tokens_decoder={"4": MASK})},
        {CONFIG: said(truncation_side="right", add_eos_token=True)},
    ],
    ids=lambda edits: "-".join(edits),
)
def test_contradictions_are_followed_as_sentence_transformers_does(plain, edits, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    before = nimbed.load(str(folder)).spec().fingerprint
    for file, change in edits.items():
        edit(folder / file, change)
    if edits.get(CONFIG, dict)({}).get("added_tokens_decoder"):
        ids = {t["content"]: t["id"] for t in read(folder / TOKENIZER)["added_tokens"]}
        edit(folder / CONFIG, said(added_tokens_decoder={str(ids["[MASK]"]): MASK}))
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = assert_same(folder, theirs, texts=TEXTS, alone=False)
    same = "add_eos_token" in read(folder / CONFIG)
    assert (ours.spec().fingerprint == before) is same


def read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            {
                TOKENIZER: lambda t: {**t, "normalizer": {"type": "NFC"}},
                CONFIG: said(do_lower_case=True),
            },
            "not what transformers' BertTokenizer makes .*normalizer: NFC",
        ),
        (
            {
                TOKENIZER: lambda t: {
                    **t,
                    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True},
                },
                CONFIG: said(add_prefix_space=False, tokenizer_class="PreTrainedTokenizerFast"),
            },
            "gives add_prefix_space False, and tokenizer.json True",
        ),
        ({CONFIG: said(split_special_tokens=True)}, "gives split_special_tokens True"),
        ({CONFIG: said(added_tokens_decoder=[1])}, "is malformed"),
        ({CONFIG: said(added_tokens_decoder={"x": {}})}, "is malformed"),
        ({CONFIG: said(model_max_length="long")}, "model_max_length 'long', expected a positive"),
        ({CONFIG: said(twist=1)}, "has the key 'twist'"),
    ],
)
def test_what_cannot_be_followed_is_refused(plain, edits, message, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    for file, change in edits.items():
        edit(folder / file, change)
    if "model_max_length" in message:
        edit(folder / LENGTHS, lambda config: {"do_lower_case": False})
    with pytest.raises(CheckpointError, match=message):
        nimbed.load(str(folder), device="cpu")
