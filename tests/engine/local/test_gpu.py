"""Parity and invariance on CUDA: every text family, every dtype. Skipped without a device."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tests.engine.local.families import FAMILIES, TEXTS
from tests.engine.local.sentence_folders import saved, weighted_layers, width_of
from tests.engine.local.sparse_folders import array, masked, mlm, save
from tests.engine.local.tiny_encoders import wide_mpnet

import nimbed
from nimbed.local.attention import attention_for
from nimbed.local.batching import Layout
from nimbed.local.device import Placement

CUDA = torch.device("cuda", 0)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = ["float32", "bfloat16", "float16"]


def several_layers(folder):
    network = FAMILIES["bert"](folder.with_name("network"))
    saved(folder, [*weighted_layers(network, 0), Pooling(width_of(network))])
    return folder


@pytest.fixture(
    params=[*FAMILIES.values(), several_layers, wide_mpnet],
    ids=[*FAMILIES, "several layers", "wide mpnet"],
)
def folder(request, tmp_path):
    return request.param(tmp_path / "model")


@pytest.fixture
def exact_products():
    """Take float32 products in float32, not in TensorFloat-32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def embed(folder, texts=TEXTS, *, device="cuda", dtype="float32", role="query"):
    embedder = nimbed.load(str(folder), device=device, dtype=dtype)
    return embedder.embed(texts, input_type=role, truncate="END").vectors


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
    theirs = nimbed.load(str(folder), device="cpu", dtype="float32", backend="torch")
    loose = 1e-5 if dtype == "float32" else 0.1
    got, expected = (each.embed_kinds(TEXTS, input_type="query") for each in (ours, theirs))
    np.testing.assert_allclose(got.dense.vectors, expected.dense.vectors, atol=loose, rtol=0)
    np.testing.assert_array_equal(got.multi.offsets, expected.multi.offsets)
    np.testing.assert_allclose(got.multi.vectors, expected.multi.vectors, atol=loose, rtol=0)
    for found, wanted in zip(got.sparse.dicts(), expected.sparse.dicts(), strict=True):
        for token in found.keys() | wanted.keys():
            assert abs(found.get(token, 0.0) - wanted.get(token, 0.0)) <= loose


@pytest.mark.parametrize("dtype", DTYPES)
def test_splade_equals_the_cpu(tmp_path, dtype, exact_products):
    folder = masked(tmp_path / "network")
    save(tmp_path / "model", [mlm(folder), SpladePooling()])
    got, expected = (
        array(nimbed.load(str(tmp_path / "model"), **where).embed_sparse(TEXTS, input_type="query"))
        for where in ({"device": "cuda", "dtype": dtype}, {"device": "cpu", "dtype": "float32"})
    )
    np.testing.assert_allclose(got, expected, atol=1e-5 if dtype == "float32" else 0.1, rtol=0)


@pytest.mark.parametrize("head_dim", [32, 64, 72, 128])
@pytest.mark.parametrize("key_heads", [8, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_at_real_head_sizes_equals_float64(head_dim, key_heads, dtype):
    lengths = [300, 17, 1, 128, 513, 64]
    layout = Layout.of(lengths, CUDA)
    generator = torch.Generator("cuda").manual_seed(head_dim)
    fused = torch.randn(
        layout.rows, 8 + 2 * key_heads, head_dim, generator=generator, device=CUDA
    ).to(dtype)
    q, k, v = fused.split([8, key_heads, key_heads], dim=1)
    got = attention_for(Placement(CUDA, dtype))(q, k, v, layout)
    starts = layout.starts.tolist()
    for start, length in zip(starts, lengths, strict=True):
        rows = slice(start, start + length)
        query, key, value = (x[rows].double().transpose(0, 1) for x in (q, k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, enable_gqa=key_heads != 8
        ).transpose(0, 1)
        loose = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got[rows].double(), expected.flatten(1), atol=loose, rtol=loose)


def test_the_kernels_are_used():
    from nimbed.local.kernels import usable

    assert usable(CUDA)


@pytest.mark.parametrize("family", ["llama", "mistral", "ministral3", "nvembed"])
def test_float8_on_the_device_is_what_the_emulation_gives(family, tmp_path):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs float8 products")
    folder = FAMILIES[family](tmp_path / "model")
    expected = embed(folder, device="cpu", dtype="float8")
    assert (embed(folder, dtype="float8") * expected).sum(1).min() >= 0.99


def test_threads_and_models_at_once_get_their_own_vectors(tmp_path):
    folders = [FAMILIES[name](tmp_path / name) for name in ("bert", "llama")]
    embedders = [nimbed.load(str(folder), device="cuda", dtype="bfloat16") for folder in folders]
    expected = [
        nimbed.load(str(folder), device="cpu", dtype="float32", backend="torch")
        .embed(TEXTS, input_type="passage")
        .vectors
        for folder in folders
    ]

    def ask(number):
        own = torch.cuda.Stream()
        with torch.cuda.stream(own):  # whatever stream the caller works on
            for turn in range(20):
                row = (number + turn) % len(TEXTS)
                which = (number + turn) % 2
                texts = TEXTS[row:] if turn % 3 else [TEXTS[row]]
                got = embedders[which].embed(texts, input_type="passage").vectors
                close = (got * expected[which][row : row + len(texts)]).sum(1)
                assert close.min() >= 0.999

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(ask, number) for number in range(6)]:
            done.result()


def test_close_gives_the_memory_back_at_once(tmp_path):
    gc.disable()  # what only the collector would free is not free
    try:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        embedder = nimbed.load(
            str(FAMILIES["llama"](tmp_path / "model")), device="cuda", dtype="bfloat16"
        )
        embedder.warmup()
        assert torch.cuda.memory_allocated() > before
        embedder.close()
        assert torch.cuda.memory_allocated() <= before
    finally:
        gc.enable()


def test_a_hundred_shortages_of_memory_lose_no_request(tmp_path, monkeypatch):
    folder = FAMILIES["bert"](tmp_path / "model")
    embedder = nimbed.load(str(folder), device="cuda", dtype="bfloat16")
    expected = embedder.embed(TEXTS, input_type="passage").vectors
    engine = embedder.replicas()[0]
    real, shortages = engine._pooled, []

    def tight(ids, skip):
        if len(ids) > 1 and len(shortages) < 100:
            shortages.append(torch.empty(1 << 20, device="cuda"))  # held by nobody but the frame
            raise torch.OutOfMemoryError("pretended")
        return real(ids, skip)

    monkeypatch.setattr(engine, "_pooled", tight)
    while len(shortages) < 100:
        monkeypatch.setattr(engine, "budget", 32768)  # it was halved at each shortage
        got = embedder.embed(TEXTS, input_type="passage").vectors
        assert (got * expected).sum(1).min() >= 0.999
