"""Every fused kernel gives what torch gives; without a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.engine.local.families import FAMILIES, TEXTS
from tests.engine.local.tiny_encoders import wide_mpnet
from tests.engine.local.varlen import attend_as_on_cuda

import nimbed

kernels = pytest.importorskip("nimbed.local.kernels.selftest", reason="needs triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILED = DEVICE.type == "cuda"
pytestmark = [pytest.mark.gpu] if COMPILED else []

# A device compiles each combination anew, and runs them all. The interpreter is slow: a dtype only
# rounds, so it takes two widths in half precision, on both sides of what a program holds.
WIDTHS = [
    (dtype, width)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for width in (8, 72, 384, 1000, 2048, 5000)
    if COMPILED or dtype == torch.float32 or width in (72, 5000)
]
# Likewise: each size and each number of heads with and without causality.
HEADS = list(itertools.product([16, 32, 64, 128], [4, 2, 1], [False, True]))
if not COMPILED:
    HEADS = [
        *((16, 4, False), (16, 2, True), (32, 1, False), (32, 4, True)),
        *((64, 2, False), (64, 1, True), (128, 4, False), (128, 2, True)),
    ]


def carried(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Double what triton 3.6's interpreter halves: it loses a carry out of float8's mantissa."""
    if COMPILED:
        return got
    halved = ((2 * got - expected).abs() < 0.07 * expected.abs()) & (got != 0)
    assert halved.float().mean() < 0.06
    return torch.where(halved, 2 * got, got)


@pytest.mark.parametrize(("dtype", "width"), WIDTHS)
def test_it_gives_what_torch_gives(dtype, width):
    exact = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    names = set()
    for name, got, expected in kernels.comparisons(DEVICE, dtype, width):
        got, expected = got.float(), expected.float()
        names.add(name)
        if "float8" in name:
            got = carried(got, expected)
            # Three bits behind the point, and below 2^-6 of a unit steps of 2^-9 of it.
            unit = expected.abs().amax(-1, keepdim=True) / 448
            assert ((got - expected).abs() <= expected.abs() / 15 + unit / 256).all(), name
        else:
            torch.testing.assert_close(got, expected, rtol=exact, atol=exact, msg=name)
    attends = dtype == torch.float16 or (COMPILED and dtype == torch.bfloat16)
    assert len(names) == 9 + attends


def test_a_wrong_kernel_is_named(monkeypatch):
    monkeypatch.setattr(
        kernels, "gated_activation", lambda both, activation: both.chunk(2, dim=-1)[0]
    )
    assert "the gated activation differs from torch" in kernels.disagreement(DEVICE)


def test_on_the_cpu_none_is_used():
    from nimbed.local.kernels import usable

    assert not usable(torch.device("cpu"))


@pytest.fixture
def through_kernels(monkeypatch):
    """Run on this machine what runs on CUDA: the kernels, and attention by offsets."""
    from nimbed.local import kernels

    if COMPILED:
        pytest.skip("test_gpu.py runs the real thing")
    monkeypatch.setattr(kernels, "usable", lambda device: True)
    attend_as_on_cuda(monkeypatch)


# Those left out run no kernel that the others do not, and the interpreter is slow.
@pytest.mark.parametrize(
    "make",
    [
        *(FAMILIES[name] for name in sorted(FAMILIES.keys() - {"distilbert", "gte", "nomic-moe"})),
        wide_mpnet,
    ],
)
def test_every_family_gives_the_same_through_the_kernels(make, tmp_path, request):
    folder = str(make(tmp_path / "model"))
    halves = {"query": TEXTS[::2], "passage": TEXTS[1::2]}  # the interpreter's time is the texts'
    theirs = nimbed.load(folder, device="cpu", dtype="float32", backend="torch")
    expected = [theirs.embed(some, input_type=role).vectors for role, some in halves.items()]
    request.getfixturevalue("through_kernels")
    ours = nimbed.load(folder, device="cpu", dtype="float32", backend="torch")
    for (role, some), vectors in zip(halves.items(), expected, strict=True):
        got = ours.embed(some, input_type=role).vectors
        np.testing.assert_allclose(got, vectors, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "ministral3", "nvembed"])
