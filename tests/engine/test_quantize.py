from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sentence_transformers.util.quantization import quantize_embeddings

from nimbed.batch import (
    dequantize_int8,
    normalize,
    pack_bits,
    quantize,
    quantize_int8,
    signs_from_bits,
    slice_normalize,
)
from nimbed.errors import ConfigurationError
from nimbed.spec import VectorSpec

floats = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 8).map(lambda n: 8 * n)),
    elements=st.floats(-1, 1, width=32),
)


def spec_for(array, kind, **more):
    return VectorSpec.of(model="m", dimensions=array.shape[1], embedding_type=kind, **more)


@given(floats)
def test_packing_equals_numpy_and_sentence_transformers(array):
    bits = pack_bits(array)
    np.testing.assert_array_equal(bits, np.packbits(array > 0, axis=1))
    np.testing.assert_array_equal(bits, quantize_embeddings(array, precision="ubinary"))
    np.testing.assert_array_equal(
        quantize(array, spec_for(array, "binary")), quantize_embeddings(array, precision="binary")
    )


@given(floats)
def test_unpacked_bits_are_the_signs_of_the_floats(array):
    np.testing.assert_array_equal(signs_from_bits(pack_bits(array)), np.where(array > 0, 1, -1))


@given(floats)
def test_binary_is_ubinary_with_the_high_bit_flipped(array):
    signed = quantize(array, spec_for(array, "binary"))
    unsigned = quantize(array, spec_for(array, "ubinary"))
    assert (signed.dtype, unsigned.dtype) == (np.int8, np.uint8)
    np.testing.assert_array_equal(signed.view(np.uint8), unsigned ^ 0x80)
    np.testing.assert_array_equal(signed.astype(int), unsigned.astype(int) - 128)


@given(floats)
def test_hamming_distance_counts_the_disagreeing_signs(array):
    bits = pack_bits(array)
    for row in range(len(array)):
        counted = np.bitwise_count(bits[0] ^ bits[row]).sum()
        assert counted == ((array[0] > 0) != (array[row] > 0)).sum()


def test_packing_more_rows_than_a_block_loses_none():
    array = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
    np.testing.assert_array_equal(pack_bits(array), np.packbits(array > 0, axis=1))


@given(floats, st.sampled_from(["float", "int8", "uint8", "binary", "ubinary"]))
def test_the_code_of_a_row_does_not_depend_on_its_batch(array, kind):
    whole = quantize(array, spec_for(array, kind))
    for row in range(len(array)):
        np.testing.assert_array_equal(
            quantize(array[row : row + 1], spec_for(array, kind))[0], whole[row]
        )


def test_the_nim_scale_reproduces_nims_published_sample():
    sample = np.array([[0.012519836, -0.0126571655, 0.0101623535]], np.float32)
    codes = quantize_int8(sample, scale="nim", step=1 / 127)
    np.testing.assert_array_equal(codes, [[1, -1, 1]])


@given(floats, st.sampled_from(["nim", "even"]))
def test_int8_codes_follow_their_formula(array, scale):
    spec = spec_for(array, "int8", int8_scale=scale)
    codes = quantize(array, spec)
    if scale == "nim":
        expected = np.trunc(127 * array.astype(np.float64))
    else:
        expected = np.rint(array.astype(np.float64) * 127 * np.sqrt(array.shape[1]) / 4)
    np.testing.assert_allclose(codes, np.clip(expected, -127, 127), atol=1)
    # One level of slack for products that fall on a border, and then in few places.
    assert (codes != np.clip(expected, -127, 127)).mean() <= 0.1
    unsigned = quantize(array, spec_for(array, "uint8", int8_scale=scale))
    np.testing.assert_array_equal(unsigned.astype(int), codes.astype(int) + 128)


def test_the_even_scale_keeps_wide_vectors_better_than_nims():
    vectors = normalize(np.random.default_rng(1).standard_normal((200, 2048)))
    error = {}
    for scale in ("nim", "even"):
        spec = spec_for(vectors, "int8", int8_scale=scale)
        back = dequantize_int8(quantize(vectors, spec), step=spec.int8_step or 0)
        error[scale] = 1 - (normalize(back) * vectors).sum(1).min()
    assert error["even"] < 1e-3 < error["nim"]


@given(floats)
def test_normalizing_equals_numpys_and_leaves_zero_rows(array):
    unit = normalize(array)
    norms = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    expected = np.divide(array, norms, out=np.zeros(array.shape), where=norms > 0)
    np.testing.assert_allclose(unit, expected, atol=1e-6)
    assert unit.dtype == np.float32


def test_huge_components_do_not_overflow():
    unit = normalize(np.full((1, 4), 3e38, np.float32))
    np.testing.assert_allclose(unit, 0.5)


def test_slicing_comes_before_normalizing():
    vectors = normalize(np.random.default_rng(2).standard_normal((5, 64)))
    sliced = slice_normalize(vectors, 16)
    np.testing.assert_allclose(np.linalg.norm(sliced, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(sliced, normalize(vectors[:, :16]), atol=1e-7)
    with pytest.raises(ConfigurationError, match="cannot take 65 dimensions of 64"):
        slice_normalize(vectors, 65)


def test_rows_of_another_width_than_the_spec_are_refused():
    array = np.zeros((2, 16), np.float32)
    with pytest.raises(ConfigurationError, match="rows of 8 dimensions"):
        quantize(array, VectorSpec.of(model="m", dimensions=8))
    with pytest.raises(ConfigurationError, match="multiples of 8"):
        pack_bits(np.zeros((2, 12)))
