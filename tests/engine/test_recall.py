from __future__ import annotations

import pytest
from tests.benchmarks.bench_recall import recalls


@pytest.fixture(scope="module")
def kept():
    return recalls(3000, asked="first sentences")


def test_int8_keeps_the_float_order(kept):
    assert kept["int8"] >= 0.99
    assert kept["uint8"] >= 0.99


def test_bits_rescored_by_float_keep_nearly_all_of_it(kept):
    assert kept["ubinary, rescored over 8x"] >= 0.97
    assert kept["ubinary"] < kept["ubinary, rescored over 4x"] <= 1
