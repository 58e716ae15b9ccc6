"""One value carries a call's options, and refuses those that no model knows."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import nimbed
from nimbed.errors import ConfigurationError
from nimbed.options import EmbedOptions


def test_they_are_the_keyword_arguments_of_embed():
    parameters = inspect.signature(nimbed.FakeEmbedder.embed).parameters
    options = {field.name: field.default for field in dataclasses.fields(EmbedOptions)}
    assert set(options) == set(parameters) - {"self", "inputs", "progress"}
    for name, default in options.items():
        if name != "input_type":
            assert parameters[name].default == default


def test_they_are_passed_on_as_they_are():
    fake = nimbed.FakeEmbedder()
    options = EmbedOptions(input_type="query", embedding_type="ubinary", truncate="END")
    batch = fake.embed(["a"], **options.keywords())
    assert batch.spec == fake.spec(**options.of_spec)
    assert batch.input_type == "query"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_type", "document"),
        ("embedding_type", "float16"),
        ("truncate", "LEFT"),
        ("int8_scale", "odd"),
        ("modality", "audio"),
    ],
)
def test_a_value_that_does_not_exist_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} must be one of"):
        EmbedOptions(**{"input_type": "query", name: value})


@pytest.mark.parametrize("value", [384.0, True, "384", [384]])
def test_dimensions_are_a_whole_number(value):
    with pytest.raises(ConfigurationError, match="dimensions must be an integer"):
        EmbedOptions(input_type="query", dimensions=value)


def test_equal_options_are_one_key():
    made = EmbedOptions(input_type="query", dimensions=16)
    assert {made: 1}[EmbedOptions(input_type="query", dimensions=16)] == 1
    assert made != EmbedOptions(input_type="passage", dimensions=16)
