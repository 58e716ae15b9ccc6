from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nimbed.local.batching import Layout, padded_total
from nimbed.local.device import Placement, place
from nimbed.local.linear import _Plain, dense
from nimbed.local.plan import micro_batches
from nimbed.local.pooling import pool

CPU = torch.device("cpu")
lengths = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(lengths, st.integers(1, 400))
def test_a_plan_holds_every_row_once_and_keeps_its_budget(counts, budget):
    plan = [rows.tolist() for rows in micro_batches(counts, budget=budget)]
    assert sorted(row for rows in plan for row in rows) == list(range(len(counts)))
    for rows in plan:
        assert sum(counts[row] for row in rows) <= budget or len(rows) == 1
    order = [counts[row] for rows in plan for row in rows]
    assert order == sorted(counts, reverse=True)


@given(lengths, st.integers(1, 400))
def test_a_plan_does_not_split_what_fits_together(counts, budget):
    plan = list(micro_batches(counts, budget=budget))
    for left, right in itertools.pairwise(plan):
        assert sum(counts[row] for row in left) + counts[right[0]] > budget


def test_no_rows_need_no_plan():
    assert list(micro_batches([], budget=10)) == []


@pytest.mark.parametrize(
    ("device", "amx", "most"), [(None, False, 15), (CPU, True, 15), (CPU, False, 3)]
)
@given(tokens=st.integers(1, 100_000))
def test_padding_is_small_and_sizes_are_few(tokens, device, amx, most):
    with mock.patch("nimbed.local.batching.has_amx", return_value=amx):
        padded = padded_total(tokens, device)
        assert tokens <= padded <= max(tokens + most, 1.25 * tokens)
        assert padded_total(padded, device) == padded


@given(lengths)
def test_a_layout_says_where_each_sequence_lies(counts):
    layout = Layout.of(counts, CPU)
    ends = np.cumsum(counts)
    assert layout.offsets.tolist() == [0, *ends.tolist()]
    assert layout.starts.tolist() == (ends - counts).tolist()
    assert layout.tokens == ends[-1]
    assert layout.rows == padded_total(layout.tokens, CPU)
    expected = np.concatenate([np.arange(n) for n in counts])
    np.testing.assert_array_equal(layout.positions[: layout.tokens].numpy(), expected)
    covered = [g.length for g in layout.groups for _ in range(g.sequences)]
    assert covered == counts
    assert layout.longest == max(counts)


@given(lengths)
def test_pooling_equals_numpy_a_sequence_at_a_time(counts):
    layout = Layout.of(counts, CPU)
    hidden = torch.randn(layout.rows, 5)
    parts = np.split(hidden[: layout.tokens].numpy(), np.cumsum(counts)[:-1])
    np.testing.assert_allclose(
        pool(hidden, layout, "mean").numpy(), [part.mean(0) for part in parts], atol=1e-5
    )
    np.testing.assert_array_equal(pool(hidden, layout, "cls").numpy(), [part[0] for part in parts])


def test_pooling_sums_in_float32():
    layout = Layout.of([512], CPU)
    hidden = torch.full((layout.rows, 2), 1.0, dtype=torch.bfloat16)
    hidden[0] = 200.0
    mean = pool(hidden, layout, "mean")
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, torch.full((1, 2), (200 + 511) / 512))


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("biased", [True, False])
def test_prepared_products_equal_plain_ones(dtype, off, rows, biased):
    torch.manual_seed(rows)
    weight, bias = torch.randn(48, 32) / 6, torch.randn(48) if biased else None
    x, residual = torch.randn(rows, 32).to(dtype), torch.randn(rows, 48).to(dtype)
    ours = dense(weight, bias, Placement(CPU, dtype))
    plain = _Plain(weight.to(dtype), None if bias is None else bias.to(dtype))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), plain(x), atol=off, rtol=off)
        torch.testing.assert_close(ours.gelu(x), plain.gelu(x), atol=off, rtol=off)
        torch.testing.assert_close(ours.gelu_tanh(x), plain.gelu_tanh(x), atol=off, rtol=off)
        torch.testing.assert_close(
            ours.plus(x, residual), plain.plus(x, residual), atol=off, rtol=off
        )


def test_the_device_and_dtype_are_resolved_in_one_place():
    assert place("cpu", "float32") == Placement(CPU, torch.float32)
    assert place("cpu").dtype in (torch.float32, torch.bfloat16)
    assert place("auto", "float16").dtype == torch.float16


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu", "auto", "device must be auto, cpu, cuda"),
        ("meta", "auto", "device must be"),
        ("cuda:99", "auto", "sees .* CUDA devices"),
        ("cpu", "int8", "dtype must be one of auto, float32"),
    ],
)
def test_a_device_or_dtype_that_does_not_exist_is_refused(device, dtype, message):
    from nimbed.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match=message):
        place(device, dtype)
