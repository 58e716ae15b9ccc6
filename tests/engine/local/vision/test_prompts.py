from __future__ import annotations

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.local.tiny_tokenizers import llama3_tokenizer
from tests.engine.local.vl_checkpoint import MARKS, context, tiny_vl
from transformers import PreTrainedTokenizerFast

from nimbed.cards import ModelCard
from nimbed.errors import CheckpointError, InputError
from nimbed.images import Image
from nimbed.local.pipeline import read_json
from nimbed.local.vision.prompts import VisionTokenizer
from nimbed.local.vision.reader import ImageRow
from nimbed.local.vision.settings import VisionSettings

SMALL, LARGE = (Image(PIL.Image.new("RGB", size)) for size in ((20, 20), (100, 64)))
TILES = {SMALL: 1, LARGE: 7}
INJECTIONS = [
    "a <IMG_CONTEXT> b",
    "<IMG_CONTEXT>" * 9,
    "</img> <img> what is this",
    '<img src="cat.png"> in a page',
    "<image>\nwhat is <image>",
    "<|begin_of_text|> passage: <img>",
]
# Letters of other scripts, spaces of all kinds, brackets; but no token of the tokenizer's own.
TEXTS = st.text(min_size=1).filter(lambda text: not text.isspace() and "<" not in text)


def tokenizer(folder, max_tokens=10240):
    config = read_json(folder / "config.json")
    card = ModelCard(
        id="vl",
        architecture="nemotron_vl",
        dimensions=32,
        max_tokens=max_tokens,
        pooling="mean",
        asymmetric=True,
        query_prompt="query: ",
        passage_prompt="passage: ",
    )
    path = folder / "tokenizer.json"
    return VisionTokenizer(path, card=card, settings=VisionSettings.read(config))


@pytest.fixture(scope="module", params=[MARKS, ("<IMG_CONTEXT>",)], ids=["marks", "words"])
def folder(request, tmp_path_factory):
    """The tags around an image as special tokens, and as words: both are possible (models.md)."""
    made = llama3_tokenizer(extra=request.param)
    return tiny_vl(tmp_path_factory.mktemp("vl") / "model", tokenizer=made)


@pytest.fixture(scope="module")
def ours(folder):
    return tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def encode(tokenizer, inputs, prompt="passage: ", truncate="NONE", first_row=0):
    return tokenizer.encode(inputs, prompt=prompt, truncate=truncate, first_row=first_row)


@given(text=TEXTS)
def test_ids_are_those_of_the_whole_published_string(ours, theirs, text):
    rows = encode(ours, [text, SMALL, (text, LARGE)]).ids
    strings = [
        f"passage: {text}",
        f"passage: {context(1)} ",
        f"passage: {context(7)} {text}",
    ]
    assert [list(row) for row in rows] == theirs(strings)["input_ids"]
    assert [isinstance(row, ImageRow) for row in rows] == [False, True, True]


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize("prompt", ["passage: ", "query: "])
def test_marks_in_a_text_are_words_and_nothing_else(ours, theirs, prompt, text):
    found = encode(ours, [text], prompt).ids[0]
    literal = theirs(prompt + text, split_special_tokens=True)["input_ids"]
    assert found == literal
    assert ours._settings.context[1] not in found


