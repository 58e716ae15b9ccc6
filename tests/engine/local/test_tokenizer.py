from __future__ import annotations

import json

import pytest
import tokenizers

from nimbed.errors import CheckpointError, InputError
from nimbed.local.hub import locate
from nimbed.local.tokenizer import TextTokenizer

PATH = locate(None).folder / "tokenizer.json"
CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def raw():
    tokenizer = tokenizers.Tokenizer.from_file(str(PATH))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_baked_in_truncation_and_padding_are_taken_off(raw):
    baked = json.loads(PATH.read_text())
    assert baked["truncation"]["max_length"] == 128  # the trap is there
    assert baked["padding"]["strategy"] == {"Fixed": 128}
    ours = TextTokenizer(PATH, max_tokens=256)
    ids = ours.encode(["short", "word " * 200], prompt="", truncate="NONE").ids
    assert [len(row) for row in ids] == [3, 202]


@pytest.mark.parametrize("count", [1, 3, 700])
def test_few_texts_and_many_are_tokenized_as_the_library_does_it_one_by_one(raw, count):
    texts = [f"text {n} for naïve münchen 東京 {'und so weiter ' * (n % 7)}" for n in range(count)]
    ids = TextTokenizer(PATH, max_tokens=256).encode(texts, prompt="query: ", truncate="NONE").ids
    assert ids == [raw.encode(f"query: {text}").ids for text in texts]


def test_end_keeps_the_beginning_and_the_special_tokens(raw):
    words = " ".join(f"w{n}" for n in range(50))
    whole = raw.encode(words).ids
    cut = TextTokenizer(PATH, max_tokens=20).encode([words], prompt="", truncate="END")
    assert cut.ids == [[*whole[:19], SEP]]
    assert cut.truncated == [0]


def test_start_keeps_the_end_and_the_special_tokens(raw):
    words = " ".join(f"w{n}" for n in range(50))
    whole = raw.encode(words).ids
    cut = TextTokenizer(PATH, max_tokens=20).encode(["ok", words], prompt="", truncate="START")
    assert cut.ids[1] == [CLS, *whole[-19:]]
    assert cut.truncated == [1]


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_the_prompt_survives_truncation_at_either_end(raw, truncate):
    words = " ".join(f"w{n}" for n in range(50))
    prompt = raw.encode("query: ", add_special_tokens=False).ids
    row = (
        TextTokenizer(PATH, max_tokens=20)
        .encode([words], prompt="query: ", truncate=truncate)
        .ids[0]
    )
    assert row[: 1 + len(prompt)] == [CLS, *prompt]
    assert (len(row), row[-1]) == (20, SEP)
    text = raw.encode(words, add_special_tokens=False).ids
    body = row[1 + len(prompt) : -1]
    assert body == (text[: len(body)] if truncate == "END" else text[-len(body) :])


def test_a_row_of_exactly_the_limit_is_not_cut(raw):
    words = " ".join(["word"] * 18)
    kept = TextTokenizer(PATH, max_tokens=20).encode([words], prompt="", truncate="NONE")
    assert kept.truncated == []
    assert len(kept.ids[0]) == 20


def test_rows_in_messages_are_the_callers():
    ours = TextTokenizer(PATH, max_tokens=8)
    with pytest.raises(
        InputError, match="input length 12 exceeds maximum allowed token size 8 .row 101"
    ):
        ours.encode(["a", "b " * 10], prompt="", truncate="NONE", first_row=100)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        TextTokenizer(broken, max_tokens=8)
    with pytest.raises(CheckpointError, match="no room"):
        TextTokenizer(PATH, max_tokens=2)
