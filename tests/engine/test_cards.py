from __future__ import annotations

import dataclasses
import re

import pytest

from nimbed import cards
from nimbed.errors import ConfigurationError, UnknownModelError

# ids, native dimensions and longest inputs as NVIDIA's support matrices print them.
MATRIX = {
    "nvidia/llama-nemotron-embed-1b-v2": (2048, 8192),
    "nvidia/llama-nemotron-embed-300m-v2": (2048, 8192),
    "nvidia/nv-embedqa-e5-v5": (1024, 512),
    "nvidia/nv-embedqa-mistral-7b-v2": (4096, 512),
    "snowflake/arctic-embed-l": (1024, 512),
    "baai/bge-m3": (1024, 8192),
    "baai/bge-large-zh-v1.5": (1024, 512),
    "nvidia/NV-Embed-v1": (4096, 32768),
    "nvidia/nemotron-3-embed-1b": (2048, 32768),
}


@pytest.mark.parametrize("name", MATRIX)
def test_the_catalogue_agrees_with_the_support_matrix(name):
    card = cards.find(name)
    assert (card.dimensions, card.max_tokens) == MATRIX[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nvidia/llama-3.2-nv-embedqa-1b-v2", "nvidia/llama-nemotron-embed-1b-v2"),
        ("nvidia/llama-3.2-nemoretriever-300m-embed-v2", "nvidia/llama-nemotron-embed-300m-v2"),
        (
            "nvidia/llama-3.2-nemoretriever-1b-vlm-embed-v1",
            "nvidia/llama-nemotron-embed-vl-1b-v2",
        ),
        ("BAAI/bge-m3", "baai/bge-m3"),
        ("nvidia/nv-embed-v1", "nvidia/NV-Embed-v1"),
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_old_names_and_other_spellings_lead_to_one_card(old, new):
    assert cards.find(old) is cards.find(new)
    assert cards.find(old).id == new


def test_no_name_means_two_models():
    names = [name.lower() for card in cards.catalogue() for name in {card.id, *card.aliases}]
    assert len(names) == len(set(names))


def test_prompts_belong_to_roles():
    e5 = cards.find("intfloat/e5-large-v2")
    assert (e5.prompt("query"), e5.prompt("passage")) == ("query: ", "passage: ")
    arctic = cards.find("snowflake/arctic-embed-l")
    assert arctic.prompt("passage") == ""
    assert arctic.prompt("query").endswith("relevant passages: ")
    with pytest.raises(ConfigurationError, match="input_type must be one of 'query', 'passage'"):
        e5.prompt("document")  # type: ignore[arg-type]


@pytest.mark.parametrize("card", cards.catalogue(), ids=lambda card: card.id)
def test_every_card_gives_a_spec_for_every_type_and_size(card):
    assert card.dimensions in card.sizes
    assert not re.search(r"\?|TODO", card.note)
    if "dense" not in card.kinds:
        with pytest.raises(ConfigurationError, match=r"gives \w+ vectors, not dense ones; call"):
            card.spec()
        return
    for size in card.sizes:
        kinds = ("float", "int8", "uint8", "binary", "ubinary")
        for kind in kinds if card.metric == "cosine" else kinds[:1]:
            spec = card.spec(embedding_type=kind, dimensions=size)
            assert (spec.model, spec.dimensions) == (card.id, size)
    assert card.asymmetric == (card.query_prompt != card.passage_prompt)


def test_a_size_the_card_does_not_offer_is_refused_with_those_it_does():
    with pytest.raises(ConfigurationError, match="no 512-dimension form; it offers 1024"):
        cards.find("baai/bge-m3").spec(dimensions=512)
    with pytest.raises(ConfigurationError, match="it offers 384, 512, 768, 1024, 2048"):
        cards.find("nvidia/llama-nemotron-embed-1b-v2").spec(dimensions=0)


def test_the_vl_card_offers_nims_eight_sizes():
    card = cards.find("nvidia/llama-nemotron-embed-vl-1b-v2")
    assert card.sizes == (128, 256, 384, 512, 768, 1024, 1536, 2048)
    assert card.modalities == ("text", "image", "text_image")


def test_an_unknown_name_is_met_with_close_ones():
    with pytest.raises(UnknownModelError, match="close names: .*nvidia/nv-embedqa-e5-v5"):
        cards.find("nvidia/nv-embedqa-e5")
    assert cards.known("nobody/nothing") is None


def test_changed_prompts_change_the_space():
    card = cards.find("nvidia/nv-embedqa-mistral-7b-v2")
    other = dataclasses.replace(card, query_prompt="Instruct: search\nQuery: ")
    assert card.spec().fingerprint != other.spec().fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "median"},
        {"pooling": ("cls", "median")},
        {"dimensions": 0},
        {"matryoshka": (4096,)},
        {"asymmetric": False},
        {"kinds": ()},
        {"kinds": ("dense", "spares")},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(change):
    with pytest.raises(ConfigurationError):
        dataclasses.replace(cards.find("nvidia/llama-nemotron-embed-1b-v2"), **change)


def test_a_retired_models_successor_is_in_the_catalogue():
    retired = [card for card in cards.catalogue() if card.successor]
    assert {card.id for card in retired} >= {"nvidia/nv-embedqa-e5-v5"}
    for card in retired:
        assert cards.find(card.successor).id == card.successor != card.id


def test_a_card_has_prompts_for_other_tasks():
    card = cards.find("nomic-embed-text")
    sorting = card.with_prompt("clustering")
    assert (sorting.query_prompt, sorting.passage_prompt) == ("clustering: ", "clustering: ")
    assert sorting.spec().fingerprint != card.spec().fingerprint
    assert card.with_prompt("").passage_prompt == ""
    with pytest.raises(ConfigurationError, match="no prompt named 'sts'; .*'clustering'"):
        card.with_prompt("sts")


def test_models_that_rank_by_dot_have_floats_alone():
    card = cards.find("multi-qa-mpnet-base-dot-v1")
    assert (card.spec().metric, card.spec().normalized) == ("dot", False)
    with pytest.raises(ConfigurationError, match="ranks by dot"):
        card.spec(embedding_type="int8")
