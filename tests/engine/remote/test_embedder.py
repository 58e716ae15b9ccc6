from __future__ import annotations

import asyncio
import dataclasses
import threading

import numpy as np
import pytest

from nimbed import cards
from nimbed.batch import quantize, slice_normalize
from nimbed.embedder import Embedder
from nimbed.errors import BackendError, ConfigurationError, InputError
from nimbed.remote.embedder import RemoteEmbedder

from .double import answer, vectors
from .players import DIMENSIONS, E5, listing, nim, plain

LLAMA = "nvidia/llama-nemotron-embed-1b-v2"


def passages(count):
    return [f"passage number {row}" for row in range(count)]


def expected(texts, *, role="passage", dimensions=DIMENSIONS):
    return vectors([f"{role}: {text}" for text in texts], dimensions)


def test_every_vector_comes_back_in_its_place(serve, connect):
    double = serve(nim())
    batch = connect(double).embed(passages(300), input_type="passage")
    np.testing.assert_allclose(batch.vectors, expected(passages(300)), atol=1e-6)
    assert sorted(len(post.texts) for post in double.posts) == [44, 128, 128]
    assert batch.spec == cards.find(E5).spec()


async def test_the_async_face_gives_what_the_sync_face_gives(serve, connect):
    embedder = connect(serve(nim()))
    theirs = await embedder.aembed(passages(130), input_type="query")
    ours = await asyncio.to_thread(embedder.embed, passages(130), input_type="query")
    np.testing.assert_array_equal(ours.vectors, theirs.vectors)
    np.testing.assert_allclose(ours.vectors, expected(passages(130), role="query"), atol=1e-6)


def test_it_is_an_embedder_and_sends_nothing_before_the_first_call(serve, connect):
    double = serve(nim())
    embedder = connect(double)
    assert isinstance(embedder, Embedder)
    assert embedder.spec(embedding_type="ubinary").width == DIMENSIONS // 8
    assert embedder.card == cards.find(E5)
    assert double.connections == 0


