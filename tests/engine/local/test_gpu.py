"""Parity and invariance on CUDA: every text family, every dtype. Skipped without a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.engine.local.families import FAMILIES, TEXTS

import nimbed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    return FAMILIES[request.param](tmp_path / "model")


@pytest.fixture
def exact_products():
    """Take float32 products in float32, not in TensorFloat-32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def embed(folder, texts=TEXTS, *, device="cuda", dtype="float32", role="query"):
    embedder = nimbed.load(str(folder), device=device, dtype=dtype)
    return embedder.embed(texts, input_type=role).vectors


@pytest.mark.parametrize("role", ["query", "passage"])
def test_it_equals_the_cpu_which_equals_transformers(folder, role, exact_products):
    expected = embed(folder, device="cpu", role=role)
    np.testing.assert_allclose(embed(folder, role=role), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(folder, dtype):
    whole = embed(folder, device="cpu")
    assert (whole * embed(folder, dtype=dtype)).sum(1).min() >= 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_never_depends_on_its_neighbours(folder, dtype, exact_products):
    embedder = nimbed.load(str(folder), device="cuda", dtype=dtype)
    alone = np.concatenate([embedder.embed([text], input_type="query").vectors for text in TEXTS])
    many = [*TEXTS, *TEXTS[::-1]]
    together = embedder.embed(many, input_type="query").vectors
    for got in (together[: len(TEXTS)], together[len(TEXTS) :][::-1]):
        if dtype == "float32":
            np.testing.assert_allclose(got, alone, atol=1e-6, rtol=0)
        else:
            assert (got * alone).sum(1).min() >= 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_and_short_texts_share_a_batch(folder, dtype, exact_products):
    longest = nimbed.load(str(folder)).card.max_tokens - 30
    texts = [" ".join(["cat", "dog", "sky"][: n % 3 + 1] * n) for n in (1, 2, 3, 9, longest // 3)]
    got = embed(folder, texts, dtype=dtype, role="passage")
    expected = embed(folder, texts, device="cpu", role="passage")
    if dtype == "float32":
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    else:
        assert (got * expected).sum(1).min() >= 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_heads_of_bge_m3_equal_the_cpu(tmp_path, dtype, exact_products):
    folder = FAMILIES["bge-m3"](tmp_path / "model")
    ours = nimbed.load(str(folder), device="cuda", dtype=dtype)
    theirs = nimbed.load(str(folder), device="cpu", dtype="float32")
    loose = 1e-5 if dtype == "float32" else 0.1
    for got, expected in zip(
        ours.embed_multi(TEXTS, input_type="query"),
        theirs.embed_multi(TEXTS, input_type="query"),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=loose, rtol=0)
    for got, expected in zip(
        ours.embed_sparse(TEXTS, input_type="query"),
        theirs.embed_sparse(TEXTS, input_type="query"),
        strict=True,
    ):
        found = dict(zip(got.ids.tolist(), got.weights.tolist(), strict=True))
        for token, weight in zip(expected.ids.tolist(), expected.weights.tolist(), strict=True):
            assert abs(found.get(token, 0.0) - weight) <= loose
