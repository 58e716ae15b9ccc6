"""Sparse vectors and multi-vectors: what their batches refuse, keep and compare."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

import nimbed
from nimbed import FakeEmbedder, MultiVectorBatch, MultiVectorSpec, SparseBatch, SparseSpec
from nimbed.errors import BackendError, ConfigurationError, InputError, SpaceMismatchError
from nimbed.options import KindOptions
from nimbed.search import distances, nearest, rescore
from nimbed.spec import TokenType

TEXTS = ["the cat sat on the mat", "a dog barked", "cat and dog", "quiet"]
SPARSE = SparseSpec(model="m", vocabulary="v", dimensions=10)


def counts(n: int) -> Any:
    return np.ones(n, np.int32)


def sparse(rows: list[dict[int, float]], spec: SparseSpec = SPARSE) -> SparseBatch:
    arrays = [
        (np.array(list(row), np.int32), np.array(list(row.values()), np.float32)) for row in rows
    ]
    return SparseBatch.from_rows(
        arrays, spec=spec, input_type="passage", token_counts=counts(len(rows))
    )


def multi(rng: np.random.Generator, lengths: list[int], kind: TokenType = "float", **role: Any):
    spec = MultiVectorSpec.of(model="m", dimensions=16, token_type=kind)
    rows = [rng.standard_normal((length, 16)) for length in lengths]
    role = {"input_type": "passage", **role}
    return MultiVectorBatch.from_floats(rows, spec=spec, token_counts=counts(len(rows)), **role)


@pytest.mark.parametrize(
    "spec",
    [
        SPARSE,
        SparseSpec(model="m", vocabulary=None, dimensions=5, max_active=3, query_prompt="q: "),
        MultiVectorSpec.of(model="m", dimensions=128, token_type="int8", pool_factor=2),
        MultiVectorSpec.of(model="m", dimensions=96, token_type="ubinary", revision="r"),
    ],
)
def test_a_spec_travels_as_json_and_refuses_an_edit(spec: SparseSpec | MultiVectorSpec) -> None:
    assert type(spec).from_json(spec.to_json()) == spec
    edited = {**spec.to_dict(), "model": "other"}
    with pytest.raises(ConfigurationError, match="edited"):
        type(spec).from_dict(edited)
    with pytest.raises(ConfigurationError, match="not a spec of dense vectors, but of"):
        nimbed.VectorSpec.from_dict(spec.to_dict())


def test_every_fact_changes_the_space() -> None:
    facts: dict[str, Any] = {"model": "m", "vocabulary": "v", "dimensions": 8}
    changes: list[dict[str, Any]] = [
        {"model": "n"},
        {"vocabulary": "w"},
        {"dimensions": 9},
        {"revision": "r"},
        {"max_active": 4},
        {"query_prompt": "q"},
        {"passage_prompt": "p"},
    ]
    prints = {SparseSpec(**{**facts, **change}).fingerprint for change in [{}, *changes]}
    assert len(prints) == len(changes) + 1
    facts = {"model": "m", "dimensions": 16}
    changes = [
        {"model": "n"},
        {"dimensions": 24},
        {"token_type": "half"},
        {"token_type": "int8"},
        {"token_type": "ubinary"},
        {"pool_factor": 2},
        {"revision": "r"},
        {"query_prompt": "q"},
        {"passage_prompt": "p"},
    ]
    prints |= {MultiVectorSpec.of(**{**facts, **change}).fingerprint for change in [{}, *changes]}
    assert len(prints) == 8 + len(changes) + 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": np.array([1, 0, 2], np.float32)}, "not positive and finite stands in row 0"),
        ({"weights": np.array([1, 2, np.nan], np.float32)}, "not positive and finite stands in ro"),
        ({"ids": np.array([1, 1, 2], np.int32)}, "do not ascend in row 0"),
        ({"ids": np.array([1, 2, 10], np.int32)}, "the vocabulary has 10"),
        ({"ids": np.array([1, 2, 3])}, "ids must be int32; got int64"),
        ({"offsets": np.array([0, 2, 2, 4])}, "offsets must ascend from 0 to 3"),
        ({"offsets": np.array([0, 3])}, "1 vectors but 3 token counts"),
        ({"truncated": (3,)}, "outside the 3 vectors"),
        ({"weights": np.ones(4, np.float32)}, "one weight an id"),
        ({"spec": SparseSpec(model="m", vocabulary="v", dimensions=10, max_active=1)}, "at most 1"),
    ],
)
def test_a_sparse_batch_refuses_what_lies(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "ids": np.array([1, 2, 0], np.int32),
        "weights": np.ones(3, np.float32),
        "offsets": np.array([0, 2, 2, 3]),
        "spec": SPARSE,
        "input_type": "passage",
        "token_counts": counts(3),
    }
    assert SparseBatch(**right).dicts() == [{1: 1.0, 2: 1.0}, {}, {0: 1.0}]
    with pytest.raises((ConfigurationError, BackendError), match=message):
        SparseBatch(**right | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vectors": np.ones((3, 8), np.float32)}, r"promises shape \(m, 16\)"),
        ({"vectors": np.ones((3, 16))}, "vectors must be float32; got float64"),
        ({"vectors": np.full((3, 16), np.inf, np.float32)}, "NaN or infinity stands in rows 0"),
        ({"offsets": np.array([0, 3, 3])}, "row 1 of the batch has no vectors"),
        ({"input_type": "text"}, "input_type must be one of"),
    ],
)
def test_a_multi_vector_batch_refuses_what_lies(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "vectors": np.ones((3, 16), np.float32),
        "offsets": np.array([0, 1, 3]),
        "spec": MultiVectorSpec.of(model="m", dimensions=16),
        "input_type": "passage",
        "token_counts": counts(2),
    }
    assert [len(row) for row in MultiVectorBatch(**right).rows()] == [1, 2]
    with pytest.raises((ConfigurationError, BackendError), match=message):
        MultiVectorBatch(**right | wrong)


@pytest.mark.parametrize("kind", ["sparse", "multi"])
def test_rows_are_selected_and_joined_in_the_order_asked_for(kind: str) -> None:
    batch = getattr(FakeEmbedder(), f"embed_{kind}")(
        ["word " * 600, *TEXTS], input_type="passage", truncate="END"
    )
    rows = [3, 0, 0, 2]
    picked = batch.select(rows)
    assert picked.truncated == (1, 2)
    for new, old in enumerate(rows):
        expected, found = list(batch.rows())[old], list(picked.rows())[new]
        np.testing.assert_array_equal(np.hstack(found), np.hstack(expected))
    join = type(batch).concatenate
    again = join([batch.select([0]), batch.select(slice(1, None)), batch.select([])])
    assert again.truncated == batch.truncated == (0,)
    np.testing.assert_array_equal(again.offsets, batch.offsets)
    for name in ("ids", "weights") if kind == "sparse" else ("vectors",):
        np.testing.assert_array_equal(getattr(again, name), getattr(batch, name))
    with pytest.raises(InputError, match="no batches"):
        join([])
    queries = getattr(FakeEmbedder(), f"embed_{kind}")(TEXTS, input_type="query")
    with pytest.raises(ConfigurationError, match="cannot concatenate passage vectors with query"):
        join([batch, queries])


@pytest.mark.parametrize("kind", ["sparse", *get_args(TokenType)])
def test_a_batch_holds_little_more_memory_than_its_vectors(kind: Any) -> None:
    """8 bytes a weight, and a token's stored elements; what they were made of is let go."""
    rng, rows, many = np.random.default_rng(6), 400, 120

    def made() -> SparseBatch | MultiVectorBatch:
        if kind != "sparse":
            return multi(rng, [many] * rows, kind)
        ids = [
            np.sort(rng.choice(5_000, many, replace=False)).astype(np.int32) for _ in range(rows)
        ]
        weights = rng.random((rows, many), np.float32) + np.float32(0.1)
        spec = replace(SPARSE, dimensions=5_000)
        return SparseBatch.from_rows(
            list(zip(ids, weights, strict=True)),
            spec=spec,
            input_type="passage",
            token_counts=counts(rows),
        )

    made()  # what Python keeps from its first call is no batch's
    tracemalloc.start()
    batch = made()
    joined = type(batch).concatenate([batch, batch.select(slice(0, 100))])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    each = 8 if isinstance(batch, SparseBatch) else batch.vectors.itemsize * batch.spec.width
    assert held <= 1.2 * each * many * (len(batch) + len(joined))


