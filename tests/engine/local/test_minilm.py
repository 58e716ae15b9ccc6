"""The real weights of the embedded default, against sentence-transformers on the same folder."""

from __future__ import annotations

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from english import passages, queries

import nimbed
from nimbed.errors import ConfigurationError, InputError
from nimbed.local.embedder import LocalEmbedder
from nimbed.local.hub import locate
from nimbed.local.tokenizer import ids_of


@pytest.fixture(scope="module")
def minilm():
    with nimbed.load(dtype="float32", device="cpu", backend="torch") as embedder:
        yield embedder


@pytest.fixture(scope="module")
def theirs():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(locate(None).folder), device="cpu")


def test_five_hundred_real_texts_equal_sentence_transformers(minilm, theirs):
    texts = [text[:250] for text in passages(300, seed=11)] + queries(200, seed=12)
    ours = minilm.embed(texts, input_type="passage", truncate="END")
    expected = theirs.encode(texts, normalize_embeddings=True)
    assert ours.vectors.dtype == np.float32
    np.testing.assert_allclose(ours.vectors, expected, atol=1e-5, rtol=0)


def test_token_ids_are_those_of_sentence_transformers(minilm, theirs):
    texts = ["Hello, World!", "naïve café ½ 東京 🙂", "a" * 300, "tabs\tand\nlines", "x\x00y"]
    minilm.warmup()
    ours = minilm._loaded.tokenizer.encode(texts, prompt="", truncate="NONE").ids
    their_tokenizer = theirs.tokenizer
    assert ours == [their_tokenizer(text)["input_ids"] for text in texts]


def test_tokens_are_shown_with_their_places_and_never_cut(minilm, theirs):
    texts = ["The heart pumps blood.", "naïve café 漢字", "words " * 400]
    shown, bare = minilm.tokenize(texts), minilm.tokenize(texts, special=False)
    ours = [[token.id for token in row] for row in shown]
    assert ours == theirs.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    assert [len(row) - 2 for row in shown] == list(map(len, bare))
    for text, row in zip(texts, bare, strict=True):
        assert (row[0].start, row[-1].stop) == (0, len(text.rstrip()))
    with pytest.raises(InputError, match=r"at most \d+ characters is tokenized; row 1"):
        minilm.tokenize(["short", "x" * 10**6])


def test_a_long_text_is_cut_where_sentence_transformers_cuts_it(minilm, theirs):
    long = " ".join(passages(6, seed=13))
    cut = minilm.embed(["short", long], input_type="passage", truncate="END")
    assert cut.truncated == (1,)
    assert cut.token_counts[1] == 256
    np.testing.assert_allclose(
        cut.vectors, theirs.encode(["short", long], normalize_embeddings=True), atol=1e-5
    )


def test_a_vector_does_not_depend_on_its_neighbours(minilm):
    texts = [*passages(20, seed=14), *queries(20, seed=15)]
    texts = [text[:600] for text in texts]
    alone = np.concatenate([minilm.embed([t], input_type="query").vectors for t in texts])
    together = minilm.embed(texts, input_type="query").vectors
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    again = minilm.embed([texts[n] for n in shuffled], input_type="query").vectors
    np.testing.assert_allclose(again, alone[shuffled], atol=1e-6, rtol=0)
    first, other, same = minilm.embed([texts[0], texts[1], texts[0]], input_type="query").vectors
    np.testing.assert_allclose([first, same], [alone[0], alone[0]], atol=1e-6, rtol=0)
    np.testing.assert_allclose(other, alone[1], atol=1e-6, rtol=0)


def test_bfloat16_stays_close_to_float32(minilm):
    texts = passages(40, seed=16) + queries(40, seed=17)
    exact = minilm.embed(texts, input_type="passage", truncate="END").vectors
    with nimbed.load(dtype="bfloat16", device="cpu") as half:
        close = half.embed(texts, input_type="passage", truncate="END").vectors
        alone = np.concatenate(
            [half.embed([t], input_type="passage", truncate="END").vectors for t in texts[::8]]
        )
    assert ((exact * close).sum(1)).min() >= 0.999
    assert 1 - (close[::8] * alone).sum(1).min() <= 1e-3


