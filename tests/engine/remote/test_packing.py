"""Packed bits: by the server where it packs as nimbed does, else here."""

from __future__ import annotations

import numpy as np
import pytest

from .double import vectors
from .players import nim

LLAMA = "nvidia/llama-nemotron-embed-1b-v2"


def passages(count):
    return [f"passage number {row}" for row in range(count)]


@pytest.mark.parametrize("embedding_type", ["ubinary", "binary"])
@pytest.mark.parametrize("dimensions", [None, 512])
def test_packed_bits_are_asked_for_where_the_server_packs_alike(
    serve, connect, embedding_type, dimensions
):
    double = serve(nim(LLAMA, 2048, matryoshka=True, types=["float", "ubinary"]))
    embedder = connect(double, LLAMA)
    packed = embedder.embed(
        passages(300), input_type="passage", embedding_type=embedding_type, dimensions=dimensions
    )
    assert sum(post.json.get("embedding_type") == "ubinary" for post in double.posts) == 4
    plainly = connect(serve(nim(LLAMA, 2048, matryoshka=True)), LLAMA).embed(
        passages(300), input_type="passage", embedding_type=embedding_type, dimensions=dimensions
    )
    np.testing.assert_array_equal(packed.vectors, plainly.vectors)
    assert packed.spec == plainly.spec


@pytest.mark.parametrize(
    "player",
    [
        nim(LLAMA, 2048),
        nim(LLAMA, 2048, types=["float", "ubinary"], reverse_bits=True),
        nim(LLAMA, 2048, types=["float", "ubinary"], forbids=["embedding_type"]),
    ],
)
def test_bits_are_packed_here_where_the_server_cannot_or_packs_otherwise(serve, connect, player):
    double = serve(player)
    batch = connect(double, LLAMA).embed(
        passages(300), input_type="passage", embedding_type="ubinary"
    )
    floats = vectors([f"passage: {text}" for text in passages(300)], 2048)
    np.testing.assert_array_equal(batch.vectors, np.packbits(floats > 0, axis=1))


def test_a_few_queries_are_not_worth_a_check_of_bits(serve, connect):
    double = serve(nim(LLAMA, 2048, types=["float", "ubinary"]))
    connect(double, LLAMA).embed(["a"], input_type="query", embedding_type="ubinary")
    assert len(double.posts) == 1
