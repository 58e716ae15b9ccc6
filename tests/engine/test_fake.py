from __future__ import annotations

import asyncio
import inspect

import numpy as np
import pytest

import nimbed
from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, InputError


def test_a_query_and_a_passage_of_the_same_text_differ():
    fake = nimbed.FakeEmbedder()
    query = fake.embed(["Paris"], input_type="query").vectors[0]
    passage = fake.embed(["Paris"], input_type="passage").vectors[0]
    assert abs(query @ passage) < 0.9
    assert fake.calls == [("query", ("Paris",)), ("passage", ("Paris",))]


def test_it_fulfils_the_protocol_with_the_same_signatures():
    fake = nimbed.FakeEmbedder()
    assert isinstance(fake, Embedder)
    for name in ("embed", "aembed", "spec"):
        assert inspect.signature(getattr(nimbed.FakeEmbedder, name)) == inspect.signature(
            getattr(Embedder, name)
        )


def test_the_role_has_no_default():
    with pytest.raises(TypeError, match="input_type"):
        nimbed.FakeEmbedder().embed(["a"])  # type: ignore[call-arg]


def test_sync_and_async_agree():
    fake = nimbed.FakeEmbedder()

    async def embed():
        async with fake as inside:
            return await inside.aembed(["a", "b"], input_type="query", embedding_type="int8")

    with fake as inside:
        sync = inside.embed(["a", "b"], input_type="query", embedding_type="int8")
    np.testing.assert_array_equal(asyncio.run(embed()).vectors, sync.vectors)


def test_lengths_and_truncation_work_in_words():
    fake = nimbed.FakeEmbedder()
    long = " ".join(f"w{n}" for n in range(600))
    with pytest.raises(InputError, match=r"input length 601 exceeds .*512 .row 1") as raised:
        fake.embed(["short", long], input_type="query")
    assert raised.value.rows == (1,)
    for side, kept in (("END", slice(0, 511)), ("START", slice(600 - 511, 600))):
        cut = fake.embed(["short", long], input_type="query", truncate=side)
        assert cut.truncated == (1,)
        assert cut.token_counts.tolist() == [2, 512]
        whole = fake.embed([" ".join(long.split()[kept])], input_type="query")
        np.testing.assert_array_equal(cut.vectors[1], whole.vectors[0])


def test_progress_is_told_to_a_callback():
    told = []
    nimbed.FakeEmbedder().embed(
        ["a", "b", "c"], input_type="query", progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_progress_as_a_bar_stays_off_standard_output(capsys):
    nimbed.FakeEmbedder().embed(["a"], input_type="query", progress=True)
    assert capsys.readouterr().out == ""


def test_matryoshka_sizes_are_slices():
    fake = nimbed.FakeEmbedder()
    full = fake.embed(["a"], input_type="query").vectors
    small = fake.embed(["a"], input_type="query", dimensions=16).vectors
    np.testing.assert_allclose(small, full[:, :16] / np.linalg.norm(full[:, :16]), atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "error", "message", "rows"),
    [
        ("one string", ConfigurationError, "list of texts; got one str", None),
        (b"bytes", ConfigurationError, "got one bytes", None),
        (["a", 3, None], InputError, "rows 1, 2 holds int", (1, 2)),
        (["a", ""], InputError, "row 1 is; leave it out", (1,)),
        (["  \n\t", "a"], InputError, "row 0", (0,)),
        (["a", "b\ud800"], InputError, "lone surrogate", (1,)),
    ],
)
def test_inputs_that_cannot_be_embedded_are_named(inputs, error, message, rows):
    with pytest.raises(error, match=message) as raised:
        nimbed.FakeEmbedder().embed(inputs, input_type="query")
    assert rows is None or raised.value.rows == rows


def test_options_that_do_not_exist_are_refused():
    fake = nimbed.FakeEmbedder()
    for option, value in {
        "input_type": "document",
        "truncate": "MIDDLE",
        "embedding_type": "int4",
        "dimensions": 17,
        "modality": "image",
        "int8_scale": "nim",
    }.items():
        with pytest.raises(ConfigurationError):
            fake.embed(["a"], **{"input_type": "query", option: value})


def test_an_empty_list_gives_an_empty_batch():
    empty = nimbed.FakeEmbedder().embed([], input_type="query", embedding_type="ubinary")
    assert empty.vectors.shape == (0, 8)
    assert empty.bits().shape == (0, 8)