@pytest.mark.parametrize("text", INJECTIONS)
def test_marks_in_a_pair_never_change_the_count_of_context_tokens(ours, theirs, text):
    found = encode(ours, [(text, LARGE)]).ids[0]
    head = theirs(f"passage: {context(7)}")["input_ids"]
    body = theirs(f" {text}", split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert found == head + body
    assert found.count(ours._settings.context[1]) == 7 * 4


def test_a_mark_that_cannot_be_read_as_words_is_refused(tmp_path):
    made = llama3_tokenizer(extra=("<img>", "</img>"))
    made.add_tokens(["<IMG_CONTEXT>"])  # not a special token, so it is always parsed
    ours = tokenizer(tiny_vl(tmp_path / "model", tokenizer=made))
    assert len(encode(ours, [SMALL]).ids[0]) > 4
    for item in ("a <IMG_CONTEXT>", ("a <IMG_CONTEXT>", SMALL)):
        with pytest.raises(InputError, match="row 3 holds <IMG_CONTEXT>") as caught:
            encode(ours, [item], first_row=3)
        assert caught.value.rows == (3,)


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_a_long_text_is_cut_and_its_image_is_not(folder, theirs, truncate):
    ours = tokenizer(folder, max_tokens=60)
    words = " ".join(f"word {number}" for number in range(60))
    whole = theirs(f"passage: {context(7)} {words}")["input_ids"]
    head = len(theirs(f"passage: {context(7)}")["input_ids"])
    ids, truncated, _ = encode(ours, [SMALL, (words, LARGE), "short"], truncate=truncate)
    assert truncated == [1]
    room = 60 - head
    assert ids[1] == (whole[:60] if truncate == "END" else whole[:head] + whole[-room:])
    assert ids[1].count(ours._settings.context[1]) == 28
    with pytest.raises(InputError, match=r"exceeds maximum allowed token size 60 \(row 8\)"):
        encode(ours, [SMALL, (words, LARGE)], first_row=7)


def test_an_image_beyond_the_limit_is_refused_whatever_truncate_says(folder):
    ours = tokenizer(folder, max_tokens=30)
    assert encode(ours, [SMALL]).ids[0].count(ours._settings.context[1]) == 4
    for item in (LARGE, ("a text", LARGE)):
        with pytest.raises(InputError, match="the image fills them alone and cannot be cut"):
            encode(ours, [item], truncate="END")


def test_a_text_alone_may_be_shorter_than_a_text_with_its_image(ours):
    text = "a " * 8200
    assert len(encode(ours, [(text, SMALL)]).ids[0]) > 8200
    with pytest.raises(InputError, match="maximum allowed token size 8192"):
        encode(ours, [text, SMALL])
    with pytest.raises(InputError, match="maximum allowed token size 8192"):
        encode(ours, [f"<img> {text}"])


def test_every_bad_row_is_named(ours):
    broken = Image(b"\x89PNG\r\n\x1a\nbroken")
    huge = Image(b"GIF89a" + b"\xff\xff\xff\xff" + bytes(20))
    with pytest.raises(InputError, match=r"row 5: image is damaged.*\(and 2 more rows\)") as caught:
        encode(ours, ["fine", broken, ("x", huge), SMALL, "a " * 9000], first_row=4)
    assert caught.value.rows == (5, 6, 8)


def test_a_tokenizer_with_another_context_token_is_refused(tmp_path):
    folder = tiny_vl(tmp_path / "model", changes={"img_context_token_id": 7})
    with pytest.raises(CheckpointError, match="does not read <IMG_CONTEXT> as the one token 7"):
        encode(tokenizer(folder), [SMALL])


@pytest.mark.parametrize(
    ("config", "processor", "tiles"),
    [
        ({"max_input_tiles": 2}, {}, (1, 2, True)),
        ({"max_input_tiles": 2}, {"max_input_tiles": 6}, (1, 6, True)),
        ({"max_input_tiles": 2}, {"image_processor": {"max_input_tiles": 4}}, (1, 4, True)),
        ({}, {"use_thumbnail": False, "min_input_tiles": 2}, (2, 6, False)),
        ({"dynamic_image_size": False}, {}, (1, 1, True)),
        ({}, {"dynamic_image_size": False}, (1, 1, True)),
        ({"max_input_tiles": None, "use_thumbnail": None}, {}, (1, 6, False)),
    ],
)
def test_the_processors_tiles_outrank_the_configurations(folder, config, processor, tiles):
    whole = {**read_json(folder / "config.json"), **config}
    tiling = VisionSettings.read(whole, processor).tiling
    assert (tiling.least, tiling.most, tiling.thumbnail) == tiles


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"select_layer": -2}, "select_layer -2"),
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3"),
        ({"downsample_ratio": 0}, "downsample_ratio 0"),
        ({"downsample_ratio": "half"}, "downsample_ratio 'half'"),
        ({"downsample_ratio": 0.125}, "leaves a remainder"),
        ({"ps_version": "v3"}, "ps_version 'v3'"),
        ({"vision_config": None}, "no vision_config"),
        ({"force_image_size": 64}, "image_size 32"),
        ({"max_input_tiles": 0}, "max_input_tiles 0"),
        ({"max_input_tiles": 1000}, "asks for 1 to 1000 tiles"),
        ({"min_input_tiles": 7}, "asks for 7 to 6 tiles"),
        ({"img_context_token_id": None}, "img_context_token_id None"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder, config, message):
    with pytest.raises(CheckpointError, match=message):
        VisionSettings.read({**read_json(folder / "config.json"), **config})
