from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.engine.local.vl_checkpoint import SIDE, VISION_WIDTH, Oracle, tiny_vl

from nimbed.errors import CheckpointError
from nimbed.local.device import place
from nimbed.local.vision.siglip import Siglip
from nimbed.local.weights import open_tensors


def tiles(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


def tower(folder, config, dtype="float32"):
    with open_tensors(folder) as tensors:
        return Siglip(config["vision_config"], tensors, place("cpu", dtype))


def theirs(oracle, images):
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        return oracle.tower(pixels).last_hidden_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vl(tmp_path_factory.mktemp("vl") / "model")


@pytest.fixture(scope="module")
def oracle(folder):
    return Oracle(folder)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_it_equals_transformers(folder, oracle, count):
    images = tiles(count)
    found = tower(folder, oracle.config)(images)
    assert found.shape == (count, 4, 4, VISION_WIDTH)
    assert (found.flatten(1, 2) - theirs(oracle, images)).abs().max() <= 1e-5


def test_both_layouts_of_the_keys_are_read(folder, oracle, tmp_path):
    flat = tiny_vl(tmp_path / "flat", nested=False)
    images = tiles(2)
    assert torch.equal(tower(flat, oracle.config)(images), tower(folder, oracle.config)(images))


def test_a_tile_does_not_depend_on_its_neighbours(folder, oracle):
    images, model = tiles(5), tower(folder, oracle.config)
    alone = torch.cat([model(images[row : row + 1]) for row in range(5)])
    assert (model(images) - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precisions_stay_close(folder, oracle, dtype):
    images = tiles(4)
    found = tower(folder, oracle.config, dtype)(images).float().flatten(1)
    exact = theirs(oracle, images).flatten(1)
    assert torch.cosine_similarity(found, exact).min() >= 0.999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"patch_size": 7}, "does not come out even"),
        ({"num_attention_heads": 5}, "does not come out even"),
        ({"num_hidden_layers": 3}, "lacks the tensor encoder.layers.2"),
        ({"intermediate_size": 41}, "has shape"),
        ({"image_size": 40}, "has shape"),
        ({"hidden_size": None}, "hidden_size None"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, oracle, changes, message):
    config = {"vision_config": {**oracle.config["vision_config"], **changes}}
    with pytest.raises(CheckpointError, match=message):
        tower(folder, config)


def test_the_oracle_sees_the_order_of_patches(oracle):
    # Guards the tests above: a tower that ignored positions would pass them on flat images.
    images = tiles(1)
    moved = torch.roll(images, 8, dims=1)
    assert not np.allclose(theirs(oracle, images), theirs(oracle, moved), atol=1e-2)
