from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import pytest

from nimbed.errors import ConfigurationError, InputError
from nimbed.images import Image

from .double import answer, error, vectors
from .players import E5, plain

VL = "nvidia/llama-nemotron-embed-vl-1b-v2"
WIDTH = 2048


def png(size: int = 4) -> bytes:
    """A grey PNG, written by the format's own rules."""

    def part(kind: bytes, data: bytes) -> bytes:
        checked = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checked

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x80" * size for _ in range(size)))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")


PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()


def test_images_travel_as_data_urls_and_say_what_they_are(serve, connect):
    double = serve(plain(WIDTH))
    inputs = ["a text", Image(png()), ("a caption", Image(png()))]
    batch = connect(double, VL).embed(inputs, input_type="passage")
    sent = ["a text", PICTURE, f"a caption\n{PICTURE}"]
    assert double.posts[0].texts == sent
    assert double.posts[0].json["modality"] == ["text", "image", "text_image"]
    np.testing.assert_allclose(batch.vectors, vectors(sent, WIDTH), atol=1e-6)


def test_a_text_that_mentions_a_data_url_stays_a_text(serve, connect):
    double = serve(plain(WIDTH))
    connect(double, VL).embed([PICTURE], input_type="query")
    assert double.posts[0].json["modality"] == "text"


def test_images_fill_requests_by_their_bytes(serve, connect):
    double = serve(plain(WIDTH))
    large = Image(png() + bytes(200_000))
    connect(double, VL).embed([large] * 4, input_type="passage")
    assert sorted(len(post.texts) for post in double.posts) == [1, 1, 1, 1]


def test_an_image_is_refused_by_a_model_and_by_a_server_without_eyes(serve, connect):
    double = serve(plain(WIDTH))
    with pytest.raises(ConfigurationError, match="embeds text"):
        connect(double, E5).embed([Image(png())], input_type="passage")
    with pytest.raises(ConfigurationError, match="speaks vllm takes no images"):
        connect(double, VL, dialect="vllm").embed([Image(png())], input_type="passage")
    with pytest.raises(InputError) as caught:
        connect(double, VL).embed(["a", Image(png())], input_type="query")
    assert caught.value.rows == (1,)
    assert not double.posts


def test_an_image_that_the_server_refuses_is_never_cut(serve, connect):
    def handle(request):
        if any(text.startswith("data:") for text in request.texts):
            return error("Input length 9000 exceeds maximum allowed token size 2048")
        return answer(vectors(request.texts, WIDTH))

    double = serve(handle)
    with pytest.raises(InputError) as caught:
        connect(double, VL).embed(["a", Image(png())], input_type="passage", truncate="END")
    assert caught.value.rows == (1,)
    assert all(PICTURE in post.texts or post.texts == ["a"] for post in double.posts)
