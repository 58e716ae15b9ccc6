"""Compressed multi-vectors: pooled, quantised, and encoded as one vector by MUVERA."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

import nimbed
from nimbed import MultiVectorBatch, MultiVectorSpec, Muvera, VectorSpec
from nimbed.errors import ConfigurationError, MissingExtraError, SpaceMismatchError
from nimbed.search import distances, nearest, rescore
from nimbed.spec import InputType, TokenType

SPEC = MultiVectorSpec.of(model="m", dimensions=32)


def made(rows: list[Any], role: InputType = "passage") -> MultiVectorBatch:
    counts = np.array([len(row) for row in rows], np.int32)
    return MultiVectorBatch.from_floats(rows, spec=SPEC, input_type=role, token_counts=counts)


def drawn(rng: np.random.Generator, lengths: list[int]) -> list[Any]:
    """Texts about a theme or two: their tokens are near to some centres."""
    centres = rng.standard_normal((12, 32))
    return [
        centres[rng.integers(0, 12, 2)[rng.integers(0, 2, n)]] + rng.standard_normal((n, 32))
        for n in lengths
    ]


def corpus(rng: np.random.Generator, texts: int, asked: int) -> tuple[Any, Any]:
    """Passages, and queries whose tokens are those of a passage, disturbed."""
    passages = drawn(rng, rng.integers(20, 60, texts).tolist())
    queries = []
    for source in rng.choice(texts, asked, replace=False):
        tokens = passages[source][rng.choice(len(passages[source]), 8)]
        queries.append(tokens + 0.7 * rng.standard_normal(tokens.shape))
    return made(queries, "query"), made(passages)


def shared(left: Any, right: Any) -> float:
    """The share of rows that two rankings have in common."""
    each = [len(set(a) & set(b)) / len(a) for a, b in zip(left, right, strict=True)]
    return float(np.mean(each))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_pooling_is_that_of_sentence_transformers(factor: int) -> None:
    rng = np.random.default_rng(1)
    batch = made(drawn(rng, [1, 2, 3, 4, 5, 9, 40, 128]))
    oracle = HierarchicalTokenPooling(factor)
    expected = oracle.pool([torch.from_numpy(row) for row in batch.rows()])
    pooled = batch.compressed("float", pool_factor=factor)
    assert pooled.spec.pool_factor == factor
    for ours, theirs in zip(pooled.rows(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
    queries = made(drawn(rng, [40]), "query")
    assert len(queries.compressed("float", pool_factor=factor).vectors) == 40


def test_pooled_tokens_that_are_the_same_become_one() -> None:
    rng = np.random.default_rng(2)
    distinct = rng.standard_normal((3, 32))
    pooled = made([distinct[[0, 1, 1, 2, 2, 2, 1]]]).compressed("float", pool_factor=3)
    found = {tuple(np.round(row, 5)) for row in pooled.vectors}
    assert found == {tuple(np.round(row, 5)) for row in made([distinct]).vectors}


def test_compressing_is_embedding_compressed_and_happens_once() -> None:
    fake, texts = nimbed.FakeEmbedder(), ["a b c d e f g h", "i j k", "l"]
    floats = fake.embed_multi(texts, input_type="passage")
    for kind, factor in (("int8", 1), ("ubinary", 2), ("half", 3)):
        small = fake.embed_multi(texts, input_type="passage", token_type=kind, pool_factor=factor)
        again = floats.compressed(kind, pool_factor=factor)
        assert again.spec == small.spec
        np.testing.assert_array_equal(again.vectors, small.vectors)
        np.testing.assert_array_equal(again.offsets, small.offsets)
        with pytest.raises(ConfigurationError, match=f"are {kind} with pool_factor {factor}"):
            small.compressed("float")


def test_pooling_without_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    batch = made(drawn(np.random.default_rng(0), [9]))
    with pytest.raises(MissingExtraError, match="pooling"):
        batch.compressed("float", pool_factor=2)


@pytest.mark.parametrize("kind", ["half", "int8", "ubinary"])
def test_float_queries_are_compared_with_compressed_passages(kind: TokenType) -> None:
    queries, floats = corpus(np.random.default_rng(3), 300, 40)
    passages = floats.compressed(kind, pool_factor=2)
    stored = [np.array(row) for row in passages.lists()]
    expected = [[(q @ p.T).max(axis=1).sum() for p in stored] for q in queries.rows()]
    np.testing.assert_allclose(-distances(queries, passages), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(SpaceMismatchError, match="token_type"):
        distances(passages, floats)  # in one role
    if kind != "ubinary":
        return
    exact = nearest(queries, floats, 10).rows

    def recall(queries: MultiVectorBatch, passages: MultiVectorBatch) -> float:
        found = nearest(queries, passages, 10).rows
        return shared(exact, found)

    bits = floats.compressed(kind)
    assert recall(queries, bits) > recall(queries.compressed(kind), bits) + 0.05
    # Signs of a query are compared with passages' signs alone.
    with pytest.raises(SpaceMismatchError, match="token_type"):
        distances(queries.compressed(kind), floats)
    distances(queries.compressed(kind), floats.compressed(kind, pool_factor=2))


def encoded(tokens: Any, muvera: Muvera, role: str) -> Any:
    """The encoding in plain loops, from the same random numbers."""
    random = np.random.RandomState(muvera.seed)
    width, cells = tokens.shape[1], 2**muvera.ksim
    out = []
    planes = random.standard_normal((muvera.repetitions, width, muvera.ksim))
    signs = np.eye(width)[None].repeat(muvera.repetitions, 0)
    if muvera.dprojections:
        shape = (muvera.repetitions, width, muvera.dprojections)
        signs = (2 * random.randint(0, 2, shape) - 1) / np.sqrt(muvera.dprojections)
    for repetition in range(muvera.repetitions):
        cell = []
        for token in tokens:
            bits = ["1" if token @ plane > 0 else "0" for plane in planes[repetition].T]
            cell.append("".join(bits))
        for number in range(cells):
            name = format(number, f"0{muvera.ksim}b")
            inside = [t for t, c in zip(tokens, cell, strict=True) if c == name]
            if role == "query":
                value = sum(inside, np.zeros(width))
            elif inside:
                value = sum(inside) / len(inside)
            else:
                apart = [sum(a != b for a, b in zip(name, c, strict=True)) for c in cell]
                value = tokens[apart.index(min(apart))]
            out.extend(value @ signs[repetition])
    full = np.array(out) / np.sqrt(muvera.repetitions)
    if muvera.dimensions is None:
        return full
    order, kept = random.permutation(len(full)), muvera.dimensions
    flips = 2 * random.randint(0, 2, len(full)) - 1
    sums = np.zeros(kept)
    for rank, place in enumerate(order):
        # The last sum that begins at this rank or before.
        into = max(i for i in range(kept) if i * len(full) // kept <= rank)
        sums[into] += flips[rank] * full[place]
    return sums


@pytest.mark.parametrize(
    "muvera",
    [
        Muvera(ksim=3, dprojections=8, repetitions=4),
        Muvera(ksim=2, dprojections=None, repetitions=3, seed=7),
        Muvera(ksim=3, dprojections=4, repetitions=2, dimensions=30, seed=1),
    ],
)
def test_muvera_is_what_the_paper_says(muvera: Muvera) -> None:
    rng = np.random.default_rng(4)
    rows = drawn(rng, [1, 3, 25])
    for role in ("query", "passage"):
        batch = made(rows, role)  # type: ignore[arg-type]
        encodings = muvera.encode(batch)
        expected = [encoded(np.float64(row), muvera, role) for row in batch.rows()]
        np.testing.assert_allclose(encodings.vectors, expected, atol=2e-6)
        assert encodings.spec == muvera.spec(SPEC)
        assert encodings.input_type == role
        alone = muvera.encode(batch.select([2]))
        np.testing.assert_array_equal(alone.vectors, encodings.vectors[2:])


def test_muvera_estimates_maxsim_better_with_more_repetitions() -> None:
    rng = np.random.default_rng(5)
    # Random unit vectors, of which a query shares some with each passage.
    passages = [rng.standard_normal((30, 32)) for _ in range(120)]
    shared = [int(n) for n in rng.integers(0, 9, 120)]
    query = rng.standard_normal((8, 32))
    for passage, n in zip(passages, shared, strict=True):
        passage[:n] = query[:n] + 0.3 * rng.standard_normal((n, 32))
    queries, stored = made([query], "query"), made(passages)
    exact = distances(queries, stored)[0]

    def correlation(**parameters: Any) -> float:
        muvera = Muvera(**parameters)
        estimates = distances(muvera.encode(queries), muvera.encode(stored))[0]
        return float(np.corrcoef(exact, estimates)[0, 1])

    few, many = (
        np.mean([correlation(repetitions=n, seed=seed) for seed in range(3)]) for n in (1, 20)
    )
    assert many > 0.9
    assert many > few + 0.1
    assert correlation(repetitions=20, dimensions=1024) > 0.8


def test_candidates_by_muvera_are_ordered_by_maxsim() -> None:
    queries, passages = corpus(np.random.default_rng(6), 400, 30)
    small = passages.compressed("int8", pool_factor=2)
    muvera = Muvera(ksim=4, dprojections=16, repetitions=20)
    with pytest.raises(ConfigurationError, match="at most 4000 dim.*use fewer dimensions$"):
        nimbed.stores.field(muvera.spec(SPEC), "pgvector")
    short = dataclasses.replace(muvera, dimensions=2000)
    field = nimbed.stores.field(short.spec(SPEC), "pgvector")
    assert field.options["operator_class"] == "vector_ip_ops"
    for asked, stored in ((None, passages), (small.spec, small)):
        by_dot = nearest(muvera.encode(queries, passages=asked), muvera.encode(stored), 60).rows
        exact = nearest(queries, stored, 10).rows
        assert shared(exact, rescore(queries, stored, by_dot, 10).rows) > 0.9
        assert shared(exact, by_dot[:, :10]) > 0.5


def test_every_parameter_of_muvera_changes_the_space() -> None:
    own = Muvera()
    changes: list[dict[str, Any]] = [
        {"ksim": 5}, {"dprojections": 8}, {"dprojections": None}, {"repetitions": 4}, {"seed": 3},
        {"dimensions": 256},
    ]  # fmt: skip
    specs = [dataclasses.replace(own, **change).spec(SPEC) for change in [{}, *changes]]
    specs += [own.spec(SPEC.stored_as("int8", pool_factor=1))]
    specs += [own.spec(SPEC.stored_as("float", pool_factor=2))]
    assert len({spec.fingerprint for spec in specs}) == len(specs)
    assert all(VectorSpec.from_json(spec.to_json()) == spec for spec in specs)
    plain = VectorSpec.of(model="m", dimensions=2560, metric="dot")
    assert "encoding" not in plain.facts()
    with pytest.raises(SpaceMismatchError, match="encoding 'muvera ksim=4 .*' and ''"):
        nimbed.spec.require_same_space(specs[0], plain, doing="compare")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ksim": 0}, "ksim must be at least 1"),
        ({"ksim": 17}, "ksim must be at most 16"),
        ({"repetitions": 1.5}, "repetitions must be an integer"),
        ({"dprojections": 33}, "more than the 32 dimensions of m's tokens"),
        ({"dimensions": 2561}, "the encoding has 2560"),
        ({"seed": -1}, "seed must lie between"),
    ],
)
def test_parameters_that_no_encoding_has_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Muvera(**wrong).spec(SPEC)


def test_encodings_are_of_one_role_and_of_comparable_vectors() -> None:
    queries, passages = corpus(np.random.default_rng(8), 4, 2)
    small, muvera = passages.compressed("ubinary"), Muvera()
    with pytest.raises(ConfigurationError, match="passages= is for queries"):
        muvera.encode(passages, passages=small.spec)
    with pytest.raises(SpaceMismatchError, match="token_type"):
        muvera.encode(queries.compressed("int8"), passages=small.spec)
    with pytest.raises(SpaceMismatchError, match="encoding"):
        distances(muvera.encode(queries), muvera.encode(small))