def test_the_largest_weights_are_kept_and_ties_go_to_the_lower_token() -> None:
    spec = SparseSpec(model="m", vocabulary="v", dimensions=10, max_active=2)
    batch = sparse([{1: 1.0, 3: 2.0, 7: 2.0, 8: 2.0}, {4: 1.0}], spec)
    assert batch.dicts() == [{3: 2.0, 7: 2.0}, {4: 1.0}]


@pytest.mark.parametrize("kind", get_args(TokenType))
def test_maxsim_is_numpys(kind: TokenType) -> None:
    rng = np.random.default_rng(3)
    queries = multi(rng, [3, 1, 32], kind, input_type="query")
    passages = multi(rng, [5, 1, 40, 7, 300, 2], kind)
    ask, have = ([np.array(row) for row in batch.lists()] for batch in (queries, passages))
    expected = [[(q @ p.T).max(axis=1).sum() for p in have] for q in ask]
    np.testing.assert_allclose(-distances(queries, passages), expected, rtol=1e-5, atol=1e-5)
    other = multi(rng, [2], "half" if kind != "half" else "float")
    queries = queries if kind != "float" else passages  # whose floats fit all that is stored
    with pytest.raises(SpaceMismatchError, match="token_type"):
        distances(queries, other)


def test_maxsim_does_not_depend_on_how_passages_are_divided(monkeypatch: Any) -> None:
    rng = np.random.default_rng(4)
    queries, passages = multi(rng, [4, 2]), multi(rng, [9, 1, 30, 2, 2, 17])
    whole = distances(queries, passages)
    monkeypatch.setattr("nimbed.search._BLOCK_WORDS", 1)
    np.testing.assert_allclose(distances(queries, passages), whole, rtol=1e-6, atol=1e-6)


