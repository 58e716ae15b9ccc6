"""Files of a tokenizer that say several things are followed as they would be, or refused by name.

The judge is sentence-transformers: equal token ids, lengths and vectors, or a refusal. What is
drawn are the settings of people's folders, in every file that may hold them, at random together.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tests.engine.local.checkpoints import (
    WIDTH,
    change_config,
    change_tensors,
    random_weights,
    tiny_bert,
    tiny_xlmr,
    write_json,
)
from tests.engine.local.sentence_folders import EXAMPLES, their_ids
from tests.engine.local.tiny_decoders import tiny_causal
from tests.engine.local.tiny_encoders import tiny_modernbert, tiny_mpnet, tiny_roberta
from tests.engine.local.tiny_tokenizers import bert_tokenizer, llama3_tokenizer
from tokenizers import Tokenizer

import nimbed
from nimbed.errors import CheckpointError, TooLongError
from nimbed.local.checkpoint import read_checkpoint
from nimbed.local.hub import locate
from nimbed.local.tokenizer import read_tokenizer

CONFIG, TOKENIZER, LENGTHS = "tokenizer_config.json", "tokenizer.json", "sentence_bert_config.json"
NAMES, ADDED, PROMPTS = (
    "special_tokens_map.json",
    "added_tokens.json",
    "config_sentence_transformers.json",
)
TEXTS = [
    "The River in YORK",
    "münchen was Café  a",
    "a [MASK] of thedogsjumped over",
    "rains 東京 tail ",
    "is <mask> river, <pad> [PAD] [UNK] x",
    " lead\tand\nlines",
    "dog [dog] <extra> Dog жq",
    "the warm sky over york and the river is not what a cat sleeps under " * 3,
]


def mpnet(folder: Path) -> Path:
    """Write an MPNet with the tokenizer of the published ones."""
    tiny_mpnet(folder)
    tokenizer = json.loads(bert_tokenizer().to_str())
    names = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>", "[MASK]": "<mask>"}
    words = tokenizer["model"]["vocab"].items()
    tokenizer["model"]["vocab"] = {names.get(word, word): number for word, number in words}
    for token in tokenizer["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
        token["lstrip"] = token["content"] == "<mask>"
    tokenizer["post_processor"] = around(("<s>", 2), ("</s>", 3))
    said = {"tokenizer_class": "MPNetTokenizer", "do_lower_case": True}
    return with_tokenizer(folder, tokenizer, said)


def roberta(folder: Path) -> Path:
    """Write a RoBERTa with a byte-level tokenizer."""
    tiny_roberta(folder)
    special = ("<s>", "</s>", "<unk>", "<pad>", "<mask>")
    tokenizer = json.loads(llama3_tokenizer(merged=True, extra=special).to_str())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer["pre_tokenizer"] = {**level, "use_regex": True}
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokenizer["post_processor"] = around(("<s>", ids["<s>"]), ("</s>", ids["</s>"]))
    return with_tokenizer(folder, tokenizer, {"tokenizer_class": "RobertaTokenizer"})


def with_tokenizer(folder: Path, tokenizer: Any, said: Any) -> Path:
    """Give a folder another tokenizer, and its network a table that is long enough for it."""
    write_json(folder / TOKENIZER, tokenizer)
    write_json(folder / CONFIG, said)
    name = "embeddings.word_embeddings.weight"
    size = Tokenizer.from_file(str(folder / TOKENIZER)).get_vocab_size()
    made = random_weights({name: (size, WIDTH)}, seed=1)
    change_tensors(folder, lambda tensors: tensors.update(made))
    change_config(folder, vocab_size=size)
    return folder


def around(cls: tuple[str, int], sep: tuple[str, int]) -> dict[str, Any]:
    return {
        **{"type": "RobertaProcessing", "cls": list(cls), "sep": list(sep)},
        **{"trim_offsets": True, "add_prefix_space": False},
    }


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": tiny_bert,
    "modernbert": tiny_modernbert,
    "mpnet": mpnet,
    "qwen2": functools.partial(tiny_causal, kind="qwen2"),
    "roberta": roberta,
    "xlm-roberta": tiny_xlmr,
}


class Edit(NamedTuple):
    """What is changed of a file, and whether it may be refused."""

    file: str
    change: Callable[[Any], Any]
    refusable: bool = False


def said(file: str, *, refusable: bool = False, **facts: Any) -> Edit:
    return Edit(file, lambda content: {**content, **facts}, refusable)


def normalizer(kind: str, *, refusable: bool = True, **facts: Any) -> Edit:
    made = {"normalizer": {"type": kind, **facts}}
    return Edit(TOKENIZER, lambda content: {**content, **made}, refusable)


def berts(**facts: Any) -> Edit:
    usual = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    return normalizer("BertNormalizer", **{**usual, "lowercase": True, **facts})


def token(content: str, **flags: bool) -> dict[str, Any]:
    usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **usual, "special": True, **flags}


def adding(content: str, **flags: bool) -> Edit:
    """Have tokenizer.json list a word of its vocabulary among the added tokens."""

    def change(tokenizer: Any) -> Any:
        words = tokenizer["model"]["vocab"]
        if isinstance(words, list):
            words = {word: number for number, (word, _) in enumerate(words)}
        if content not in words:
            return tokenizer
        number = words[content]
        others = [each for each in tokenizer["added_tokens"] if each["id"] != number]
        listed = [*others, {"id": number, **token(content, **flags)}]
        return {**tokenizer, "added_tokens": sorted(listed, key=lambda each: each["id"])}

    return Edit(TOKENIZER, change)


def flagging(content: str, **flags: bool) -> Edit:
    def change(tokenizer: Any) -> Any:
        listed = tokenizer["added_tokens"]
        changed = [{**each, **flags} if each["content"] == content else each for each in listed]
        return {**tokenizer, "added_tokens": changed}

    return Edit(TOKENIZER, change)


def part(name: str, value: Any, *, refusable: bool = True) -> Edit:
    return Edit(TOKENIZER, lambda tokenizer: {**tokenizer, name: value}, refusable)


def template(change: Callable[[list[Any]], list[Any]]) -> Edit:
    """Change what stands around a text in the template, if there is one."""

    def changed(tokenizer: Any) -> Any:
        processor = tokenizer.get("post_processor") or {}
        if processor.get("type") != "TemplateProcessing":
            return tokenizer
        return {
            **tokenizer,
            "post_processor": {**processor, "single": change(processor["single"])},
        }

    return Edit(TOKENIZER, changed, refusable=True)


def cut(side: str, most: int) -> dict[str, Any]:
    return {"direction": side, "max_length": most, "strategy": "LongestFirst", "stride": 0}


CLASSES = ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "MPNetTokenizer"]
CLASSES += ["Qwen2Tokenizer", "RobertaTokenizerFast", "XLMRobertaTokenizer", "LlamaTokenizerFast"]
WHOLE = ["PreTrainedTokenizerFast", "TokenizersBackend", "AnybodysTokenizer"]
REPLACED = {"type": "Replace", "pattern": {"String": "Y"}, "content": "x"}
PADDING = {
    **{"strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": 8},
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
}
EDITS: list[Edit] = [
    *(said(CONFIG, do_lower_case=value) for value in (True, False)),
    *(said(CONFIG, strip_accents=value) for value in (True, False)),
    said(CONFIG, tokenize_chinese_chars=False),
    *(said(CONFIG, model_max_length=most) for most in (9, int(1e30))),
    said(CONFIG, max_len=8),
    said(CONFIG, max_length=7),
    said(CONFIG, truncation_side="left"),
    said(CONFIG, padding_side="left"),
    *(said(CONFIG, tokenizer_class=name, refusable=True) for name in (*CLASSES, None)),
    *(said(CONFIG, tokenizer_class=name, pad_token="[PAD]", refusable=True) for name in WHOLE),
    *(said("config.json", tokenizer_class=name, refusable=True) for name in CLASSES[::3]),
    *(said(CONFIG, **{name: value}) for name in ("add_bos_token", "add_eos_token")
      for value in (True, False)),
    *(said(CONFIG, add_prefix_space=value, refusable=True) for value in (True, False)),
    *(said(CONFIG, **{name: "river"}, refusable=True)
      for name in ("cls_token", "sep_token", "unk_token", "bos_token", "eos_token")),
    *(said(CONFIG, **{name: "dog"}) for name in ("mask_token", "pad_token", "image_token")),
    said(CONFIG, additional_special_tokens=["dog"]),
    said(CONFIG, extra_special_tokens=["dog"]),
    said(CONFIG, extra_special_tokens={"dog_token": "dog"}),
    said(CONFIG, added_tokens_decoder={"4": token("[MASK]", lstrip=True)}, refusable=True),
    said(CONFIG, clean_up_tokenization_spaces=True),
    said(CONFIG, split_special_tokens=True, refusable=True),
    *(said(CONFIG, **{name: value}) for name, value in (
        ("padding", "max_length"), ("truncation", True), ("stride", 2), ("use_fast", False),
        ("truncation_strategy", "do_not_truncate"), ("pad_to_multiple_of", 8), ("legacy", True),
        ("model_input_names", ["input_ids", "attention_mask"]), ("is_local", True),
        ("chat_template", "{{ messages }}"), ("keep_accents", True), ("remove_space", False))),
    *(said(LENGTHS, do_lower_case=value) for value in (True, False)),
    *(said(LENGTHS, max_seq_length=most) for most in (10, None)),
    Edit(LENGTHS, lambda content: {}),
    berts(lowercase=False),
    berts(strip_accents=False),
    berts(strip_accents=True, lowercase=False),
    berts(handle_chinese_chars=False),
    berts(clean_text=False),
    part("normalizer", None),
    normalizer("NFC"),
    normalizer("Lowercase"),
    normalizer("Sequence", normalizers=[{"type": "NFKC"}, {"type": "Lowercase"}]),
    normalizer("Sequence", normalizers=[REPLACED]),
    part("truncation", cut("Right", 7), refusable=False),
    part("truncation", cut("Left", 7), refusable=False),
    part("padding", PADDING, refusable=False),
    part("post_processor", None),
    part("pre_tokenizer", None),
    part("pre_tokenizer", {"type": "WhitespaceSplit"}),
    part("added_tokens", [], refusable=True),
    template(lambda single: single[:-1] if len(single) > 2 else single),
    template(lambda single: [*single, single[-1]]),
    adding("dog", special=False, normalized=True),
    adding("river", lstrip=True),
    flagging("[MASK]", lstrip=True),
    flagging("[PAD]", special=False),
    flagging("<mask>", normalized=True),
    said(NAMES, cls_token="[CLS]", refusable=True),
    said(NAMES, mask_token="dog"),
    said(NAMES, mask_token=token("river", lstrip=True)),
    said(NAMES, sep_token="river", refusable=True),
    said(NAMES, additional_special_tokens=["dog"]),
    said(ADDED, dog=60),
    said(ADDED, refusable=True, **{"<extra>": 500}),
    said(PROMPTS, prompts={"query": "Ask Dog: ", "document": ""}),
]  # fmt: skip

# What a refusal names: a key, or the part of tokenizer.json that another file contradicts.
KEYS = r"tokenizer_class|not what transformers' \w+ makes|add_prefix_space|split_special_tokens|"
KEYS += r"added_tokens|add_eos_token|puts no token before a text"


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return {
        name: build(tmp_path_factory.mktemp(name) / "model") for name, build in FAMILIES.items()
    }


def edited(plain: Path, folder: Path, edits: list[Edit]) -> Path:
    shutil.copytree(plain, folder)
    for edit in edits:
        path = folder / edit.file
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        write_json(path, edit.change(content))
    return folder


@settings(
    max_examples=2 * EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    places=st.lists(st.integers(0, len(EDITS) - 1), min_size=1, max_size=4, unique=True),
)
def test_files_of_a_tokenizer_are_followed_or_refused(families, tmp_path_factory, family, places):
    edits = [EDITS[place] for place in places]
    folder = edited(families[family], tmp_path_factory.mktemp("any") / "model", edits)
    try:
        theirs = SentenceTransformer(str(folder), device="cpu")
        read, vectors = expected(theirs)
    except Exception:  # whatever theirs does not load has no right answer
        assume(False)
    try:
        checkpoint = read_checkpoint(locate(str(folder)), revision=None)
        ours = read_tokenizer(checkpoint)
    except CheckpointError as error:
        refusal = str(error)
    else:
        compare(theirs, read, ours, checkpoint.card)
        if theirs.tokenizer.truncation_side != "left":
            ours = nimbed.load(str(folder), device="cpu", dtype="float32", backend="torch")
            got = ours.embed(TEXTS, input_type="passage", truncate="END").vectors
            np.testing.assert_allclose(got, vectors, atol=1e-5, rtol=0)
        return
    assert any(edit.refusable for edit in edits), refusal
    with pytest.raises(CheckpointError, match=KEYS):
        nimbed.load(str(folder), device="cpu").warmup()


def expected(theirs: SentenceTransformer) -> tuple[dict[str, list[list[int]]], np.ndarray]:
    """Return what sentence-transformers gives: ids of both roles, and vectors of passages."""
    prompts = {"query": theirs.prompts.get("query"), "passage": theirs.prompts.get("document")}
    ids = {
        role: [their_ids(theirs, text, prompt=prompt) for text in TEXTS]
        for role, prompt in prompts.items()
    }
    # One by one: padded on the left, a text of a batch has other positions than it has alone.
    options = {"prompt": prompts["passage"], "normalize_embeddings": True, "batch_size": 1}
    return ids, np.asarray(theirs.encode(TEXTS, **options))


def compare(
    theirs: SentenceTransformer,
    read: Mapping[str, list[list[int]]],
    ours: Any,
    card: nimbed.ModelCard,
) -> None:
    """Compare ids, cut at the end that sentence-transformers cuts, and what is too long."""
    at_start = theirs.tokenizer.truncation_side == "left"
    for role, rows in read.items():
        prompt = card.prompt(role)
        if at_start and prompt:  # which sentence-transformers cuts off, and nimbed never does
            continue
        truncate = "START" if at_start else "END"
        for text, row in zip(TEXTS, rows, strict=True):
            got = ours.encode([text], prompt=prompt, truncate=truncate)
            assert got.ids == [row]
            if got.truncated:
                with pytest.raises(TooLongError):
                    ours.encode([text], prompt=prompt, truncate="NONE")
