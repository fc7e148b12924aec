"""Images from files as people have them: any JPEG or PNG, from a phone, a scanner or a drawing program."""

import glob
import io
import os
from collections.abc import Sequence

import numpy as np

from alexnet_resnet.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class BrokenImage(Exception):
    """A file that does not hold an image that can be read."""


def find(paths: Sequence[str]) -> list[str]:
    """The files that paths name: files as they are, the images of folders (and theirs), the matches of globs.

    Raises:
      UserError: a path that names nothing.
    """
    found = []
    for path in map(os.path.expanduser, paths):
        if os.path.isdir(path):
            inside = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
            matches = sorted(name for name in inside if name.lower().endswith(SUFFIXES))
        else:
            matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise UserError(f"image {path!r}: expected a file, a folder with images or a pattern that matches some.")
        found += matches
    return list(dict.fromkeys(found))


def read(source: str | bytes, channels: int = 3, upright: bool = True) -> np.ndarray:
    """One image as bytes [H, W, C].

    Transparency laid on white, 16 bits scaled to 8, CMYK, palettes and grey turned into what the network sees.

    Args:
      source: the file's path, or what it holds.
      channels: 3 for RGB, 1 for grey.
      upright: whether it is turned as the camera says (EXIF), or taken as it lies.

    Raises:
      BrokenImage: it cannot be read as an image; the message names the file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if upright:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":
                values = np.asarray(image, np.float64)
                # PIL's mode I also holds 8 bits; I;16 never does.
                wide = image.mode.startswith("I;16") or values.max() > 255
                image = Image.fromarray(np.clip(values / (257 if wide else 1), 0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(*image.size[::-1], channels)
    except Exception as error:  # PIL's readers raise many kinds for damaged files.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else (str(error) or type(error).__name__).splitlines()[0]
        name = "" if isinstance(source, bytes) else f"{source}: "
        raise BrokenImage(f"{name}not an image that can be read ({reason})") from error


def centre_square(image: np.ndarray, side: int) -> np.ndarray:
    """The shorter side brought to `side`, antialiased, and the central square [side, side, C] cut out."""
    from PIL import Image

    height, width, channels = image.shape
    shorter = min(height, width)
    size = max(side, round(width * side / shorter)), max(side, round(height * side / shorter))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).reshape(size[1], size[0], channels)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return resized[top : top + side, left : left + side]
