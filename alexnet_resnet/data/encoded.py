"""Encoded images: what they say of themselves, without decoding, and the pixels of those that only PIL can read."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from alexnet_resnet.data import photos
from alexnet_resnet.data.examples import Unreadable


@dataclasses.dataclass(frozen=True)
class Header:
    """What an encoded image says of itself.

    Attributes:
      format: 'JPEG', 'PNG' or another of PIL's names.
      height: in pixels.
      width: in pixels.
      components: values a pixel as they are stored: 1 for grey and palettes, 3 for colour, 4 for CMYK or transparency.
    """

    format: str
    height: int
    width: int
    components: int


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COMPONENTS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# A frame header begins a picture: 0xC0 to 0xCF but for Huffman tables, a reserved one and arithmetic coding's tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset([0x00, 0x01, *range(0xD0, 0xD9)])  # markers without a length


def describe(data: bytes) -> Header:
    """The format and size of an encoded image by what it holds, whatever its file is called.

    Neither looks at the pixels nor turns the image as EXIF says.

    Raises:
      Unreadable: it is no image, or ends before it says its size; the message does not say which.
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == _PNG:
        return _png(data)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return Header(image.format, image.height, image.width, len(image.getbands()))
    except Exception as error:  # PIL's readers raise many kinds for damaged files.
        raise Unreadable("empty" if not data else "no image") from error


def ends(data: bytes) -> bool:
    """Whether a JPEG's last picture has its end: one that was cut off may still show a crop above the cut."""
    # Inside a picture's data neither marker can stand; a thumbnail has its own before the picture begins.
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _jpeg(data: bytes) -> Header:
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 10 <= len(data):
        marker = data[position + 1]
        if marker in _FRAMES:
            height, width = data[position + 5] << 8 | data[position + 6], data[position + 7] << 8 | data[position + 8]
            if not height or not width:
                break
            return Header("JPEG", height, width, data[position + 9])
        if marker == 0xFF:  # filling
            position += 1
        elif marker in _ALONE:
            position += 2
        elif marker in (0xDA, 0xD9):  # the picture, or its end, and no frame before it
            break
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    raise Unreadable("a JPEG that does not say its size")


def _png(data: bytes) -> Header:
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if len(data) < 33 or data[12:16] != b"IHDR" or data[25] not in _PNG_COMPONENTS or not width or not height:
        raise Unreadable("a PNG with a damaged header")
    return Header("PNG", height, width, _PNG_COMPONENTS[data[25]])


def as_rgb(data: bytes) -> np.ndarray:
    """An encoded image of any kind as RGB bytes [H, W, 3] (uint8), as `photos.read` sees it.

    For the few that a decoder of plain JPEGs does not take: CMYK, palettes, 16 bits, transparency (laid on white). It
    is not turned as EXIF says: training and its published results take ImageNet's images as they lie, and what an
    image is must not depend on the decoder that it needs.

    Raises:
      Unreadable: it is no image, or damaged; the message does not say which.
    """
    try:
        return photos.read(data, upright=False)
    except photos.BrokenImage as error:
        raise Unreadable(str(error)) from error


def as_rgb_png(data: bytes) -> bytes:
    """`as_rgb` as a PNG, for decoders that want encoded bytes."""
    return png(as_rgb(data))


def view(data: bytes, window: Sequence[int], shape: tuple[int, int]) -> bytes:
    """A window of an encoded RGB image, resized (antialiased) to a height and width, as a PNG.

    Args:
      data: the image, as `png` gives it.
      window: top, left, height and width, in its pixels.
      shape: the height and width to come out.
    """
    from PIL import Image

    top, left, height, width = window
    with Image.open(io.BytesIO(data)) as image:
        part = image.crop((left, top, left + width, top + height))
        return png(np.asarray(part.resize(shape[::-1], Image.Resampling.BILINEAR)))


def png(image: np.ndarray) -> bytes:
    """RGB bytes [H, W, 3] (uint8) as a PNG, packed quickly rather than small."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
