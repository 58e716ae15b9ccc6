"""What a vision-language model is shown in the tests, and what it should answer."""

from __future__ import annotations

from tests.engine.local.vl_checkpoint import context
from tests.engine.pictures import picture

from nimbed.images import Image

SIZES = {(20, 20): (1, 1), (100, 64): (3, 2), (64, 100): (2, 3), (1, 1): (1, 1), (64, 64): (2, 2)}


def embed(embedder, inputs, **options):
    return embedder.embed(inputs, **{"input_type": "passage", **options})


def expected(oracle, item):
    """Embed a text, a PIL image or a (text, PIL image) pair by the published recipe."""
    if isinstance(item, str):
        return oracle.vector(f"passage: {item}")
    text, image = item if isinstance(item, tuple) else ("", item)
    grid = SIZES[image.size]
    tiles = oracle.tiles(image, grid, thumbnail=grid != (1, 1))
    return oracle.vector(f"passage: {context(len(tiles))} {text}", tiles)


def nimbed_input(item):
    if isinstance(item, str):
        return item
    return (item[0], Image(item[1])) if isinstance(item, tuple) else Image(item)


ITEMS = [
    "what is a vector",
    *(picture(size, seed) for seed, size in enumerate(SIZES)),
    ("what is this", picture((64, 100), 7)),
    ("a sleeps by the river " * 5, picture((20, 20), 8)),
]
