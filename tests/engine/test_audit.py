"""An audit names what was planted in stored vectors, and finds nothing in sound ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nimbed
from nimbed import FakeEmbedder
from nimbed.audit import Audit, StoredSample, audit, field_variants
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.fake import FAKE_CARD
from nimbed.spec import VectorSpec

CARD = dataclasses.replace(FAKE_CARD, dimensions=128, matryoshka=(64, 128))
TEXTS = [" ".join(f"word{(7 * n + k) % 211}" for k in range(90)) + f" {n}" for n in range(40)]
TITLES = [f"Title {n}" for n in range(40)]
TYPES = ("float", "int8", "uint8", "ubinary", "binary")
OTHER = dataclasses.replace(CARD, id="other/model", passage_prompt="doc: ")
Embed = Callable[..., np.ndarray]


def numbers(spec: VectorSpec, texts: list[str] = TEXTS, **how: Any) -> np.ndarray:
    """What a database would hold, made without the audit's code."""
    embedder = FakeEmbedder(how.pop("card", CARD))
    role = how.pop("role", "passage")
    scale = how.pop("scale", spec.int8_scale)
    batch = embedder.embed(
        texts, input_type=role, embedding_type=spec.embedding_type,
        dimensions=spec.dimensions, int8_scale=scale, truncate="END",
    )  # fmt: skip
    return batch.signs() if spec.packed else batch.vectors.astype(np.float32)


def examined(vectors: Any, spec: VectorSpec, card: Any = CARD, **more: Any) -> Audit:
    others = more.pop("others", None)
    ids = [f"p{n}" for n in range(len(TEXTS))]
    sample = StoredSample(spec=spec, ids=ids, texts=TEXTS, vectors=vectors, **more)
    return audit(sample, FakeEmbedder(card), others=others)


def spec_of(kind: Any) -> VectorSpec:
    return CARD.spec(embedding_type=kind)


def half(planted: np.ndarray, sound: np.ndarray) -> np.ndarray:
    return np.concatenate([sound[:20], planted[20:]])


def noisy(vectors: np.ndarray) -> np.ndarray:
    return np.random.default_rng(3).permuted(vectors, axis=1)


def in_bytes(signs: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return change(signs.reshape(len(signs), -1, 8).copy()).reshape(signs.shape)


def first_flipped(signs: np.ndarray) -> np.ndarray:
    signs[:, :, 0] *= -1
    return signs


# The finding's name, a part of its words, and how the fault is planted.
ANY: list[tuple[str, str, Callable[[VectorSpec], np.ndarray]]] = [
    ("role", "as queries", lambda spec: numbers(spec, role="query")),
    ("prompt", "without the prompt 'passage: '", lambda spec: numbers(
        spec, card=dataclasses.replace(CARD, passage_prompt=""))),
    ("length", "cut at 64 tokens", lambda spec: numbers(
        spec, card=dataclasses.replace(CARD, max_tokens=64))),
    ("text", "field title and a space in front", lambda spec: numbers(
        spec, [f"{title} {text}" for title, text in zip(TITLES, TEXTS, strict=True)])),
    ("text", "the field title alone", lambda spec: numbers(spec, TITLES)),
    ("text", "collection's name in front", lambda spec: numbers(
        spec, [f"Docs {text}" for text in TEXTS])),
    ("model", "other/model as passages", lambda spec: numbers(spec, card=OTHER)),
    ("order", "of another row", lambda spec: np.roll(numbers(spec), 1, axis=0)),
    ("origin", "nothing that was tried", lambda spec: noisy(numbers(spec))),
    ("numbers", "nothing but zeros", lambda spec: 0 * numbers(spec)),
]  # fmt: skip
OF_A_TYPE: list[tuple[str, str, str, Callable[[VectorSpec], np.ndarray]]] = [
    ("float", "norm", "of length 12", lambda spec: 12 * numbers(spec)),
    ("float", "quantisation", "one bit", lambda spec: np.sign(numbers(spec))),
    ("float", "quantisation", "levels", lambda spec: np.rint(numbers(spec) * 300) / 300),
    ("int8", "quantisation", "uint8 codes", lambda spec: numbers(spec) + 128),
    ("int8", "quantisation", "scale 'nim'", lambda spec: numbers(spec, scale="nim")),
    ("int8", "quantisation", "one bit", lambda spec: np.sign(numbers(spec_of("float")))),
    ("int8", "quantisation", "not whole", lambda spec: numbers(spec) / 100),
    ("uint8", "quantisation", "one bit", lambda spec: np.sign(numbers(spec_of("float")))),
    ("uint8", "quantisation", "int8 codes", lambda spec: numbers(spec) - 128),
    ("ubinary", "quantisation", "inverted", lambda spec: -numbers(spec)),
    ("ubinary", "quantisation", "reverse order", lambda spec: in_bytes(
        numbers(spec), lambda signs: signs[:, :, ::-1])),
    ("ubinary", "quantisation", "first bit flipped", lambda spec: in_bytes(
        numbers(spec), first_flipped)),
]  # fmt: skip


def variants() -> dict[str, list[str]]:
    fields = [{"title": title, "page": 3} for title in TITLES]
    return field_variants(TEXTS, fields) | {
        "the text with the collection's name in front": [f"Docs {text}" for text in TEXTS]
    }


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("name", "words", "plant"), ANY, ids=[each[1] for each in ANY])
def test_a_planted_fault_is_named(kind: str, name: str, words: str, plant: Any) -> None:
    spec = spec_of(kind)
    others = {"other/model": functools.partial(FakeEmbedder, OTHER)}
    for vectors, sound in ((plant(spec), 0), (half(plant(spec), numbers(spec)), 20)):
        found = examined(vectors, spec, variants=variants(), others=others)
        failed = [finding for finding in found.findings if finding.verdict == "fail"]
        assert [finding.name for finding in failed] == [name], found.findings
        assert words in failed[0].detail
        assert (found.rows, found.sound, found.ok) == (40, sound, False)
        assert failed[0].detail.startswith("all" if not sound else "20 of 40")


