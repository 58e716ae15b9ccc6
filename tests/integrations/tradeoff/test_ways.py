from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import nimbed
from nimbed.errors import ConfigurationError
from nimbed.fake import FAKE_CARD
from nimbed.search import nearest
from nimbed_tradeoff import derive, every_way

FAKE = nimbed.FakeEmbedder()
TEXTS = [f"text {n}" for n in range(40)]


@pytest.mark.parametrize("dimensions", [None, 32, 16])
@pytest.mark.parametrize("kind", ["float", "int8", "uint8", "binary", "ubinary"])
def test_derived_vectors_are_those_that_embed_gives(kind, dimensions):
    floats = FAKE.embed(TEXTS, input_type="passage")
    options = {"embedding_type": kind, "dimensions": dimensions}
    wanted = FAKE.embed(TEXTS, input_type="passage", **options)
    made = derive(floats, FAKE.spec(**options))
    assert (made.spec, made.input_type) == (wanted.spec, wanted.input_type)
    if kind == "float":  # normalised a second time
        np.testing.assert_allclose(made.vectors, wanted.vectors, atol=1e-7)
    else:
        np.testing.assert_array_equal(made.vectors, wanted.vectors)
    np.testing.assert_array_equal(made.token_counts, wanted.token_counts)


@pytest.mark.parametrize("kind", ["int8", "uint8", "ubinary"])
def test_the_real_models_vectors_are_derived_as_it_embeds_them(minilm, kind):
    floats = minilm.embed(TEXTS, input_type="passage")
    wanted = minilm.embed(TEXTS, input_type="passage", embedding_type=kind)
    made = derive(floats, minilm.spec(embedding_type=kind))
    # The floats are unit vectors by then, and normalising again may move the last bit of one.
    assert np.mean(made.vectors != wanted.vectors) < 1e-3
    assert made.spec == wanted.spec


def test_every_type_at_every_size_is_tried_with_and_without_rescoring():
    ways = [(w.spec.embedding_type, w.spec.dimensions, w.oversampling) for w in every_way(FAKE)]
    assert ways[0] == ("float", 64, 0)
    assert set(ways) == {
        (kind, size, times)
        for kind in ("float", "int8", "uint8", "ubinary")
        for size in (64, 32, 16)
        for times in (0, 4, 8)
        if (kind, size) != ("float", 64) or times == 0  # float cannot rescore itself
    }
    assert len(ways) == len(set(ways))


def test_chosen_sizes_are_compared_with_the_full_float():
    sizes = [(way.spec.embedding_type, way.spec.dimensions) for way in every_way(FAKE, [16, 16])]
    assert sizes[0] == ("float", 64)
    assert {size for _, size in sizes[1:]} == {16}


def test_a_size_that_the_model_does_not_offer_is_refused():
    with pytest.raises(ConfigurationError, match="no 17-dimension form; it offers 16, 32, 64"):
        every_way(FAKE, [16, 17])


def test_a_size_that_does_not_fill_bytes_has_no_packed_way():
    odd = nimbed.FakeEmbedder(dataclasses.replace(FAKE_CARD, matryoshka=(20, 64)))
    assert {way.spec.embedding_type for way in every_way(odd, [20])[1:]} == {
        "float",
        "int8",
        "uint8",
    }


def test_binary_finds_what_ubinary_finds():
    found = []
    for kind in ("binary", "ubinary"):
        queries = FAKE.embed(TEXTS[:5], input_type="query", embedding_type=kind)
        found.append(
            nearest(queries, FAKE.embed(TEXTS, input_type="passage", embedding_type=kind), 10)
        )
    np.testing.assert_array_equal(found[0].rows, found[1].rows)
    np.testing.assert_array_equal(found[0].distances, found[1].distances)


def test_a_label_says_what_is_stored_and_what_is_rescored():
    labels = [way.label for way in every_way(FAKE, [32])]
    assert labels[-2:] == [
        "ubinary at 32 dimensions, the best 40 rescored by float",
        "ubinary at 32 dimensions, the best 80 rescored by float",
    ]
    assert labels[0] == "float at 64 dimensions"