def test_roles_do_not_matter_to_a_symmetric_model(minilm):
    assert not minilm.card.asymmetric
    both = [minilm.embed(["Paris"], input_type=role).vectors for role in ("query", "passage")]
    np.testing.assert_array_equal(*both)


def test_a_text_that_is_too_long_names_its_row(minilm):
    with pytest.raises(
        InputError, match=r"input length \d+ exceeds maximum allowed token size 256"
    ) as e:
        minilm.embed(["fine", "word " * 400, "fine", "word " * 300], input_type="passage")
    assert e.value.rows == (1, 3)


def test_a_late_long_text_stops_a_large_call_with_its_own_row(minilm, monkeypatch):
    monkeypatch.setattr("nimbed.local.plan._WINDOW", 16)
    texts = ["short text"] * 100
    texts[77] = "word " * 400
    with pytest.raises(InputError) as raised:
        minilm.embed(texts, input_type="passage")
    assert raised.value.rows == (77,)
    texts[77] = "another"
    expected = minilm.embed(["short text", "another"], input_type="passage").vectors
    windows = minilm.embed(texts, input_type="passage")
    np.testing.assert_allclose(windows.vectors[[0, 77, 99]], expected[[0, 1, 0]], atol=1e-6)
    assert windows.token_counts.tolist() == [4] * 77 + [3] + [4] * 22


@pytest.mark.parametrize("text", ["word " * 200_000, "a" * 1_000_000])
def test_a_megabyte_is_refused_or_cut_but_never_chokes(minilm, text):
    batch = minilm.embed([text, "fine"], input_type="passage", truncate="END")
    assert np.isfinite(batch.vectors).all()
    assert batch.token_counts[0] <= 256


def test_a_hundred_thousand_texts_come_back_in_order(minilm):
    kinds = ["red", "green", "blue"]
    texts = [kinds[n % 3] for n in range(100_000)]
    # The real forward pass over so many texts belongs to a benchmark; the order is the point.
    few = minilm.embed(kinds, input_type="query").vectors
    engine = minilm._loaded.engines[0]

    class Stub:
        budget = engine.budget
        on_host = True

        def results(self, out, finished):
            return engine.results(out, finished)

        def plan(self, ids, *, budget):
            return engine.plan(ids, budget=budget)

        def launch(self, ids, rows, transfer, *, skip=None, first_row=0):
            first = {row[1]: vector for row, vector in zip(tokens, few, strict=True)}
            vectors = np.stack([first[ids_of(ids[row])[1]] for row in rows])
            transfer.put(rows + first_row, torch.from_numpy(vectors))

    tokens = minilm._loaded.tokenizer.encode(kinds, prompt="", truncate="NONE").ids
    stubbed = nimbed.load(dtype="float32", device="cpu", backend="torch")
    stubbed._loaded = minilm._loaded._replace(engines=(Stub(),))
    batch = stubbed.embed(texts, input_type="query")
    np.testing.assert_allclose(
        batch.vectors[::1000], few[np.arange(0, 100_000, 1000) % 3], atol=1e-6
    )


def test_text_that_vanishes_in_tokenization_is_refused(minilm):
    with pytest.raises(InputError, match="row 1 vanishes") as raised:
        minilm.embed(["ok", "\u200b\x00"], input_type="query")
    assert raised.value.rows == (1,)


def test_every_type_comes_from_the_same_floats(minilm):
    texts = queries(30, seed=18)
    floats = minilm.embed(texts, input_type="query").vectors
    bits = minilm.embed(texts, input_type="query", embedding_type="ubinary")
    np.testing.assert_array_equal(bits.vectors, np.packbits(floats > 0, axis=1))
    int8 = minilm.embed(texts, input_type="query", embedding_type="int8")
    np.testing.assert_array_equal(
        int8.vectors, np.clip(np.rint(floats.astype(float) * 127 * 384**0.5 / 4), -127, 127)
    )
    with pytest.raises(ConfigurationError, match="it offers 384"):
        minilm.embed(texts, input_type="query", dimensions=256)


