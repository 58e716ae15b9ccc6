from __future__ import annotations

import dataclasses

import numpy as np
import PIL.Image
import pytest

from nimbed.errors import ConfigurationError, InputError
from nimbed.fake import FAKE_CARD, FakeEmbedder
from nimbed.images import Image
from nimbed.inputs import check_inputs

RED, BLUE = (Image(PIL.Image.new("RGB", (2, 2), colour)) for colour in ("red", "blue"))
EVERYTHING = ("text", "image", "text_image")


def check(inputs, input_type="passage", modality=None, modalities=EVERYTHING):
    return check_inputs(
        inputs, input_type=input_type, modality=modality, model="a model", modalities=modalities
    )


def test_texts_images_and_pairs_pass_as_they_are():
    inputs = ["text", RED, ("text", BLUE)]
    assert check(inputs) == inputs
    assert check(tuple(inputs)) == inputs
    assert check([]) == []
    assert check(["text"], "query", "text") == ["text"]


@pytest.mark.parametrize(
    ("inputs", "message", "rows"),
    [
        (["a", b"b"], "row 1 holds bytes", (1,)),
        (["a", None, RED, 3], "rows 1, 3 holds NoneType", (1, 3)),
        ([("a", "b")], "row 0 holds tuple", (0,)),
        ([(RED, "a")], "row 0 holds tuple", (0,)),
        ([("a", RED, BLUE)], "row 0 holds tuple", (0,)),
        ([PIL.Image.new("L", (1, 1))], "row 0 holds Image", (0,)),
        ([RED, ("  ", BLUE)], "must not be blank or empty; row 1", (1,)),
        ([RED, ""], "must not be blank or empty; row 1", (1,)),
        ([("a\ud800", RED)], "row 0 holds a lone surrogate", (0,)),
    ],
)
def test_what_cannot_be_embedded_is_named(inputs, message, rows):
    with pytest.raises(InputError, match=message) as caught:
        check(inputs)
    assert caught.value.rows == rows


@pytest.mark.parametrize("one", ["text", b"text", RED, ("text", RED)])
def test_one_input_instead_of_a_list_is_refused(one):
    with pytest.raises(ConfigurationError, match="wrap it in brackets"):
        check(one)


@pytest.mark.parametrize(
    ("modality", "inputs", "rows"),
    [
        ("text", ["a", RED], (1,)),
        ("image", ["data:image/png;base64,AAAA", RED], (0,)),
        ("image", [("a", RED)], (0,)),
        ("text_image", [("a", RED), RED, "a"], (1, 2)),
    ],
)
def test_an_explicit_modality_must_be_true_of_every_row(modality, inputs, rows):
    with pytest.raises(InputError, match=f"modality='{modality}' was given, but row") as caught:
        check(inputs, modality=modality)
    assert caught.value.rows == rows


def test_an_unknown_modality_is_refused_in_nims_words():
    with pytest.raises(
        ConfigurationError,
        match="modality must be one of 'text', 'image', 'text_image'; got 'bogus'",
    ):
        check(["a"], modality="bogus")


@pytest.mark.parametrize("inputs", [[RED], ["a", ("b", RED)]])
def test_an_image_is_never_a_query(inputs):
    with pytest.raises(
        InputError,
        match='^input_type="query" is not supported with images; the VLM model processes images '
        'as passages only. Use input_type="passage"',
    ) as caught:
        check(inputs, "query")
    assert caught.value.rows == (len(inputs) - 1,)


@pytest.mark.parametrize("inputs", [[RED], ["a", ("b", RED)]])
def test_a_model_without_images_says_so(inputs):
    with pytest.raises(ConfigurationError, match="a model embeds text; row"):
        check(inputs, modalities=("text",))
    with pytest.raises(ConfigurationError, match="a model embeds text; got modality 'image'"):
        check(inputs, modality="image", modalities=("text",))
    with pytest.raises(InputError, match="every input must be a string; row 0 holds int"):
        check([3], modalities=("text",))


def test_the_fake_sees_images_if_its_card_does():
    fake = FakeEmbedder(dataclasses.replace(FAKE_CARD, modalities=EVERYTHING))
    inputs = [RED, BLUE, ("red", RED), ("red", BLUE), "red", RED]
    batch = fake.embed(inputs, input_type="passage")
    alike = batch.vectors @ batch.vectors.T > 0.999
    assert np.array_equal(np.argwhere(alike & ~np.eye(6, dtype=bool)), [[0, 5], [5, 0]])
    assert batch.token_counts.tolist() == [2, 2, 3, 3, 2, 2]
    assert fake.calls == [("passage", tuple(inputs))]
    long = fake.embed([("a " * 600, RED)], input_type="passage", truncate="END")
    assert long.truncated == (0,)
    with pytest.raises(ConfigurationError, match="nimbed/fake embeds text; row 0 is image"):
        FakeEmbedder().embed([RED], input_type="passage")
