from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest

import nimbed
from nimbed.batch import EmbeddingBatch
from nimbed.errors import BackendError, ConfigurationError, InputError, SpaceMismatchError
from nimbed.spec import VectorSpec

SPEC = VectorSpec.of(model="m", dimensions=16)


def batch(vectors, spec=SPEC, counts=None, **more):
    vectors = np.asarray(vectors)
    counts = np.zeros(len(vectors), np.int32) if counts is None else counts
    return EmbeddingBatch(
        vectors=vectors, spec=spec, token_counts=counts, **{"input_type": "passage", **more}
    )


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((3, 15), np.float32), r"promises shape \(n, 16\); got \(3, 15\)"),
        (np.zeros(16, np.float32), "promises shape"),
        (np.zeros((3, 16), np.float64), "promises float32; got float64"),
        (np.zeros((3, 16), np.uint8), "promises float32; got uint8"),
    ],
)
def test_an_array_that_lies_about_its_spec_is_refused(vectors, message):
    with pytest.raises(ConfigurationError, match=message):
        batch(vectors)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_their_rows_named(poison):
    vectors = np.zeros((4, 16), np.float32)
    vectors[2, 5] = poison
    with pytest.raises(BackendError, match="row 2"):
        batch(vectors)
    for kind in ("float", "int8", "ubinary"):
        with pytest.raises(BackendError, match="NaN or infinity for row 2"):
            EmbeddingBatch.from_floats(
                vectors,
                spec=VectorSpec.of(model="m", dimensions=8, embedding_type=kind),
                input_type="query",
                token_counts=np.zeros(4, np.int32),
            )


def test_counts_roles_and_truncated_rows_must_fit():
    zeros = np.zeros((2, 16), np.float32)
    with pytest.raises(ConfigurationError, match="2 vectors but 3 token counts"):
        batch(zeros, counts=np.zeros(3, np.int32))
    with pytest.raises(ConfigurationError, match="input_type must be one of"):
        batch(zeros, input_type="document")
    with pytest.raises(ConfigurationError, match="truncated rows"):
        batch(zeros, truncated=(2,))


def test_binary_and_ubinary_show_the_same_bits():
    fake = nimbed.FakeEmbedder()
    texts = ["one", "two", "three"]
    kinds = {
        kind: fake.embed(texts, input_type="query", embedding_type=kind)
        for kind in ("float", "binary", "ubinary")
    }
    np.testing.assert_array_equal(kinds["binary"].bits(), kinds["ubinary"].bits())
    assert kinds["binary"].bits().dtype == np.uint8
    np.testing.assert_array_equal(
        kinds["binary"].signs(), np.where(kinds["float"].floats() > 0, 1, -1)
    )
    with pytest.raises(ConfigurationError, match="float vectors have no bits"):
        kinds["float"].bits()


def test_the_dot_of_signs_ranks_as_hamming_does():
    fake = nimbed.FakeEmbedder()
    packed = fake.embed(
        [f"text {n}" for n in range(40)], input_type="query", embedding_type="binary"
    )
    hamming = nimbed.search.distances(packed, packed)
    signs = packed.signs()
    np.testing.assert_array_equal((64 - signs @ signs.T) / 2, hamming)


@pytest.mark.parametrize(
    ("kind", "error"), [("float", 0), ("int8", 2e-2), ("uint8", 2e-2), ("ubinary", 0.6)]
)
def test_dequantised_floats_point_where_the_floats_did(kind, error):
    fake = nimbed.FakeEmbedder()
    texts = [f"text {n}" for n in range(20)]
    true = fake.embed(texts, input_type="query").floats()
    back = fake.embed(texts, input_type="query", embedding_type=kind).floats()
    assert back.dtype == np.float32
    assert back.shape == true.shape
    cosine = (true * back).sum(1) / np.linalg.norm(back, axis=1)
    assert (1 - cosine).max() <= error + 1e-6


def test_batches_join_in_order_and_keep_their_truncated_rows():
    fake = nimbed.FakeEmbedder()
    long = "word " * 600
    left = fake.embed(["a", long], input_type="passage", truncate="END")
    right = fake.embed([long, "b"], input_type="passage", truncate="END")
    joined = nimbed.concatenate([left, right])
    assert len(joined) == 4
    assert joined.truncated == (1, 2)
    np.testing.assert_array_equal(joined.vectors, np.concatenate([left.vectors, right.vectors]))
    np.testing.assert_array_equal(
        joined.token_counts, np.concatenate([left.token_counts, right.token_counts])
    )
    picked = joined.select([2, 0])
    assert picked.truncated == (0,)
    np.testing.assert_array_equal(picked.vectors[1], left.vectors[0])


