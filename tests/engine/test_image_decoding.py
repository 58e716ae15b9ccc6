"""What an image file shows, against Pillow's and numpy's own reading of it."""

from __future__ import annotations

import io
import random
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.ImageSequence
import pytest
from tests.engine.pictures import FORMATS, LOSSLESS, drawing, encoded, pixels

from nimbed import images
from nimbed.errors import InputError
from nimbed.images import Image

# --- what a viewer shows ------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_turns_an_image_as_a_viewer_would(tmp_path, kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    path.write_bytes(encoded(drawing(), kind, exif=exif, **LOSSLESS.get(kind, {})))
    with PIL.Image.open(path) as stored:
        upright = PIL.ImageOps.exif_transpose(stored).convert("RGB")
    image = Image(path)
    assert image.size == upright.size == ((24, 16) if orientation < 5 else (16, 24))
    assert np.array_equal(pixels(image), np.asarray(upright))
    with PIL.Image.open(path) as stored:
        assert np.array_equal(pixels(Image(stored)), np.asarray(upright))


def test_a_pil_image_that_the_caller_turned_is_not_turned_again():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    with PIL.Image.open(io.BytesIO(encoded(drawing(), "PNG", exif=exif))) as stored:
        turned = stored.transpose(PIL.Image.Transpose.ROTATE_270)
    assert np.array_equal(pixels(Image(turned)), np.asarray(turned))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_data_does_not_spoil_an_image(exif):
    data = encoded(drawing(), "JPEG")
    marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    image = Image(data[:2] + marker + data[2:])
    assert np.array_equal(pixels(image), pixels(Image(data)))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind in ("PNG", "JPEG", "TIFF") for mode in ("1", "L")]
    + [("PNG", "P"), ("TIFF", "P"), ("JPEG", "CMYK"), ("TIFF", "CMYK"), ("JPEG", "YCbCr")],
)
def test_every_colour_model_becomes_rgb(kind, mode):
    picture = drawing(mode=mode)
    data = encoded(picture, kind)
    with PIL.Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(stored.convert("RGB"))
    assert np.array_equal(pixels(Image(data)), expected)
    close = np.abs(expected.astype(int) - np.asarray(picture.convert("RGB"))).mean()
    assert close < 40  # CMYK is not inverted, a palette not read as grey


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode):
    picture = drawing(mode=mode)
    alpha = np.tile(np.linspace(0, 255, 24).astype(np.uint8), (16, 1))
    picture.putalpha(PIL.Image.fromarray(alpha))
    opaque = np.asarray(picture.convert("RGB"), np.float64)
    share = alpha[..., None] / 255
    blended = opaque * share + 255 * (1 - share)
    for source in (encoded(picture), picture):
        assert np.abs(pixels(Image(source)) - blended).max() <= 1
    assert (pixels(Image(picture))[:, 0] == 255).all()


def test_transparent_palettes_show_white():
    picture = PIL.Image.new("P", (4, 4), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 1), 1)
    for kind in ("PNG", "GIF"):
        shown = pixels(Image(encoded(picture, kind, transparency=0)))
        assert shown[1, 1].tolist() == [255, 0, 0]
        assert shown[0, 0].tolist() == [255, 255, 255]


def test_an_opaque_alpha_channel_changes_nothing():
    assert np.array_equal(pixels(Image(encoded(drawing(mode="RGBA")))), np.asarray(drawing()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_shades(kind):
    deep = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
    for source in (encoded(PIL.Image.fromarray(deep), kind), PIL.Image.fromarray(deep)):
        shown = pixels(Image(source))
        assert np.array_equal(shown, np.repeat((deep // 256)[..., None], 3, axis=2))


def test_big_endian_sixteen_bits_keep_their_shades():
    deep = np.array([[0, 256, 65535]], np.uint16)
    data = encoded(PIL.Image.fromarray(deep), "TIFF")
    swapped = PIL.Image.frombytes("I;16B", (3, 1), deep.astype(">u2").tobytes())
    assert pixels(Image(swapped)).tolist() == pixels(Image(data)).tolist()
    assert pixels(Image(swapped))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_white_are_refused(mode):
    with pytest.raises(InputError, match="white is not defined"):
        Image(encoded(drawing(mode="L").convert(mode), "TIFF")).rgb()


# --- several pictures in one file ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_and_pages_are_refused_and_their_frames_are_not(kind):
    frames = [drawing(seed=seed) for seed in range(3)]
    options = LOSSLESS.get(kind, {})
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    for look in (lambda: Image(data).size, Image(data).rgb):
        with pytest.raises(InputError, match="holds several frames or pages; embed each"):
            look()
    with PIL.Image.open(io.BytesIO(data)) as opened:
        each = [Image(frame) for frame in PIL.ImageSequence.Iterator(opened)]
    assert len(each) == 3
    for image, frame in zip(each, frames, strict=True):
        assert np.abs(pixels(image).astype(int) - np.asarray(frame)).mean() < 4


def test_the_preview_inside_a_photograph_is_no_second_frame():
    data = encoded(drawing(), "MPO", save_all=True, append_images=[drawing(12, 8)])
    assert np.array_equal(pixels(Image(data)), pixels(Image(encoded(drawing(), "JPEG"))))


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = encoded(PIL.Image.fromarray(noise), kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(InputError, match="damaged or cut short"):
            Image(data[: int(len(data) * share)]).rgb()


@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_never_escapes_as_another_error(kind):
    data = bytearray(encoded(drawing(), kind))
    dice = random.Random(kind)
    for _ in range(150):
        broken = bytearray(data[: dice.randint(4, len(data))])
        for _ in range(dice.randint(0, 6)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        try:
            assert Image(bytes(broken)).rgb().mode == "RGB"
        except InputError:
            continue


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "scan 7.png"
    path.write_bytes(encoded(drawing())[:60])
    with pytest.raises(InputError, match=r"scan 7\.png' is damaged or cut short"):
        Image(path).rgb()


# --- what many cost together -------------------------------------------------------------------


@pytest.mark.parametrize(("side", "together"), [(64, 2), (128, 1)])
def test_no_more_pixels_are_decoded_at_once_than_one_image_may_have(monkeypatch, side, together):
    at_once, most = 0, 0
    own = images._to_rgb

    def watched(file):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        return own(file)

    monkeypatch.setattr(images, "_to_rgb", watched)
    monkeypatch.setattr(images, "_DECODED_AT_ONCE", 2 * 64 * 128)
    data = encoded(drawing(side, 128, "RGBA"))
    with ThreadPoolExecutor(6) as pool:
        decoded = list(pool.map(lambda _: Image(data).rgb(), range(6)))
    assert {image.size for image in decoded} == {(side, 128)}
    assert most == together