def test_sync_async_and_threads_agree(minilm):
    texts = queries(12, seed=19)
    expected = minilm.embed(texts, input_type="query").vectors

    async def gather():
        return await asyncio.gather(*(minilm.aembed([text], input_type="query") for text in texts))

    for _ in range(2):  # two event loops in a row
        got = np.concatenate([batch.vectors for batch in asyncio.run(gather())])
        np.testing.assert_allclose(got, expected, atol=1e-6)
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda t: minilm.embed([t], input_type="query"), texts))
    np.testing.assert_allclose(np.concatenate([b.vectors for b in batches]), expected, atol=1e-6)


def test_two_replicas_give_the_rows_of_one(minilm):
    texts = [*passages(30, seed=20), *queries(30, seed=21)]
    expected = minilm.embed(texts, input_type="passage", truncate="END").vectors
    with LocalEmbedder(devices=["cpu", "cpu"], dtype="float32") as pair:
        pair.warmup()
        for engine in pair._loaded.engines:
            engine.budget = 300
        told = []
        got = pair.embed(
            texts, input_type="passage", truncate="END", progress=lambda d, t: told.append(d)
        )
    np.testing.assert_allclose(got.vectors, expected, atol=1e-6)
    assert told == sorted(told)
    assert told[-1] == len(texts)


def test_a_pickle_holds_the_arguments_and_never_the_weights(minilm):
    expected = minilm.embed(["hello"], input_type="query").vectors
    data = pickle.dumps(minilm)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again._loaded is None
    np.testing.assert_array_equal(again.embed(["hello"], input_type="query").vectors, expected)


def test_closing_releases_the_weights_and_a_new_call_reads_them_again():
    embedder = nimbed.load(dtype="float32", device="cpu", backend="torch")
    before = embedder.embed(["hello"], input_type="query").vectors
    embedder.close()
    embedder.close()
    assert embedder._loaded is None
    np.testing.assert_array_equal(embedder.embed(["hello"], input_type="query").vectors, before)


def test_memory_exhaustion_halves_the_batch_and_goes_on(minilm, monkeypatch):

    minilm.warmup()
    engine = minilm._loaded.engines[0]
    real = engine._pooled
    sizes = []

    def tight(ids, skip):
        sizes.append(len(ids))
        if len(ids) > 3:
            raise torch.OutOfMemoryError("pretended")
        return real(ids, skip)

    monkeypatch.setattr(engine, "_pooled", tight)
    monkeypatch.setattr(engine, "budget", engine.budget)
    texts = queries(20, seed=22)
    got = minilm.embed(texts, input_type="query").vectors
    monkeypatch.undo()
    np.testing.assert_allclose(got, minilm.embed(texts, input_type="query").vectors, atol=1e-6)
    assert max(sizes) == 20


def test_one_input_beyond_the_memory_is_an_error_that_says_so(minilm, monkeypatch):

    minilm.warmup()
    engine = minilm._loaded.engines[0]

    def never(ids, skip):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(engine, "_pooled", never)
    monkeypatch.setattr(engine, "budget", engine.budget)
    with pytest.raises(nimbed.errors.BackendError, match="does not fit the memory"):
        minilm.embed(["hello"], input_type="query")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_what_it_computes_in_is_said(dtype):
    embedder = nimbed.load(device="cpu", dtype=dtype, backend="torch")
    assert embedder.arithmetic is None
    assert "computing" not in repr(embedder)
    embedder.embed(["a"], input_type="query")
    name = embedder.replicas()[0].placement.name
    assert name == dtype or (dtype == "auto" and name in ("float32", "bfloat16"))
    assert f"computing in {name} on cpu" in repr(embedder)
