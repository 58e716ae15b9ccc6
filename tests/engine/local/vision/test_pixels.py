from __future__ import annotations

import multiprocessing

import numpy as np
import PIL.Image
import pytest
import torch
from tests.engine.pictures import picture

from nimbed.images import Image
from nimbed.local.vision.siglip import patches
from nimbed.local.vision.tiles import Grid, cut, decoders


@pytest.mark.parametrize("size", [(90, 70), (1, 1), (300, 3), (64, 64)])
@pytest.mark.parametrize("grid", [Grid(3, 2, True), Grid(1, 1, False), Grid(1, 4, False)])
def test_tiles_are_pillows_own_crops(size, grid):
    source, side = picture(size), 32
    whole = source.resize((grid.columns * side, grid.rows * side), PIL.Image.Resampling.BICUBIC)
    boxes = [
        (x * side, y * side, (x + 1) * side, (y + 1) * side)
        for y in range(grid.rows)
        for x in range(grid.columns)
    ]
    expected = [np.asarray(whole.crop(box)) for box in boxes]
    if grid.thumbnail:
        expected.append(np.asarray(source.resize((side, side), PIL.Image.Resampling.BICUBIC)))
    tiles = cut(Image(source), grid, side)
    assert tiles.dtype == np.uint8
    assert np.array_equal(tiles, np.stack(expected))


def test_patches_times_a_weight_are_a_convolution():
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (2, 32, 32, 3), generator=generator, dtype=torch.uint8)
    kernel = torch.randn((5, 3, 8, 8), generator=generator)
    values = (tiles.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    expected = torch.nn.functional.conv2d(values, kernel.double(), stride=8)
    found = patches(tiles, 8, torch.float32) @ kernel.flatten(1).T
    found = found.view(2, 4, 4, 5).permute(0, 3, 1, 2)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert torch.equal(tiles, tiles.clone())


def test_every_level_survives_normalisation_in_float32():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    values = patches(levels.contiguous(), 16, torch.float32)
    assert values.min() == -1
    assert values.max() == 1
    assert len(values.unique()) == 256


def _decode_in_a_child(queue):
    queue.put(decoders().submit(sum, [1, 2]).result(timeout=20))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_threads_of_its_own():
    assert decoders().submit(sum, [1, 2]).result() == 3
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_decode_in_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == 3
    child.join(30)
