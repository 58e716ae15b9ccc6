from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.local.varlen import varlen

from nimbed.local.attention import ByVarlen, DistanceBias, attention_for, by_length
from nimbed.local.attention_rectangles import ByRectangle, rectangles
from nimbed.local.batching import Layout
from nimbed.local.device import Placement

LENGTHS = [19, 19, 7, 7, 7, 1, 33]


def reference(q, k, v, lengths, *, causal=False, window=None, added=None):
    """Attend in float64, a sequence at a time, by the definition."""
    out, start = torch.zeros(q.shape, dtype=torch.float64), 0
    share = q.shape[1] // k.shape[1]
    for length in lengths:
        rows = slice(start, start + length)
        for head in range(q.shape[1]):
            key = k[rows, head // share].double()
            scores = q[rows, head].double() @ key.T / q.shape[2] ** 0.5
            ahead = torch.arange(length)[None] - torch.arange(length)[:, None]
            if added is not None:
                scores += added[head][ahead + added.shape[1] // 2]
            if causal:
                scores = scores.masked_fill(ahead > 0, float("-inf"))
            if window is not None:
                scores = scores.masked_fill(ahead.abs() > window, float("-inf"))
            out[rows, head] = torch.softmax(scores, -1) @ v[rows, head // share].double()
        start += length
    return out.flatten(1)


def tensors(key_heads, dtype, scale=1.0, lengths=LENGTHS):
    layout = Layout.of(lengths, torch.device("cpu"))
    torch.manual_seed(0)
    # One fused projection, as the models hand it over: the views are not contiguous.
    fused = (scale * torch.randn(layout.rows, 4 + 2 * key_heads, 8)).to(dtype)
    return *fused.split([4, key_heads, key_heads], dim=1), layout


@pytest.mark.parametrize("attend", [ByRectangle(), by_length])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_every_implementation_follows_the_definition(attend, key_heads, dtype, off):
    q, k, v, layout = tensors(key_heads, dtype)
    got = attend(q, k, v, layout)
    assert got.shape == (layout.rows, 32)
    torch.testing.assert_close(
        got[: layout.tokens].double(),
        reference(q, k, v, LENGTHS)[: layout.tokens],
        atol=off,
        rtol=off,
    )
    assert not got[layout.tokens :].any()


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [[1900], [1500, 1500, 40], [500] * 5])
def test_sequences_whose_scores_do_not_fit_the_cache_follow_it_too(key_heads, lengths):
    q, k, v, layout = tensors(key_heads, torch.float32, lengths=lengths)
    expected = reference(q, k, v, lengths)[: layout.tokens]
    got = ByRectangle()(q, k, v, layout)[: layout.tokens].double()
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_scores_beyond_the_range_of_exp_fall_back_to_a_shifted_softmax(scale):
    q, k, v, layout = tensors(4, torch.float32, scale)
    got = ByRectangle()(q, k, v / scale, layout)
    expected = reference(q, k, v / scale, LENGTHS)
    torch.testing.assert_close(
        got[: layout.tokens].double(), expected[: layout.tokens], atol=1e-4, rtol=1e-4
    )


def test_a_sequence_beyond_the_range_of_exp_changes_no_bit_of_its_neighbours():
    lengths = [40, 38, 37, 36]
    layout = Layout.of(lengths, torch.device("cpu"))
    torch.manual_seed(2)
    q, k, v = (3 * torch.randn(layout.rows, 3, 4, 8)).unbind(1)
    expected = ByRectangle()(q, k, v, layout)
    q[78:115] *= 1000  # the third
    got = ByRectangle()(q, k, v, layout)
    torch.testing.assert_close(
        got[78:115].double(), reference(q, k, v, lengths)[78:115], atol=1e-4, rtol=1e-4
    )
    others = [*range(78), *range(115, layout.rows)]
    assert torch.equal(got[others], expected[others])


def test_inputs_are_left_as_they_were():
    q, k, v, layout = tensors(1, torch.bfloat16)
    before = [x.clone() for x in (q, k, v)]
    ByRectangle()(q, k, v, layout)
    for x, old in zip((q, k, v), before, strict=True):
        torch.testing.assert_close(x, old, atol=0, rtol=0)


def test_float32_on_the_cpu_uses_the_fused_kernel():
    attend = attention_for(Placement(torch.device("cpu"), torch.float32))
    assert isinstance(attend, functools.partial)
    assert attend.func is by_length


@given(st.lists(st.integers(1, 80), min_size=1, max_size=40))
def test_windows_cover_every_row_once_and_never_look_across_a_border(lengths):
    lengths = sorted(lengths, reverse=True)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    covered = []
    for rectangle in rectangles(lengths):
        source = rectangle.source.numpy().reshape(rectangle.count, rectangle.length)
        for row in source:  # a window stays inside one sequence
            assert len(set(owner[row].tolist())) == 1
        target = source.reshape(-1)[rectangle.kept.numpy()]
        assert target.tolist() == list(range(rectangle.start, rectangle.stop))
        covered += target.tolist()
        inside = rectangle.inside
        inside = np.ones(source.shape) if inside is None else inside.numpy()[:, 0]
        for row, mask in zip(source, inside, strict=True):
            assert mask.sum() == lengths[owner[row[0]]]
    assert covered == list(range(sum(lengths)))


def test_windows_come_in_few_shapes():
    generator = np.random.default_rng(0)
    shapes = set()
    for _ in range(300):
        lengths = sorted(generator.integers(5, 257, size=generator.integers(1, 40)).tolist())
        shapes |= {(rectangle.count, rectangle.length) for rectangle in rectangles(lengths)}
    assert len(shapes) < 300


def test_a_mixed_batch_gives_the_rows_of_each_sequence_alone():
    lengths = [33, 31, 30, 18, 17, 6, 5, 5, 1]
    layout = Layout.of(lengths, torch.device("cpu"))
    torch.manual_seed(1)
    q, k, v = torch.randn(layout.rows, 3, 4, 8).unbind(1)
    together = ByRectangle()(q, k, v, layout)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        alone = Layout.of([length], torch.device("cpu"))
        padded = [torch.zeros(alone.rows, 4, 8) for _ in range(3)]
        for target, source in zip(padded, (q, k, v), strict=True):
            target[:length] = source[rows]
        torch.testing.assert_close(
            ByRectangle()(*padded, alone)[:length], together[rows], atol=1e-6, rtol=1e-6
        )
        start += length


@pytest.mark.parametrize("grouped", [True, False])
def test_the_variable_length_kernel_is_called_as_its_version_wants(grouped):
    """The kernel itself runs on CUDA alone; its calling convention is checked anywhere."""
    seen = {}

    def attend(q, k, v, offsets):
        seen.update(shapes=(q.shape, k.shape))
        fewer = q.shape[1] != k.shape[1]
        return varlen(q, k, v, offsets, offsets, 33, 33, enable_gqa=fewer)

    def newer(q, k, v, cu_q, cu_k, max_q, max_k, *, enable_gqa=False, num_splits=None):
        assert (num_splits, enable_gqa, max_q) == (1, True, 33)
        return attend(q, k, v, cu_q)

    def older(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
        assert (k.shape[1], max_k) == (2, 33)  # it takes grouped heads unasked
        return attend(q, k, v, cu_q)

    q, k, v, layout = tensors(2, torch.float32)
    got = ByVarlen(newer if grouped else older)(q, k, v, layout)
    own = slice(layout.tokens)
    torch.testing.assert_close(got[own], by_length(q, k, v, layout)[own], atol=1e-6, rtol=1e-6)
    assert seen["shapes"][0][0] == layout.rows  # the padding is a sequence of its own
    assert got.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_variable_length_kernel_follows_the_definition_on_cuda(key_heads, dtype):
    attend = ByVarlen.if_available()
    if attend is None:
        pytest.skip("this torch has no variable-length attention")
    q, k, v, _ = tensors(key_heads, dtype)
    layout = Layout.of(LENGTHS, torch.device("cuda"))
    got = attend(q.cuda(), k.cuda(), v.cuda(), layout)[: layout.tokens].cpu().double()
    expected = reference(q, k, v, LENGTHS)[: layout.tokens]
    torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_causal_token_sees_its_past_alone(key_heads, dtype):
    q, k, v, layout = tensors(key_heads, dtype)
    got = attention_for(Placement(torch.device("cpu"), dtype), causal=True)(q, k, v, layout)
    expected = reference(q, k, v, LENGTHS, causal=True)[: layout.tokens]
    off = 2e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got[: layout.tokens].double(), expected, atol=off, rtol=off)


@pytest.mark.parametrize("newer", [True, False])
def test_the_variable_length_kernel_is_told_that_it_is_causal(newer):
    seen = {}

    def with_window(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
        seen["how"] = window_size
        return q

    def with_flag(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
        seen["how"] = is_causal
        return q

    q, k, v, layout = tensors(4, torch.float32)
    ByVarlen(with_window if newer else with_flag, causal=True)(q, k, v, layout)
    assert seen["how"] == ((-1, 0) if newer else True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [4, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("window", "lengths"), [(6, LENGTHS), (6, [300, 141, 7, 1]), (0, [5])])
def test_a_window_hides_what_is_further_away(dtype, key_heads, causal, window, lengths):
    q, k, v, layout = tensors(key_heads, dtype, lengths=lengths)
    attend = attention_for(Placement(torch.device("cpu"), dtype), causal=causal, window=window)
    got = attend(q, k, v, layout)[: layout.tokens]
    expected = reference(q, k, v, lengths, causal=causal, window=window)[: layout.tokens]
    off = 2e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got.double(), expected, atol=off, rtol=off)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bias_for_the_distance_is_added_to_the_scores(dtype):
    q, k, v, layout = tensors(4, dtype)
    added = torch.randn(4, 2 * 40 - 1, generator=torch.Generator().manual_seed(3))
    attend = attention_for(Placement(torch.device("cpu"), dtype), bias=DistanceBias(added))
    expected = reference(q, k, v, LENGTHS, added=added)[: layout.tokens]
    off = 2e-6 if dtype == torch.float32 else 3e-2
    for _ in range(2):  # as two layers would
        got = attend(q, k, v, layout)[: layout.tokens]
        torch.testing.assert_close(got.double(), expected, atol=off, rtol=off)
    other = Layout.of([40, 3], torch.device("cpu"))
    q, k, v, other = tensors(4, dtype, lengths=[40, 3])
    torch.testing.assert_close(
        attend(q, k, v, other)[:43].double(),
        reference(q, k, v, [40, 3], added=added)[:43],
        atol=off,
        rtol=off,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_the_variable_length_kernel_is_told_the_window(causal):
    seen = {}

    def attend(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
        seen["window"] = window_size
        return q

    q, k, v, layout = tensors(4, torch.float32)
    ByVarlen(attend, causal=causal, window=6)(q, k, v, layout)
    assert seen["window"] == (6, 0 if causal else 6)
