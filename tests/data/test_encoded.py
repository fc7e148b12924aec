"""What an encoded image says of itself is what PIL says after opening it, whatever the file is called."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.data import encoded, photos
from alexnet_resnet.data.examples import Unreadable

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 54, 3)).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2, "optimize": True}, {"quality": 1}])
@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
def test_jpegs_say_their_size_and_components(mode, components, options):
    data = encode(PICTURE.convert(mode), "JPEG", **options)
    assert encoded.describe(data) == encoded.Header("JPEG", 37, 54, components)


def test_a_preview_within_a_jpeg_is_not_taken_for_the_image():
    preview = encode(PICTURE.resize((8, 5)), "JPEG")
    data = encode(PICTURE, "JPEG", exif=b"Exif\0\0" + preview, icc_profile=preview * 3, comment=preview)
    assert encoded.describe(data) == encoded.Header("JPEG", 37, 54, 3)
    # Filling before a marker is allowed, and what stands between segments is passed over, as decoders do.
    data = data[:2] + b"\xff\xff\xff" + data[3:]
    assert encoded.describe(data) == encoded.Header("JPEG", 37, 54, 3)
    data = data[:2] + b"junk\xff\x00\xff\xd0" + data[2:]
    assert encoded.describe(data) == encoded.Header("JPEG", 37, 54, 3)


def test_sizes_beyond_a_byte_are_read():
    image = Image.new("L", (1025, 700))
    assert encoded.describe(encode(image, "JPEG")) == encoded.Header("JPEG", 700, 1025, 1)
    assert encoded.describe(encode(image, "PNG")) == encoded.Header("PNG", 700, 1025, 1)
    assert encoded.describe(encode(Image.new("RGB", (1, 1)), "JPEG")) == encoded.Header("JPEG", 1, 1, 3)


@pytest.mark.parametrize(("mode", "components"), [("1", 1), ("L", 1), ("P", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_pngs_say_their_size_and_components(mode, components):
    assert encoded.describe(encode(PICTURE.convert(mode), "PNG")) == encoded.Header("PNG", 37, 54, components)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_are_described_too(kind):
    header = encoded.describe(encode(PICTURE, kind))
    assert (header.format, header.height, header.width) == (kind, 37, 54)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no image at all", "no image"),
        (b"\xff\xd8", "does not say its size"),
        (b"\xff\xd8" + b"\xff" * 50, "does not say its size"),
        (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda" + bytes(20), "does not say its size"),
        (b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x09\x01" + bytes(20), "does not say its size"),
        (encode(PICTURE, "JPEG")[:100], "does not say its size"),
        (encode(PICTURE, "PNG")[:24], "damaged header"),
        (encode(PICTURE, "PNG").replace(b"IHDR", b"IHDX"), "damaged header"),
        (encode(PICTURE, "PNG")[:16] + bytes(40), "damaged header"),
        (encode(PICTURE, "GIF")[:5], "no image"),
    ],
)
def test_what_says_no_size_is_refused(data, message):
    with pytest.raises(Unreadable, match=message):
        encoded.describe(data)
    with pytest.raises(Unreadable, match="not an image that can be read"):
        encoded.as_rgb(data)


def test_every_start_of_a_jpeg_is_described_rightly_or_refused():
    data = encode(PICTURE, "JPEG")
    described = 0
    for end in range(len(data)):
        try:
            assert encoded.describe(data[:end]) == encoded.Header("JPEG", 37, 54, 3)
            described += 1
        except Unreadable:
            assert not described, "more of the file says less"
    assert described


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "P", "LA", "RGBA", "I;16"])
def test_any_kind_becomes_the_rgb_that_a_file_of_it_is_read_as(tmp_path, mode):
    image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200) if mode == "I;16" else PICTURE.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(PIXELS[..., 1]))
    data = encode(image, "JPEG" if mode == "CMYK" else "PNG")
    (tmp_path / "a.JPEG").write_bytes(data)
    rgb = encoded.as_rgb(data)
    assert rgb.shape == (37, 54, 3) and rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, photos.read(str(tmp_path / "a.JPEG")))
    if mode == "RGB":
        np.testing.assert_array_equal(rgb, PIXELS)
    png = encoded.as_rgb_png(data)
    assert encoded.describe(png) == encoded.Header("PNG", 37, 54, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), rgb)


def test_cmyk_has_the_colours_of_the_rgb_that_it_was_made_of():
    flat = np.zeros((16, 16, 3), np.uint8) + np.array([200, 30, 10], np.uint8)
    rgb = encoded.as_rgb(encode(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100))
    assert np.abs(rgb.astype(int) - flat).max() < 12


def test_images_are_described_and_decoded_as_they_lie_as_tensorflow_does():
    import tensorflow as tf

    data = encode(PICTURE, "JPEG", exif=turned())
    assert tf.io.decode_jpeg(data).shape == (37, 54, 3)
    assert encoded.as_rgb(data).shape == (37, 54, 3)
    assert encoded.describe(data) == encoded.Header("JPEG", 37, 54, 3)
    # Photographs given to `predict` are turned.
    assert photos.read(data).shape == (54, 37, 3)


def test_a_truncated_image_is_refused():
    with pytest.raises(Unreadable, match="truncated"):
        encoded.as_rgb(encode(PICTURE, "JPEG")[:-500])
