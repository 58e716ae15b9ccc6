"""The forward passes on a device that is not the host, as far as this is seen without one.

Tensors on ``meta`` have shapes and no values. So a pass that leaves a tensor behind on the host,
waits for a value (which a CUDA graph cannot record), or calls torch's own variable-length kernel
wrongly fails here as it would on CUDA. What it computes, ``test_gpu.py`` says.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from tests.engine.local.families import FAMILIES
from tests.engine.local.mistral3_checkpoint import tiny_mistral3
from tests.engine.local.vl_checkpoint import tiny_vl

from nimbed.local.attention import ByVarlen, by_length
from nimbed.local.batching import Layout
from nimbed.local.checkpoint import read_checkpoint
from nimbed.local.device import Placement
from nimbed.local.hub import locate
from nimbed.local.models import bert, gemma3, llama, modernbert, rotary_bert
from nimbed.local.models.registry import MODELS
from nimbed.local.pooling import pool
from nimbed.local.vision import pixtral, siglip
from nimbed.local.weights import open_tensors

AWAY = torch.device("meta")
LENGTHS = [7, 5, 5, 1]

pytestmark = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(params=["varlen", "by_length"])
def attention(request, monkeypatch):
    def attend(placement, causal=False, window=None, bias=None, head_dim=None):
        if request.param == "by_length" or bias is not None:
            return functools.partial(by_length, causal=causal, window=window, bias=bias)
        attend = ByVarlen.if_available(causal=causal, window=window)
        assert attend is not None  # the tests' torch has the kernel
        return attend

    for module in (bert, gemma3, llama, modernbert, pixtral, rotary_bert, siglip):
        monkeypatch.setattr(module, "attention_for", attend)


def model(folder, dtype):
    read = read_checkpoint(locate(str(folder)), revision=None)
    with torch.inference_mode(), open_tensors(folder) as tensors:
        make = MODELS[read.card.architecture]
        return read.card, make(read.config, tensors, Placement(AWAY, dtype))


@pytest.mark.parametrize("skip", [None, [3, 0, 1, 0]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_model_stays_on_its_device_and_waits_for_nothing(
    family, dtype, skip, attention, tmp_path
):
    card, network = model(FAMILIES[family](tmp_path / "model"), dtype)
    with torch.inference_mode():
        layout = Layout.of(LENGTHS, AWAY, skip=skip)
        states = network(torch.zeros(layout.rows, dtype=torch.int64, device=AWAY), layout)
        vectors = pool(states, layout, card.pooling)
    assert (states.device, states.dtype) == (AWAY, dtype)
    assert (vectors.device, vectors.dtype) == (AWAY, torch.float32)
    assert vectors.shape == (len(LENGTHS), card.dimensions)


def test_a_vision_tower_stays_on_its_device_and_waits_for_nothing(dtype, attention, tmp_path):
    card, network = model(tiny_vl(tmp_path / "model"), dtype)
    side = json.loads((tmp_path / "model/config.json").read_text("utf-8"))["force_image_size"]
    with torch.inference_mode():
        states = network.image_states(torch.zeros(3, side, side, 3, dtype=torch.uint8))
    assert (states.device, states.dtype) == (AWAY, dtype)
    assert states.shape[0] % 3 == 0
    assert states.shape[1] == card.dimensions


def test_a_tower_for_images_of_any_size_does_so_too(dtype, attention, tmp_path):
    card, network = model(tiny_mistral3(tmp_path / "model"), dtype)
    images = [np.zeros((16, 24, 3), np.float32), np.zeros((8, 8, 3), np.float32)]
    with torch.inference_mode():
        states = network.read_images(images, budget=1000)
    assert [tuple(own.shape) for own in states] == [(6, card.dimensions), (1, card.dimensions)]
    assert {(own.device, own.dtype) for own in states} == {(AWAY, dtype)}
