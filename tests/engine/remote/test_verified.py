"""Answers that look right and are not: zeros, other widths, texts cut in silence."""

from __future__ import annotations

import numpy as np
import pytest

from nimbed.errors import InputError, RemoteError
from nimbed.remote.retry import RetryPolicy

from .double import answer, as_json, edited, vectors
from .players import DIMENSIONS, E5, nim

TEXTS = [f"text {n}" for n in range(5)]
EXPECTED = vectors([f"passage: {text}" for text in TEXTS], DIMENSIONS)
NIM = nim()


@pytest.mark.parametrize("step", [1, 5])
def test_vectors_of_zeros_are_refused(serve, connect, step):
    def handle(request):
        rows = vectors(request.texts, DIMENSIONS)
        rows[::step] = 0
        return answer(rows)

    double = serve(handle)
    with pytest.raises(RemoteError, match="a vector of zeros alone") as caught:
        connect(double, retry=RetryPolicy(shortest=0.01)).embed(TEXTS, input_type="passage")
    assert caught.value.rows == tuple(range(0, 5, step))
    assert len(double.posts) == 2


def constant(request):
    rows = vectors(request.texts, DIMENSIONS)
    rows[:] = rows[0]
    return answer(rows)


def test_one_vector_for_different_texts_is_refused(serve, connect):
    double = serve(constant)
    with pytest.raises(RemoteError, match="the same vector for different texts") as caught:
        connect(double, retry=RetryPolicy(shortest=0.01)).embed(
            ["a heart", "the moon", "third"], input_type="passage"
        )
    assert caught.value.rows == (0, 1, 2)
    assert len(double.posts) == 2


@pytest.mark.parametrize(
    "texts",
    [["Hello world", "hello, world!"], ["one", "one"], ["東京", "大阪"], ["a b", "b c"],
     ["word " * 200 + "one", "text " * 200 + "two"]],
)  # fmt: skip
def test_texts_that_a_model_may_take_for_the_same_are_given_the_same(serve, connect, texts):
    assert len(connect(serve(constant)).embed(texts, input_type="passage")) == 2


def test_a_width_that_changes_is_refused(serve, connect):
    widths = iter([16, 24, 24])
    double = serve(lambda request: answer(vectors(request.texts, next(widths))))
    embedder = connect(double, "house/model", batch_size=2, concurrency=1)
    with pytest.raises(RemoteError, match="width 24 where 16 was promised") as caught:
        embedder.embed(TEXTS, input_type="passage")
    assert caught.value.partial.rows == (0, 1)


def test_items_without_an_index_are_in_order(serve, connect):
    double = serve(
        lambda r: edited(NIM(r), lambda said: [item.pop("index") for item in said["data"]])
    )
    batch = connect(double).embed(TEXTS, input_type="passage")
    np.testing.assert_allclose(batch.vectors, EXPECTED, atol=1e-6)
    assert len(double.posts) == 1


def cutting_tei(longest, *, auto_truncate=True):
    """A TEI that cuts in silence; words stand for tokens."""

    def handle(request):
        if request.path == "/info":
            return as_json(
                {
                    "model_id": E5,
                    "max_client_batch_size": 32,
                    "max_input_length": longest,
                    "auto_truncate": auto_truncate,
                }
            )
        if request.path != "/v1/embeddings":
            return as_json({}, 404)
        texts = [" ".join(text.split()[:longest]) for text in request.texts]
        tokens = sum(len(text.split()) for text in texts)
        return answer(vectors(texts, DIMENSIONS), model=E5, tokens=tokens)

    return handle


LONG = " ".join(f"word{n}" for n in range(90))
VERY_LONG = " ".join(f"word{n}" for n in range(900))


@pytest.mark.parametrize("dialect", ["tei", "auto"])
@pytest.mark.parametrize("texts", [[LONG], ["a", "b c", LONG, "d"]])
def test_a_text_that_the_server_cut_in_silence_is_refused(serve, connect, dialect, texts):
    embedder = connect(serve(cutting_tei(40)), dialect=dialect)
    with pytest.raises(InputError, match="cuts every text") as caught:
        embedder.embed(texts, input_type="passage")
    assert caught.value.rows == (texts.index(LONG),)


def test_a_text_that_may_be_cut_is_told_of(serve, connect):
    embedder = connect(serve(cutting_tei(40)), dialect="tei")
    batch = embedder.embed([LONG], input_type="passage", truncate="END")
    assert batch.truncated == (0,)


def test_a_server_that_does_not_cut_is_believed(serve, connect):
    embedder = connect(serve(cutting_tei(40, auto_truncate=False)), dialect="tei")
    assert embedder.embed(["a b", "c"], input_type="passage").truncated == ()


@pytest.mark.parametrize("texts", [[VERY_LONG], ["a", "b c", VERY_LONG, "d"]])
def test_a_count_that_ends_at_the_models_limit_tells_of_a_silent_cut(serve, connect, texts):
    double = serve(cutting_tei(512))  # as some servers do that say nothing of it
    embedder = connect(double, dialect="openai")
    with pytest.raises(
        InputError, match="at least 512 tokens, at which this server cuts"
    ) as caught:
        embedder.embed(texts, input_type="passage")
    assert caught.value.rows == (texts.index(VERY_LONG),)
    batch = embedder.embed(texts, input_type="passage", truncate="END")
    assert batch.truncated == (texts.index(VERY_LONG),)


def test_a_server_that_reads_more_than_the_card_says_is_believed(serve, connect):
    embedder = connect(serve(cutting_tei(9000)), dialect="openai")
    assert len(embedder.embed(["a", VERY_LONG], input_type="passage")) == 2
