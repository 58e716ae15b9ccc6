from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nimbed.local.norms import LayerNorm, RmsNorm

WIDTH = 48


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_in_parts_has_the_bits_of_the_whole(rows, dtype):
    x, weight = drawn(rows, WIDTH).to(dtype) * 30, drawn(WIDTH).to(dtype)
    expected = F.rms_norm(x, weight.shape, weight, 1e-5)
    assert torch.equal(RmsNorm(weight, 1e-5)(x), expected)


def test_norms_are_their_formulas():
    x, weight, bias = drawn(300, WIDTH) + 2, drawn(WIDTH), drawn(1, WIDTH)[0]
    exact = x.double().numpy()
    squares = np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        RmsNorm(weight, 1e-5)(x), exact / squares * weight.numpy(), atol=1e-5
    )
    centred = exact - exact.mean(1, keepdims=True)
    spread = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)
    expected = centred / spread * weight.numpy() + bias.numpy()
    np.testing.assert_allclose(LayerNorm(weight, bias, 1e-6)(x), expected, atol=1e-5)