def test_batches_of_two_spaces_or_roles_do_not_join():
    fake = nimbed.FakeEmbedder()
    passages = fake.embed(["a"], input_type="passage")
    with pytest.raises(SpaceMismatchError, match="cannot concatenate.*embedding_type"):
        nimbed.concatenate(
            [passages, fake.embed(["a"], input_type="passage", embedding_type="int8")]
        )
    with pytest.raises(ConfigurationError, match="passage vectors with query vectors"):
        nimbed.concatenate([passages, fake.embed(["a"], input_type="query")])
    with pytest.raises(InputError, match="no batches"):
        nimbed.concatenate([])


def test_a_batch_survives_pickle_and_its_repr_says_what_it_is():
    made = nimbed.FakeEmbedder().embed(["a"], input_type="query", embedding_type="ubinary")
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.vectors, made.vectors)
    assert again.spec == made.spec
    assert repr(made) == (
        "EmbeddingBatch(1 query vectors, nimbed/fake, 64 dimensions, ubinary, hamming)"
    )


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("float", None),
        ("int8", None),
        ("int8", "nim"),
        ("uint8", None),
        ("uint8", "nim"),
        ("binary", None),
        ("ubinary", None),
    ],
)
def test_lists_are_python_floats_that_rank_as_the_vectors_do(kind, scale):
    made = nimbed.FakeEmbedder().embed(
        [f"text {n}" for n in range(300)],
        input_type="passage",
        embedding_type=kind,
        int8_scale=scale,
    )
    expected = made.signs() if made.spec.packed else made.floats()
    assert made.lists() == expected.tolist()
    assert {type(number) for row in made.lists() for number in row} == {float}
    assert made.select([]).lists() == []


@pytest.mark.parametrize("kind", ["float", "int8", "ubinary"])
def test_no_garbage_collection_walks_the_lists_while_they_are_made(kind):
    made = nimbed.FakeEmbedder().embed(["a"], input_type="passage", embedding_type=kind)
    many = made.select([0] * 20_000)
    walked = []

    def watch(phase, info):
        if phase == "start":
            young = gc.get_objects(generation=info["generation"])
            walked.append(sum(type(each) is list and len(each) == 64 for each in young))

    gc.callbacks.append(watch)
    try:
        lists = many.lists()
    finally:
        gc.callbacks.remove(watch)
    assert len(lists) == 20_000
    assert walked, "so many lists set off no collection: nothing was tested"
    assert sum(walked) < 100


def test_parts_are_the_rows_they_were_and_share_nothing():
    vectors = np.random.default_rng(3).standard_normal((6, 16)).astype(np.float32)
    counts = np.arange(6, dtype=np.int32)
    whole = batch(vectors, counts=counts, truncated=(0, 3, 5))
    parts = whole.split([1, 3, 0, 2])
    assert [len(part) for part in parts] == [1, 3, 0, 2]
    np.testing.assert_array_equal(np.concatenate([part.vectors for part in parts]), vectors)
    np.testing.assert_array_equal(np.concatenate([part.token_counts for part in parts]), counts)
    assert [part.truncated for part in parts] == [(0,), (2,), (), (1,)]
    assert all(part.spec is SPEC and part.input_type == "passage" for part in parts)
    parts[1].vectors[:] = 0
    parts[1].token_counts[:] = 0
    np.testing.assert_array_equal(whole.vectors, vectors)
    np.testing.assert_array_equal(whole.token_counts, np.arange(6))
    again = pickle.loads(pickle.dumps(parts[3]))
    np.testing.assert_array_equal(again.vectors, vectors[4:])


def test_a_batch_does_not_part_into_more_or_fewer_rows_than_it_has():
    whole = batch(np.zeros((3, 16), np.float32))
    for lengths in ([1, 1], [2, 2], []):
        with pytest.raises(ConfigurationError, match="a batch of 3 rows cannot be split"):
            whole.split(lengths)