def test_sparse_products_are_numpys() -> None:
    rng = np.random.default_rng(5)

    def draw(rows: int) -> list[dict[int, float]]:
        sizes = rng.integers(0, 8, rows)
        return [{int(i): float(rng.random()) + 0.1 for i in sorted(rng.choice(10, n, False))}
                for n in sizes]  # fmt: skip

    def array(rows: list[dict[int, float]]) -> Any:
        return np.array([[row.get(i, 0.0) for i in range(10)] for row in rows])

    ask, have = draw(6), draw(40)
    found = distances(sparse(ask), sparse(have))
    np.testing.assert_allclose(-found, array(ask) @ array(have).T, rtol=1e-5, atol=1e-6)
    best = nearest(sparse(ask), sparse(have), 5)
    exact = np.argsort(-(array(ask) @ array(have).T), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(
        np.take_along_axis(found, best.rows, 1), np.take_along_axis(found, exact, 1)
    )


def test_kinds_are_never_compared_or_joined() -> None:
    found = FakeEmbedder().embed_kinds(TEXTS, input_type="passage")
    assert found.dense is not None
    assert found.sparse is not None
    assert found.multi is not None
    for left, right in ((found.dense, found.sparse), (found.sparse, found.multi)):
        with pytest.raises(SpaceMismatchError, match="only vectors of one kind"):
            distances(left, right)
    ids = sparse([{1: 1.0}], SparseSpec(model="m", vocabulary="other", dimensions=10))
    with pytest.raises(SpaceMismatchError, match="vocabulary"):
        distances(sparse([{1: 1.0}]), ids)


def test_candidates_by_one_kind_are_ordered_by_another() -> None:
    fake = FakeEmbedder()
    passages = fake.embed_kinds(TEXTS, input_type="passage")
    query = fake.embed_kinds(["dog barked"], input_type="query")
    assert passages.sparse
    assert passages.multi
    assert query.sparse
    assert query.multi
    candidates = nearest(query.sparse, passages.sparse, 3).rows
    assert rescore(query.multi, passages.multi, candidates, 1).rows.tolist() == [[1]]


def test_a_fake_gives_the_kinds_that_it_is_asked_for() -> None:
    fake = FakeEmbedder()
    both = fake.embed_kinds(TEXTS, kinds=("sparse", "dense"), input_type="query", max_active=2)
    assert both.multi is None
    assert both.dense is not None
    assert both.sparse is not None
    np.testing.assert_array_equal(both.dense.vectors, fake.embed(TEXTS, input_type="query").vectors)
    assert both.sparse.spec == fake.sparse_spec(max_active=2)
    assert np.diff(both.sparse.offsets).max() == 2
    pooled = fake.embed_multi(TEXTS, input_type="passage", pool_factor=2, token_type="half")
    assert pooled.spec == fake.multi_spec(token_type="half", pool_factor=2)
    assert np.diff(pooled.offsets).tolist() == [4, 2, 2, 2]
    role = fake.embed_multi(TEXTS, input_type="query")
    assert not np.array_equal(role.vectors, fake.embed_multi(TEXTS, input_type="passage").vectors)
    empty = fake.embed_kinds([], input_type="query")
    assert empty.sparse is not None
    assert len(empty.sparse) == 0
    assert empty.multi is not None
    assert len(empty.multi) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": "sparse"}, "kinds must list some of 'dense', 'sparse', 'multi'"),
        ({"kinds": ()}, "kinds must list"),
        ({"kinds": ("spares",)}, "kinds must be one of"),
        ({"token_type": "int4"}, "token_type must be one of"),
        ({"pool_factor": 0}, "pool_factor must be at least 1"),
        ({"max_active": 1.5}, "max_active must be an integer"),
    ],
)
def test_options_that_no_model_knows_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        KindOptions(**wrong)


def test_a_kind_that_the_model_does_not_give_is_named() -> None:
    with pytest.raises(ConfigurationError, match="m gives no multi vectors; it gives dense"):
        KindOptions(kinds=("dense", "multi")).chosen(("dense", "sparse"), "m")