def test_float8_through_the_kernels_is_the_emulations(family, tmp_path, request, monkeypatch):
    folder = str(FAMILIES[family](tmp_path / "model"))
    attend_as_on_cuda(monkeypatch)  # attention's own rounding is not what is compared
    plain = nimbed.load(folder, device="cpu", dtype="float8")
    expected = plain.embed(TEXTS[:3], input_type="query").vectors
    request.getfixturevalue("through_kernels")
    ours = nimbed.load(folder, device="cpu", dtype="float8")
    got = ours.embed(TEXTS[:3], input_type="query").vectors
    assert (got * expected).sum(1).min() >= 0.93  # the interpreter halves some numbers


@pytest.mark.parametrize(("head_dim", "key_heads", "causal"), HEADS)
def test_attention_follows_the_definition_whatever_lies_around_a_sequence(
    head_dim, key_heads, causal
):
    from nimbed.local.kernels.varlen_attention import attend

    lengths = [70, 3, 1, 64, 130]
    generator = torch.Generator().manual_seed(head_dim)
    fused = torch.randn(sum(lengths) + 6, 4 + 2 * key_heads, head_dim, generator=generator)
    fused[-6:] = float("nan")  # the padding
    q, k, v = fused.to(DEVICE, torch.float16).split([4, key_heads, key_heads], dim=1)
    ends = np.cumsum(lengths)
    spans = torch.tensor([0, *ends], dtype=torch.int32, device=DEVICE)
    got = attend(q, k, v, spans, 130, causal=causal)
    for start, end in zip(ends - lengths, ends, strict=True):
        query, key, value = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, enable_gqa=key_heads != 4
        )
        torch.testing.assert_close(
            got[start:end].double(), expected.transpose(0, 1).flatten(1), atol=2e-3, rtol=2e-3
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_added_by_distance_follows_the_definition_and_ends_with_its_table(dtype):
    from nimbed.local.kernels.varlen_attention import attend

    lengths = [70, 1, 100, 150]  # the last is padding, longer than any text may be
    generator = torch.Generator().manual_seed(5)
    q, k, v = (
        torch.randn(sum(lengths), 3, 2, 32, generator=generator)
        .to(DEVICE, torch.float16)
        .unbind(dim=1)
    )
    added = torch.randn(2, 2 * 100 - 1, generator=generator).to(DEVICE, dtype)
    ends = np.cumsum(lengths)
    spans = torch.tensor([0, *ends], dtype=torch.int32, device=DEVICE)
    got = attend(q, k, v, spans, 150, added=added)
    assert got.isfinite().all()
    for start, end in list(zip(ends - lengths, ends, strict=True))[:-1]:
        query, key, value = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        place = torch.arange(end - start, device=DEVICE)
        bias = added.double()[:, 99 + place[None] - place[:, None]]
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias
        )
        torch.testing.assert_close(
            got[start:end].double(), expected.transpose(0, 1).flatten(1), atol=3e-3, rtol=3e-3
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 20, 200])
def test_attention_through_a_window_follows_the_definition(window, causal):
    from nimbed.local.kernels.varlen_attention import attend

    lengths = [70, 1, 150]
    generator = torch.Generator().manual_seed(window)
    q, k, v = (
        torch.randn(sum(lengths), 3, 2, 32, generator=generator)
        .to(DEVICE, torch.float16)
        .unbind(dim=1)
    )
    ends = np.cumsum(lengths)
    spans = torch.tensor([0, *ends], dtype=torch.int32, device=DEVICE)
    got = attend(q, k, v, spans, 150, causal=causal, window=window)
    for start, end in zip(ends - lengths, ends, strict=True):
        query, key, value = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        place = torch.arange(end - start, device=DEVICE)
        ahead = place[None] - place[:, None]
        expected = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=(ahead >= -window) & (ahead <= (0 if causal else window)),
        )
        torch.testing.assert_close(
            got[start:end].double(), expected.transpose(0, 1).flatten(1), atol=2e-3, rtol=2e-3
        )