@pytest.mark.parametrize(
    ("kind", "name", "words", "plant"), OF_A_TYPE, ids=[f"{a} {c}" for a, _, c, _ in OF_A_TYPE]
)
def test_a_fault_of_a_type_is_named(kind: str, name: str, words: str, plant: Any) -> None:
    found = examined(plant(spec_of(kind)), spec_of(kind), variants=variants())
    failed = [finding for finding in found.findings if finding.verdict == "fail"]
    assert [finding.name for finding in failed] == [name], found.findings
    assert words in failed[0].detail


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(TYPES),
    dimensions=st.sampled_from([64, 128]),
    asymmetric=st.booleans(),
    rounding=st.sampled_from([0.0, 1e-4]),
)
def test_nothing_is_found_in_sound_vectors(
    kind: Any, dimensions: int, asymmetric: bool, rounding: float
) -> None:
    plain = dataclasses.replace(CARD, asymmetric=False, query_prompt="", passage_prompt="")
    card = CARD if asymmetric else plain
    spec = card.spec(embedding_type=kind, dimensions=dimensions)
    vectors = numbers(spec, card=card)
    if kind == "float":  # another device, or halfvec
        noise = np.random.default_rng(1).standard_normal(vectors.shape)
        vectors = (vectors + rounding * noise).astype(np.float32)
    found = examined(vectors, spec, card=card, variants=variants())
    assert found.ok, found.findings
    assert (found.rows, found.sound) == (40, 40)
    assert found.difference < 1e-2


def test_several_faults_at_once_are_all_named() -> None:
    spec = spec_of("float")
    vectors = numbers(spec)
    vectors[3] = numbers(spec, role="query")[3]
    vectors[5] = numbers(spec, card=dataclasses.replace(CARD, max_tokens=64))[5]
    vectors[20:] = numbers(spec, TITLES)[20:]
    found = examined(vectors, spec, variants=variants())
    said = {finding.name: finding.detail for finding in found.findings}
    assert said.keys() == {"vectors", "role", "length", "text"}
    assert said["role"].endswith("such as p3")
    assert said["length"].endswith("such as p5")
    assert said["text"].startswith("20 of 40: made of the field title alone")
    assert found.sound == 18


def test_rows_without_a_vector_or_of_another_width_are_counted_and_dated() -> None:
    spec = spec_of("float")
    vectors: list[Any] = list(numbers(spec))
    vectors[30:] = [None] * 10
    vectors[0] = vectors[0][:64]
    found = examined(vectors, spec, times=[f"2026-01-{n + 1:02}" for n in range(40)])
    said = {finding.name: finding.detail for finding in found.findings}
    assert said["presence"] == (
        "10 of 40: without a vector: never found; such as p30, p31, p32; written since "
        "2026-01-31, and every row since"
    )
    assert said["dimensions"].startswith(
        "1 of 40: 64 dimensions, the contract says 128; such as p0"
    )
    assert found.sound == 29


def test_sound_vectors_cost_one_embedding_of_the_sample() -> None:
    spec = spec_of("float")
    embedder = FakeEmbedder(CARD)
    sample = StoredSample(spec=spec, ids=TEXTS, texts=TEXTS, vectors=numbers(spec))
    assert audit(sample, embedder).ok
    assert [(role, len(texts)) for role, texts in embedder.calls] == [("passage", 40)]


def test_what_cannot_be_audited_is_refused() -> None:
    spec = VectorSpec.of(model="other", dimensions=100)
    with pytest.raises(SpaceMismatchError, match="other, 100 dimensions; nimbed/fake cannot"):
        examined(np.ones((40, 100)), spec)
    with pytest.raises(ConfigurationError, match="a text and a vector"):
        StoredSample(spec=spec, ids=["a"], texts=[], vectors=[])


def test_no_row_is_no_fault() -> None:
    sample = StoredSample(spec=spec_of("int8"), ids=[], texts=[], vectors=[])
    assert audit(sample, FakeEmbedder(CARD)) == Audit(rows=0, sound=0, difference=0.0, findings=())


def test_a_real_model_is_recognised_with_its_cut_and_its_prompt() -> None:
    embedder = nimbed.load(dtype="float32")
    texts = [f"Passage {n} tells of " + "rivers, hills and towns " * (60 if n % 2 else 2) + str(n)
             for n in range(8)]  # fmt: skip
    spec = embedder.spec()
    cut = dataclasses.replace(embedder.card, max_tokens=64)
    vectors = embedder.with_card(cut).embed(texts, input_type="passage", truncate="END").vectors
    sample = StoredSample(spec=spec, ids=range(8), texts=texts, vectors=vectors)
    (sound, failed) = audit(sample, embedder).findings
    assert sound.detail.startswith(f"4 of 8: {spec.model} as passages")
    assert (failed.name, failed.detail[:24]) == ("length", "4 of 8: cut at 64 tokens")
    with pytest.raises(ConfigurationError, match="with_card changes prompts"):
        embedder.with_card(dataclasses.replace(cut, max_tokens=512))
