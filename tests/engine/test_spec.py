from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.spec import VectorSpec, int8_step, require_same_space


def of(**facts: object) -> VectorSpec:
    return VectorSpec.of(**{"model": "a/b", "dimensions": 64, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "metric", "dtype", "width", "size"),
    [
        ("float", "cosine", "float32", 64, 256),
        ("int8", "cosine", "int8", 64, 64),
        ("uint8", "euclidean", "uint8", 64, 64),
        ("binary", "hamming", "int8", 8, 8),
        ("ubinary", "hamming", "uint8", 8, 8),
    ],
)
def test_each_type_has_its_metric_and_its_width(kind, metric, dtype, width, size):
    spec = of(embedding_type=kind)
    assert (spec.metric, spec.dtype, spec.width, spec.bytes_per_vector) == (
        metric,
        dtype,
        width,
        size,
    )
    assert spec.packed == (metric == "hamming")
    assert np.dtype(spec.dtype).itemsize * spec.width == spec.bytes_per_vector


specs = st.builds(
    of,
    model=st.text(min_size=1),
    dimensions=st.integers(1, 512).map(lambda n: 8 * n),
    embedding_type=st.sampled_from(["float", "int8", "uint8", "binary", "ubinary"]),
    revision=st.none() | st.text(),
    query_prompt=st.text(),
    passage_prompt=st.text(),
)


@given(specs)
def test_json_keeps_a_spec_and_its_fingerprint(spec):
    again = VectorSpec.from_json(spec.to_json())
    assert again == spec
    assert again.fingerprint == spec.fingerprint
    assert json.loads(spec.to_json())["fingerprint"] == spec.fingerprint


@given(specs, specs)
def test_fingerprints_agree_exactly_when_the_facts_do(left, right):
    assert (left == right) == (left.fingerprint == right.fingerprint)


def test_a_fingerprint_is_the_same_in_another_process():
    spec = of(embedding_type="int8", query_prompt="query: ")
    code = (
        "from nimbed import VectorSpec; import sys;"
        "print(VectorSpec.from_json(sys.argv[1]).fingerprint)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, spec.to_json()], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == spec.fingerprint
    # Written down once: a change of this value makes every stored index unreadable.
    assert spec.fingerprint == "a19ed652e05fe0d0"


def test_the_two_int8_scales_are_those_of_their_sources():
    assert int8_step("nim", 2048) == 1 / 127
    assert int8_step("even", 2048) == pytest.approx(4 / (127 * 2048**0.5))
    assert of(embedding_type="int8").int8_scale == "even"
    assert of(embedding_type="uint8", int8_scale="nim").int8_step == 1 / 127


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"embedding_type": "int4"}, "embedding_type must be one of 'float', 'int8'"),
        ({"embedding_type": "binary", "dimensions": 12}, "multiple of 8; got 12 .use 8"),
        ({"dimensions": 0}, "at least 1"),
        ({"dimensions": True}, "must be an integer"),
        ({"dimensions": 8.0}, "must be an integer"),
        ({"int8_scale": "even"}, "applies to int8 and uint8"),
        ({"embedding_type": "int8", "int8_scale": "odd"}, "int8_scale must be one of"),
    ],
)
def test_a_contract_that_cannot_be_kept_is_refused(facts, message):
    with pytest.raises(ConfigurationError, match=message):
        of(**facts)


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "cosine"},
        {"width": 64},
        {"dtype": "float32"},
        {"bit_order": None},
        {"dimensions": 128},
        {"model": "c/d"},
        {"int8_scale": "nim"},
        {"colour": "red"},
        {"fingerprint": "0" * 16},
    ],
)
def test_an_altered_spec_is_not_read_back(change):
    facts = {**of(embedding_type="ubinary").to_dict(), **change}
    with pytest.raises(ConfigurationError):
        VectorSpec.from_dict(facts)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", '{"model": "a"}'])
def test_what_is_not_a_spec_is_refused(text):
    with pytest.raises(ConfigurationError, match="not a vector spec"):
        VectorSpec.from_json(text)


def test_two_spaces_may_not_meet_and_the_message_names_the_difference():
    with pytest.raises(SpaceMismatchError, match="compare.*dimensions 64 and 32"):
        require_same_space(of(), of(dimensions=32), doing="compare")
    require_same_space(of(), of(), doing="compare")


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_a_model_may_rank_by_the_length_of_its_vectors(metric):
    spec = of(metric=metric)
    assert (spec.metric, spec.normalized, spec.dtype) == (metric, False, "float32")
    assert VectorSpec.from_json(spec.to_json()) == spec
    assert spec.fingerprint != of().fingerprint
    assert of(metric="cosine").fingerprint == of().fingerprint
    for kind in ("int8", "uint8", "binary", "ubinary"):
        with pytest.raises(ConfigurationError, match=f"ranks by {metric}.*{kind} does not keep"):
            of(metric=metric, embedding_type=kind)
    for change in ({"normalized": True}, {"metric": "cosine"}, {"metric": "hamming"}):
        with pytest.raises(ConfigurationError):
            VectorSpec.from_dict({**spec.to_dict(), **change, "fingerprint": None})
