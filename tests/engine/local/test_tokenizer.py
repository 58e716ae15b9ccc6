from __future__ import annotations

import json
import time

import pytest
import tokenizers
from tests.engine.local.tiny_tokenizers import (
    bert_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
    xlmr_tokenizer,
)

from nimbed.errors import CheckpointError, InputError, TooLongError
from nimbed.local.backends import tokenizer_beside
from nimbed.local.checkpoint import read_checkpoint
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


@pytest.mark.parametrize("on_host", [True, False])
def test_beside_a_gpu_few_texts_wait_for_no_lock_and_have_the_same_tokens(
    on_host, raw, monkeypatch
):
    ours = tokenizer_beside(read_checkpoint(locate(None), revision=None), on_host=on_host)
    texts = [f"text {n} for naïve münchen 東京" for n in range(32)]
    one_by_one = []
    monkeypatch.setattr(ours, "_tokenizer", Watched(ours._tokenizer, one_by_one))
    for some in (texts[:2], texts):
        ids = ours.encode(some, prompt="", truncate="NONE").ids
        assert ids == [raw.encode(text).ids for text in some]
    assert one_by_one == (texts[:2] + texts if on_host else texts[:2])


class Watched:
    """A tokenizer, and what was tokenized under the interpreter's lock."""

    def __init__(self, tokenizer, seen):
        self._tokenizer, self._seen = tokenizer, seen
        self.encode_batch_fast = tokenizer.encode_batch_fast

    def encode(self, text):
        self._seen.append(text)
        return self._tokenizer.encode(text)


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
    with pytest.raises(CheckpointError, match="no more than the special ones"):
        TextTokenizer(PATH, max_tokens=2)


# What is too long to be tokenized


def words_of(characters):
    return ("word and street " * (characters // 16 + 1))[:characters].strip()


@pytest.mark.parametrize("truncate", ["END", "START"])
def test_a_text_of_60_megabytes_costs_what_its_first_or_last_part_does(raw, truncate):
    ours = TextTokenizer(PATH, max_tokens=256)
    text = f"first {words_of(60_000_000)} last"
    begin = time.monotonic()
    found = ours.encode(["short", text], prompt="query: ", truncate=truncate)
    assert time.monotonic() - begin < 3
    part = text[:40_000] if truncate == "END" else text[-40_000:]
    assert found.truncated == [1]
    assert found.ids == ours.encode(["short", part], prompt="query: ", truncate=truncate).ids


def test_a_text_of_60_megabytes_that_may_not_be_cut_is_refused_untokenized():
    ours = TextTokenizer(PATH, max_tokens=256)
    text, begin = words_of(60_000_000), time.monotonic()
    with pytest.raises(TooLongError, match=r"characters were counted.* to tokenize") as refused:
        ours.encode(["a", text, "b " * 300], prompt="", truncate="NONE", first_row=10)
    assert time.monotonic() - begin < 3
    assert refused.value.rows == (11, 12)
    assert (refused.value.length, refused.value.limit) == (len(text), 256)


@pytest.mark.parametrize("truncate", ["END", "START"])
def test_just_below_the_bound_every_character_counts(raw, truncate):
    text = f"first{' ' * (64 * 1024 - 9)}last"
    found = TextTokenizer(PATH, max_tokens=8).encode([text], prompt="", truncate=truncate)
    assert found.ids == [raw.encode("first last").ids]
    assert found.truncated == []
    beyond = TextTokenizer(PATH, max_tokens=8).encode(
        [f"{text} zzzz"], prompt="", truncate=truncate
    )
    assert beyond.truncated == [0]
    assert beyond.ids == [raw.encode("first last" if truncate == "END" else "last zzzz").ids]


def test_many_long_texts_are_cut_one_by_one_as_they_would_be_alone():
    ours = TextTokenizer(PATH, max_tokens=16)
    texts = [f"{n} {words_of(50_000 + n)} {n}" for n in range(60)]
    for truncate in ("END", "START"):
        together = ours.encode(texts, prompt="query: ", truncate=truncate)
        alone = [ours.encode([text], prompt="query: ", truncate=truncate).ids[0] for text in texts]
        assert together.ids == alone
        assert together.truncated == list(range(60))


def test_a_tokenizer_that_gives_up_names_the_row(tmp_path):
    breakable = tokenizers.Tokenizer.from_file(str(PATH))
    breakable.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"(?:a|aa|aaa)+$"), "isolated"
    )
    breakable.save(str(tmp_path / "tokenizer.json"))
    ours = TextTokenizer(tmp_path / "tokenizer.json", max_tokens=256)
    for filler in ("x", "x" * 5000):  # one by one, and many at once
        texts = ["fine", f"{'a' * 60}b", filler]
        with pytest.raises(InputError, match="cannot read row 101") as refused:
            ours.encode(texts, prompt="", truncate="END", first_row=100)
        assert refused.value.rows == (101,)
        assert len(ours.encode(["fine"], prompt="", truncate="NONE").ids[0]) > 2


def test_a_tokenizer_that_gives_up_at_once_is_a_damaged_file(tmp_path):
    damaged = json.loads(PATH.read_text())
    damaged["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA/w=="}
    (tmp_path / "tokenizer.json").write_text(json.dumps(damaged))
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        TextTokenizer(tmp_path / "tokenizer.json", max_tokens=8)


@pytest.mark.parametrize(
    ("build", "texts"),
    [
        (None, ["Do not say: it's 3.14159, naïve 東京!", "[SEP] in a text", "🙂 is unknown"]),
        (bert_tokenizer, ["Do not: it's a text"]),
        (xlmr_tokenizer, ["Do not say: it's a text"]),
        (llama3_tokenizer, ["  two blanks, naïve 東京 🙂\n"]),
        (mistral_tokenizer, ["Do not: naïve 東京 🙂"]),
    ],
)
def test_ids_with_their_special_tokens_become_the_text_again(build, texts, tmp_path):
    path = PATH
    if build is not None:
        path = tmp_path / "tokenizer.json"
        build().save(str(path))
    ours = TextTokenizer(path, max_tokens=64)
    ids = ours.encode(texts, prompt="", truncate="NONE").ids
    back = ours.texts(ids)
    assert ours.encode(back, prompt="", truncate="NONE").ids == ids
    for foreign in (ids[0][1:], [2**40], [ids[0][0]]):
        with pytest.raises(InputError, match="row 1.* send the text") as refused:
            ours.texts([ids[0], foreign])
        assert refused.value.rows == (1,)
    with pytest.raises(TooLongError, match="token ids are not cut"):
        ours.texts([ids[0] * 64])


def test_where_nothing_stands_around_a_text_no_ids_are_believed(tmp_path):
    bare = TextTokenizer(PATH, max_tokens=64, bare=True)
    ids = bare.encode(["a text"], prompt="", truncate="NONE").ids
    with pytest.raises(InputError, match="send the text"):
        bare.texts(ids)
