"""The bodies that each dialect sends, word for word."""

from __future__ import annotations

import dataclasses
import json

import pytest

from nimbed import cards
from nimbed.errors import ConfigurationError
from nimbed.options import EmbedOptions
from nimbed.remote.dialects import DIALECTS, Capabilities, named
from nimbed.remote.discovery import find_card
from nimbed.remote.request import compose

E5 = "nvidia/nv-embedqa-e5-v5"
LLAMA = "nvidia/llama-3.2-nv-embedqa-1b-v2"
GOLDEN = [
    (
        "nim",
        E5,
        EmbedOptions(input_type="passage"),
        {
            "input": ["a", "é"],
            "model": E5,
            "input_type": "passage",
            "encoding_format": "base64",
            "truncate": "NONE",
        },
    ),
    (
        "nim",
        LLAMA,
        EmbedOptions(input_type="query", truncate="START", dimensions=512),
        {
            "input": ["a", "é"],
            "model": LLAMA,
            "input_type": "query",
            "encoding_format": "base64",
            "dimensions": 512,
            "truncate": "START",
        },
    ),
    (
        "nim",
        LLAMA,
        EmbedOptions(input_type="passage", dimensions=512, embedding_type="ubinary"),
        {
            "input": ["a", "é"],
            "model": LLAMA,
            "input_type": "passage",
            "encoding_format": "float",
            "embedding_type": "ubinary",
            "truncate": "NONE",
        },
    ),
    (
        "nim",
        "nvidia/llama-nemotron-embed-vl-1b-v2",
        EmbedOptions(input_type="passage", modality="text"),
        {
            "input": ["a", "é"],
            "model": "nvidia/llama-nemotron-embed-vl-1b-v2",
            "input_type": "passage",
            "encoding_format": "base64",
            "modality": "text",
            "truncate": "NONE",
        },
    ),
    (
        "nim-hosted",
        LLAMA,
        EmbedOptions(
            input_type="passage", truncate="END", embedding_type="ubinary", modality="text"
        ),
        {
            "input": ["a", "é"],
            "model": LLAMA,
            "input_type": "passage",
            "encoding_format": "base64",
            "truncate": "END",
        },
    ),
    (
        "nim-suffix",
        E5,
        EmbedOptions(input_type="query", truncate="END"),
        {"input": ["a", "é"], "model": f"{E5}-query", "encoding_format": "base64"},
    ),
    (
        "openai",
        "text-embedding-3-small",
        EmbedOptions(input_type="query", truncate="END", embedding_type="ubinary", modality="text"),
        {"input": ["a", "é"], "model": "text-embedding-3-small"},
    ),
    (
        "openai",
        E5,
        EmbedOptions(input_type="query"),
        {"input": ["query: a", "query: é"], "model": E5},
    ),
    (
        "vllm",
        "intfloat/e5-base-v2",
        EmbedOptions(input_type="passage", truncate="END"),
        {
            "input": ["passage: a", "passage: é"],
            "model": "intfloat/e5-base-v2",
            "encoding_format": "base64",
            "truncate_prompt_tokens": -1,
            "truncation_side": "right",
        },
    ),
    (
        "tei",
        "BAAI/bge-m3",
        EmbedOptions(input_type="query"),
        {"input": ["a", "é"], "model": "BAAI/bge-m3", "encoding_format": "base64"},
    ),
]


def template_of(dialect, model, options, known=None, encoding="base64"):
    return compose(
        options,
        dialect=named(dialect),
        known=known or Capabilities(),
        model=model,
        card=find_card(model),
        encoding=encoding,
        modality=options.modality,
    )


@pytest.mark.parametrize(("dialect", "model", "options", "golden"), GOLDEN)
def test_the_body_equals_the_golden_one(dialect, model, options, golden):
    encoding = None if dialect == "openai" else "base64"
    body = template_of(dialect, model, options, encoding=encoding).body(["a", "é"])
    assert json.loads(body) == golden
    assert "é".encode() in body


def test_every_dialect_has_a_golden_body():
    assert {row[0] for row in GOLDEN} == set(DIALECTS)


@pytest.mark.parametrize("field", ["truncate", "encoding_format", "dimensions", "modality"])
def test_a_refused_field_is_left_out(field):
    model = "nvidia/llama-nemotron-embed-vl-1b-v2"
    options = EmbedOptions(input_type="query", dimensions=512, modality="text")
    assert field in template_of("nim", model, options).fields
    known = Capabilities(refused=frozenset({field}))
    assert field not in template_of("nim", model, options, known).fields


def test_a_refused_type_brings_the_floats_back():
    options = EmbedOptions(input_type="query", embedding_type="ubinary", dimensions=512)
    known = Capabilities(refused=frozenset({"embedding_type"}))
    template = template_of("nim", LLAMA, options, known)
    assert not template.packed
    assert template.fields["encoding_format"] == "base64"
    assert template.fields["dimensions"] == 512


@pytest.mark.parametrize("dialect", ["openai", "vllm", "tei"])
def test_an_asymmetric_model_gets_its_prompt_where_no_field_carries_the_role(dialect):
    for role in ("query", "passage"):
        template = template_of(dialect, E5, EmbedOptions(input_type=role))
        assert template.prefix == cards.find(E5).prompt(role) != ""


def test_an_asymmetric_model_without_prompts_is_refused_where_no_field_carries_the_role():
    card = dataclasses.replace(cards.find(E5), query_prompt="", passage_prompt="")
    with pytest.raises(ConfigurationError, match="no field for the role"):
        compose(
            EmbedOptions(input_type="query"),
            dialect=named("vllm"),
            known=Capabilities(),
            model=E5,
            card=card,
            encoding=None,
        )


def test_a_model_with_adapters_is_refused_where_no_field_carries_the_role():
    jina = "jinaai/jina-embeddings-v3"
    assert template_of("nim", jina, EmbedOptions(input_type="query")).prefix == ""
    for dialect in ("openai", "vllm", "tei"):
        with pytest.raises(ConfigurationError, match="an adapter for queries and one for passages"):
            template_of(dialect, jina, EmbedOptions(input_type="query"))


def test_an_unknown_dialect_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="'nim-hosted'"):
        named("azure")
