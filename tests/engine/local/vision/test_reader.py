"""Images through the engine: remembered, batched, shared among threads, short of memory."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from tests.engine.local.families import load
from tests.engine.local.vl_checkpoint import tiny_vl
from tests.engine.local.vl_inputs import ITEMS, embed, nimbed_input
from tests.engine.pictures import encoded, picture

from nimbed.errors import InputError
from nimbed.images import Image
from nimbed.local.models.nemotron_vl import NemotronVL
from nimbed.local.vision import tiles
from nimbed.options import EmbedOptions
from nimbed.scheduling import Scheduler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vl(tmp_path_factory.mktemp("vl") / "model")


@pytest.fixture
def decoded(monkeypatch):
    """Every image that is decoded, in order."""
    seen = []

    def counting(image, grid, side):
        seen.append(image.digest)
        return cut(image, grid, side)

    cut = tiles.cut
    monkeypatch.setattr(tiles, "cut", counting)
    return seen


def test_a_known_picture_is_not_looked_at_again(folder, decoded):
    embedder, image = load(folder), Image(picture((64, 100)))
    first = embed(embedder, [image]).vectors
    again = embed(embedder, [("what is this", image), image])
    assert len(decoded) == 1
    assert np.abs(again.vectors[1] - first[0]).max() <= 1e-6


def test_old_pictures_are_forgotten(folder, decoded):
    embedder = load(folder)
    embedder.warmup()
    (engine,) = embedder._loaded.engines
    a, b = (Image(picture((20, 20), seed)) for seed in (0, 1))
    engine._images._room = 4 * 32 * 4  # one tile: four states of 32 floats
    for image in (a, a, b, a):
        embed(embedder, [image])
    assert decoded == [a.digest, b.digest, a.digest]


def test_large_calls_go_through_many_batches_and_replicas(folder):
    items = [*ITEMS, *(picture((20, 20), seed) for seed in range(20, 40))]
    inputs = [nimbed_input(item) for item in items]
    whole = embed(load(folder), inputs)
    for devices in (["cpu"], ["cpu", "cpu"]):
        embedder = load(folder, device="auto", devices=devices)
        embedder.warmup()
        for engine in embedder._loaded.engines:
            engine.budget = 40  # many batches of a few rows
        done = []
        batch = embed(embedder, inputs, progress=lambda some, _, done=done: done.append(some))
        assert np.abs(batch.vectors - whole.vectors).max() <= 1e-6
        assert done[-1] == len(items)
        assert len(done) > 10


def test_memory_exhaustion_in_the_tower_halves_the_batch(folder, monkeypatch):
    inputs = [nimbed_input(item) for item in ITEMS]
    wanted = embed(load(folder), inputs).vectors
    states, failures = NemotronVL.image_states, []

    def scarce(self, tiles):
        if len(tiles) > 7:
            failures.append(len(tiles))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return states(self, tiles)

    monkeypatch.setattr(NemotronVL, "image_states", scarce)
    assert np.abs(embed(load(folder), inputs).vectors - wanted).max() <= 1e-6
    assert failures


def test_threads_and_async_calls_agree(folder):
    vl = load(folder)
    inputs = [nimbed_input(item) for item in ITEMS]
    wanted = embed(vl, inputs).vectors
    with ThreadPoolExecutor(4) as pool:
        for batch in pool.map(lambda _: embed(vl, inputs), range(4)):
            assert np.abs(batch.vectors - wanted).max() <= 1e-6
    batch = asyncio.run(vl.aembed(inputs, input_type="passage"))
    assert np.abs(batch.vectors - wanted).max() <= 1e-6


def test_a_damaged_image_fails_its_own_caller_alone(folder):
    image, texts = Image(picture((64, 100))), ["what is this", "a cat"]
    broken = Image(encoded(PIL.Image.new("RGB", (40, 40), "red"), "BMP")[:200])
    embedder = load(folder)
    wanted = embed(embedder, [image, *texts]).vectors
    with Scheduler(embedder) as scheduler:
        futures = [
            scheduler.submit(inputs, EmbedOptions(input_type="passage"))
            for inputs in ([image, *texts], ["a text", broken], [image, *texts])
        ]
        with pytest.raises(InputError, match="row 1: image is damaged") as caught:
            futures[1].result(30)
        assert caught.value.rows == (1,)
        for future in (futures[0], futures[2]):
            assert np.abs(future.result(30).vectors - wanted).max() <= 1e-6
