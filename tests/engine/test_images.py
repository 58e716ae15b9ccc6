from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from tests.engine.pictures import FORMATS, drawing, encoded, pixels

from nimbed.errors import InputError
from nimbed.images import MAX_BYTES, Image


def png_header(width, height):
    """Return a PNG that only promises a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data
        chunks += struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


# --- what an image is made from -----------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_source_of_the_same_bytes_gives_the_same_image(tmp_path, kind):
    data = encoded(drawing(), kind)
    path = tmp_path / "an image"
    path.write_bytes(data)
    url = f"data:image/whatever;base64,{base64.b64encode(data).decode()}"
    images = [
        Image(source)
        for source in (
            data,
            bytearray(data),
            memoryview(data),
            path,
            str(path),
            url,
            url.upper()[:5] + url[5:],
        )
    ]
    assert len(set(images)) == 1
    assert {image.digest for image in images} == {images[0].digest}
    with PIL.Image.open(path) as reference:
        assert np.array_equal(pixels(images[0]), np.asarray(reference.convert("RGB")))
    assert images[0].size == (24, 16)


def test_what_the_bytes_are_outranks_every_label(tmp_path):
    data = encoded(drawing(), "JPEG")
    path = tmp_path / "drawing.png"
    path.write_bytes(data)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert [Image(path).kind, Image(url).kind] == ["jpeg", "jpeg"]
    assert Image(url).data_url().startswith("data:image/jpeg;base64,")


def test_an_image_is_a_value(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(drawing()))
    image, other = Image(path), Image(encoded(drawing(seed=1)))
    path.write_bytes(encoded(drawing(seed=1)))
    assert np.array_equal(pixels(image), np.asarray(drawing()))
    assert image != other
    assert image.digest != other.digest
    assert image != "image"
    with pytest.raises(AttributeError):
        image.kind = "jpeg"


@pytest.mark.parametrize("source", [encoded(drawing()), drawing()])
def test_a_pickle_holds_the_content(source):
    image = Image(source)
    copy = pickle.loads(pickle.dumps(image))
    assert copy == image
    assert hash(copy) == hash(image)
    assert copy.digest == image.digest
    assert np.array_equal(pixels(copy), np.asarray(drawing()))


def test_the_representation_tells_the_size_and_not_the_data():
    data = encoded(drawing())
    assert repr(Image(data)) == f"Image(png, {len(data):,} bytes)"
    assert len(repr(Image(drawing(500, 500)))) < 60


def test_pil_images_of_equal_bytes_but_another_shape_differ():
    flat = PIL.Image.new("RGB", (4, 1), "red"), PIL.Image.new("RGB", (2, 2), "red")
    assert Image(flat[0]) != Image(flat[1])
    assert Image(flat[0]).digest != Image(flat[1]).digest


@pytest.mark.parametrize(
    "address",
    ["http://host/a.png", "https://host/a.png", "HTTPS://HOST/a.png", "ftp://h/a", "file:///etc/a"],
)
def test_an_address_is_refused_and_never_fetched(address):
    with pytest.raises(InputError, match="never fetched from an address"):
        Image(address)


def test_only_data_urls_pass_where_strangers_write(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(drawing()))
    with pytest.raises(InputError, match="expected a data URL"):
        Image.from_data_url(str(path))
    assert Image.from_data_url(Image(path).data_url()) == Image(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "holds no bytes"),
        (b"%PDF-1.7 ...", "it is a PDF: render its pages first"),
        (b"<svg xmlns=", "SVG"),
        (b"\0\0\0\x18ftypheic", "is not PNG, JPEG"),
        ("data:image/png;base64,", "holds no bytes"),
        ("data:image/png;base64,@@@", "invalid base64"),
        ("data:image/png;base64,iVBORw0KGgo", "invalid base64"),
        ("data:image/png,iVBORw0KGgo=", "must be data:image"),
        ("data:image/png;base64", "must be data:image"),
        ("no/such/file.png", "cannot be read: No such file"),
        ("a\0b", "cannot be read"),
        ("x" * 100_000, "cannot be read"),
        (17, "got int"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(source, message):
    with pytest.raises(InputError, match=message) as caught:
        Image(source)
    assert len(str(caught.value)) < 500


def test_folders_and_pipes_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="is not a file"):
            Image(path)


def test_base64_may_be_folded_into_lines():
    data = encoded(drawing())
    assert Image("data:image/png;base64," + base64.encodebytes(data).decode()) == Image(data)


# --- limits -------------------------------------------------------------------------------------


def test_twenty_five_mebibytes_pass_and_one_byte_more_does_not(tmp_path):
    data = encoded(drawing())
    data += b"\0" * (MAX_BYTES - len(data))
    assert Image(data).size == (24, 16)
    url = "data:image/png;base64,"
    assert Image(url + base64.b64encode(data).decode()) == Image(data)
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(100 * 2**30)
    for source in (data + b"\0", url + base64.b64encode(data + b"\0").decode(), path):
        with pytest.raises(InputError, match="at most 25 MiB"):
            Image(source)


@pytest.mark.parametrize("size", [(8192, 16384), (16384, 8192), (1, 16384), (8192, 8192)])
def test_the_largest_sizes_pass(size):
    assert Image(png_header(*size)).size == size


@pytest.mark.parametrize(
    "size", [(8193, 8193), (16385, 1), (20000, 10), (10, 20000), (2**31 - 1,) * 2]
)
def test_larger_sizes_are_refused_before_anything_is_decoded(size):
    image = Image(png_header(*size))
    for look in (lambda: image.size, image.rgb):
        with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels; at most 8192x16384"):
            look()


def test_a_large_pil_image_is_refused_too():
    with pytest.raises(InputError, match="20000x10 pixels"):
        Image(PIL.Image.new("L", (20000, 10)))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_the_smallest_images_are_images(size):
    image = Image(encoded(PIL.Image.new("RGB", size, "teal")))
    assert image.size == size
    assert (pixels(image) == [0, 128, 128]).all()


# --- for a server -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_plain_files_are_sent_as_they_are(kind):
    data = encoded(drawing(), kind)
    label, body = Image(data).data_url().split(",")
    assert label == f"data:image/{kind.lower()};base64"
    assert base64.b64decode(body) == data


@pytest.mark.parametrize(
    "data",
    [
        encoded(drawing(mode="RGBA")),
        encoded(drawing(mode="P"), "GIF"),
        encoded(drawing(), "WEBP"),
        encoded(drawing(), "BMP"),
        encoded(PIL.Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) << 11)),
    ],
)
def test_what_a_server_might_show_otherwise_is_sent_as_plain_png(data):
    sent = Image(Image(data).data_url())
    assert sent.kind == "png"
    assert np.array_equal(pixels(sent), pixels(Image(data)))


def test_a_pil_image_is_sent_as_png():
    assert np.array_equal(pixels(Image(Image(drawing()).data_url())), np.asarray(drawing()))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photograph_is_sent_upright(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    smooth = drawing(3, 2).resize((60, 40))
    image = Image(encoded(smooth, "JPEG", exif=exif, quality=95))
    sent = Image(image.data_url())
    assert sent.kind == "jpeg"
    with PIL.Image.open(io.BytesIO(base64.b64decode(image.data_url().split(",")[1]))) as seen:
        assert seen.size == image.size  # even to a server that ignores EXIF
    assert np.abs(pixels(sent).astype(int) - pixels(image)).mean() < 3
    assert (sent == image) is (orientation == 1)


# --- without Pillow -----------------------------------------------------------------------------

_WITHOUT_PILLOW = """
import sys
sys.modules["PIL"] = None
from nimbed.images import Image
from nimbed.errors import MissingExtraError, install_line
image = Image(bytes.fromhex(sys.argv[1]))
assert image.kind == "png" and image.digest and image.data_url().startswith("data:image/png")
for look in (image.rgb, lambda: image.size):
    try:
        look()
    except MissingExtraError as error:
        assert install_line("images") in str(error)
    else:
        raise SystemExit("it decoded without Pillow")
"""


def test_without_pillow_an_image_can_be_held_and_sent_but_not_decoded():
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_PILLOW, encoded(drawing()).hex()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_making_an_image_of_bytes_imports_no_pillow():
    code = (
        "import sys; from nimbed.images import Image; Image(b'\\xff\\xd8\\xff'); "
        "sys.exit(any(name.startswith('PIL') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