@pytest.mark.parametrize("embedding_type", ["float", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [None, 512])
def test_every_type_and_size_is_made_here_as_a_local_model_would(
    serve, connect, embedding_type, dimensions
):
    embedder = connect(serve(nim(LLAMA, 2048)), LLAMA)
    batch = embedder.embed(
        passages(5),
        input_type="passage",
        embedding_type=embedding_type,
        dimensions=dimensions,
    )
    spec = cards.find(LLAMA).spec(embedding_type=embedding_type, dimensions=dimensions)
    floats = slice_normalize(expected(passages(5), dimensions=2048), spec.dimensions)
    assert batch.spec == spec
    np.testing.assert_allclose(batch.vectors, quantize(floats, spec), atol=1e-6)


def test_a_server_with_smaller_sizes_is_asked_for_them(serve, connect):
    double = serve(nim(LLAMA, 2048, matryoshka=True))
    batch = connect(double, LLAMA).embed(passages(3), input_type="passage", dimensions=384)
    assert double.posts[0].json["dimensions"] == 384
    full = expected(passages(3), dimensions=2048)
    np.testing.assert_allclose(batch.vectors, slice_normalize(full, 384), atol=1e-6)


def test_the_full_size_is_never_named(serve, connect):
    double = serve(nim(LLAMA, 2048))
    connect(double, LLAMA).embed(passages(1), input_type="passage", dimensions=2048)
    assert "dimensions" not in double.posts[0].json


def test_an_empty_list_gives_an_empty_batch_and_sends_nothing(serve, connect):
    double = serve(nim())
    batch = connect(double).embed([], input_type="query", embedding_type="ubinary")
    assert batch.vectors.shape == (0, DIMENSIONS // 8)
    assert not double.seen


@pytest.mark.parametrize(
    "options",
    [
        {"input_type": "document"},
        {"input_type": "query", "embedding_type": "int4"},
        {"input_type": "query", "truncate": "MIDDLE"},
        {"input_type": "query", "dimensions": 512},
        {"input_type": "query", "modality": "image"},
        {"input_type": "query", "int8_scale": "nim"},
    ],
)
def test_what_the_model_cannot_give_is_refused_before_anything_is_sent(serve, connect, options):
    double = serve(nim())
    with pytest.raises(ConfigurationError):
        connect(double).embed(["a"], **options)
    assert not double.seen


def test_blank_texts_are_refused_by_the_callers_rows_before_anything_is_sent(serve, connect):
    double = serve(nim())
    with pytest.raises(InputError) as caught:
        connect(double).embed(["a", " ", "b", ""], input_type="query")
    assert caught.value.rows == (1, 3)
    assert not double.seen


def test_skipped_texts_leave_zeros_in_their_rows(serve, connect):
    double = serve(nim())
    embedder = connect(double, on_bad_input="skip")
    batch = embedder.embed(["a", " ", "b\ud800", "c"], input_type="query")
    np.testing.assert_allclose(batch.vectors[[0, 3]], expected(["a", "c"], role="query"), atol=1e-6)
    assert not batch.vectors[[1, 2]].any()
    assert batch.token_counts.tolist() == [1, 0, 0, 1]
    assert double.posts[0].texts == ["a", "c"]


def test_progress_is_told_in_the_callers_thread(serve, connect):
    told = []

    def progress(done, total):
        told.append((done, total, threading.current_thread()))

    connect(serve(nim())).embed(passages(200), input_type="passage", progress=progress)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][:2] == (200, 200)
    assert {thread for _, _, thread in told} == {threading.current_thread()}


def test_a_callback_that_raises_ends_the_call(serve, connect):
    def progress(done, total):
        raise KeyboardInterrupt

    embedder = connect(serve(nim()))
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(passages(200), input_type="passage", progress=progress)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(embedder.aembed(passages(200), input_type="passage", progress=progress))


def test_token_counts_sum_to_what_the_server_read(serve, connect):
    double = serve(nim())
    embedder = connect(double)
    batch = embedder.embed(["one", "one two", "one two three four"], input_type="passage")
    assert batch.token_counts.sum() == 7
    assert batch.token_counts.dtype == np.int32
    assert embedder.embed(["one two three"], input_type="query").token_counts.tolist() == [3]


def test_a_server_that_does_not_count_leaves_estimates(serve, connect):
    double = serve(lambda request: answer(vectors(request.texts, DIMENSIONS)))
    batch = connect(double).embed(["x" * 400, "x" * 40], input_type="query")
    assert batch.token_counts[0] > 5 * batch.token_counts[1] > 0


def test_an_unknown_model_is_as_wide_as_its_server_says(serve, connect):
    double = serve(plain(24, model="house/model"))
    embedder = connect(double, "house/model", dialect="nim")
    batch = embedder.embed(passages(3), input_type="passage", embedding_type="ubinary")
    assert batch.vectors.shape == (3, 3)
    assert embedder.spec(embedding_type="ubinary") == batch.spec
    assert len(double.posts) == 1
    assert embedder.card.dimensions == 24


def test_the_width_of_an_unknown_model_is_asked_by_one_request(serve, connect):
    double = serve(plain(24, model="house/model"))
    embedder = connect(double, "house/model")
    assert embedder.spec().dimensions == 24
    assert embedder.card.id == "house/model"
    assert len(double.posts) == 1
    assert embedder.spec(dimensions=8).dimensions == 8


def test_an_unknown_model_may_not_change_its_width(serve, connect):
    double = serve(plain(24, model="house/model"))
    embedder = connect(double, "house/model")
    embedder.embed(["a"], input_type="query")
    double.handler = plain(16, model="house/model")
    with pytest.raises(BackendError, match="width 16 where 24 was promised"):
        embedder.embed(["a"], input_type="query")


def test_an_unknown_model_without_a_way_to_tell_its_role_is_warned_of(serve, connect):
    embedder = connect(serve(plain(24)), "house/model", dialect="openai")
    with pytest.warns(UserWarning, match="without a role prompt"):
        embedder.embed(["a"], input_type="query")


def test_the_only_model_of_a_server_needs_no_name(serve, connect):
    embedder = connect(serve(nim()), None, dialect="auto")
    batch = embedder.embed(["a"], input_type="query")
    assert batch.spec.model == E5
    np.testing.assert_allclose(batch.vectors, expected(["a"], role="query"), atol=1e-6)


def test_one_of_several_models_must_be_named(serve, connect):
    embedder = connect(serve(lambda request: listing("a", "b")), None)
    with pytest.raises(ConfigurationError, match="lists 2 models"):
        embedder.embed(["a"], input_type="query")


def test_a_card_overrides_the_catalogue_and_a_served_name_the_card(serve, connect):
    card = dataclasses.replace(cards.find(E5), query_prompt="Q ", passage_prompt="P ")
    double = serve(plain(model="mine"))
    embedder = connect(double, card, dialect="vllm", served_name="mine")
    batch = embedder.embed(["a"], input_type="query")
    np.testing.assert_allclose(batch.vectors, vectors(["Q a"], DIMENSIONS), atol=1e-6)
    assert double.posts[0].json["model"] == "mine"
    assert batch.spec.query_prompt == "Q "


def test_another_model_than_was_asked_for_is_noticed(serve, connect):
    embedder = connect(serve(plain(model="baai/bge-m3")), dialect="tei")
    with pytest.raises(BackendError, match="vectors of baai/bge-m3 instead of"):
        embedder.embed(["a"], input_type="query")


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"batch_size": 0}, {"timeout": 0}, {"on_bad_input": "x"}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigurationError):
        RemoteEmbedder(E5, base_url="http://localhost", **options)


def test_a_request_holds_no_more_texts_than_allowed(serve, connect):
    double = serve(nim())
    texts = [f"text {n}" for n in range(25)]
    batch = connect(double, batch_size=10).embed(texts, input_type="passage")
    assert sorted(len(request.texts) for request in double.posts) == [5, 10, 10]
    np.testing.assert_array_equal(
        batch.vectors, connect(double).embed(texts, input_type="passage").vectors
    )
