"""The colour statistics of a set of images, from sums that are exact and can be added in any order.

Every sum is of whole numbers and is kept as one, so images may be counted in any order, by any number of processes,
and the same set gives the same bits. Rounding happens once, when a result is asked for.
"""

import dataclasses
import os
import zipfile
import zlib

import numpy as np
from jaxtyping import Float, UInt8

from alexnet_resnet.errors import UserError

# Pixels that are multiplied at a time; bounds the memory.
CHUNK = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What lighting and mean subtraction need to know of a set of images, in grey levels (0..255), float64.

    Attributes:
      images: how many there are.
      pixels: how many they have together.
      mean_image: [S, S, C], the mean of the images' centre squares.
      mean_colour: [C], the mean over all pixels.
      covariance: [C, C], of the colours of all pixels (their number is the divisor).
      eigenvalues: [C], of the covariance, the largest first.
      eigenvectors: [C, C], one a row, of length 1, the largest component positive.
    """

    images: int
    pixels: int
    mean_image: np.ndarray
    mean_colour: np.ndarray
    covariance: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


class Sums:
    """Exact sums over images: how many, their pixels, colours, products of colours, and their centre squares.

    Args:
      size: the side S of the centre squares.
      channels: values a pixel.
    """

    def __init__(self, size: int, channels: int = 3):
        self.size, self.channels = size, channels
        self.images = self.pixels = 0
        # Python's whole numbers: products of colours over ImageNet (1.28 million images of 480 x 640) reach 2.6e16
        # of int64's 9.2e18, and their products in `covariance` go far beyond it.
        self.colours = [0] * channels
        self.products = [[0] * channels for _ in range(channels)]
        # At most 255 an image: int64 holds 3.6e16 of them.
        self.squares = np.zeros((size, size, channels), np.int64)

    def add(self, image: UInt8[np.ndarray, "H W C"]) -> None:
        """Counts an image in.

        Raises:
          ValueError: it is smaller than the square, or has other channels.
        """
        height, width, channels = image.shape
        if min(height, width) < self.size or channels != self.channels:
            raise ValueError(f"{image.shape}: expected an image of at least {self.size}, {self.channels} channels.")
        pixels = image.reshape(-1, channels)
        for start in range(0, len(pixels), CHUNK):
            part = pixels[start : start + CHUNK]
            # The ones make the plain sums come out of the same product. Exact in float64, in whatever order the
            # library adds: all terms are whole and at most 255**2 < 2**16, so no partial sum of 2**20 exceeds 2**36,
            # and up to 2**53 every whole number is a float64.
            rows = np.ones((channels + 1, len(part)))
            rows[:channels] = part.T
            total = (rows @ rows.T).astype(np.int64).tolist()
            self.colours = [a + b for a, b in zip(self.colours, total[channels], strict=False)]
            self.products = _added(self.products, [row[:channels] for row in total[:channels]])
        self.images += 1
        self.pixels += height * width
        top, left = (height - self.size) // 2, (width - self.size) // 2
        self.squares += image[top : top + self.size, left : left + self.size]

    def __add__(self, other: "Sums") -> "Sums":
        """The sums over both sets of images."""
        if (self.size, self.channels) != (other.size, other.channels):
            raise ValueError(
                f"sums over {self.size}x{self.size}x{self.channels} and {other.size}x{other.size}x{other.channels}: "
                "expected the same squares."
            )
        both = Sums(self.size, self.channels)
        both.images, both.pixels = self.images + other.images, self.pixels + other.pixels
        both.colours = [a + b for a, b in zip(self.colours, other.colours, strict=True)]
        both.products = _added(self.products, other.products)
        both.squares = self.squares + other.squares
        return both

    def mean_image(self) -> Float[np.ndarray, "S S C"]:
        """The mean of the centre squares; each value is the float64 nearest to the true one."""
        self._refuse_nothing()
        return self.squares / self.images

    def mean_colour(self) -> Float[np.ndarray, "C"]:
        """The mean over all pixels of all images; each value is the float64 nearest to the true one."""
        self._refuse_nothing()
        return np.array([total / self.pixels for total in self.colours])

    def covariance(self) -> Float[np.ndarray, "C C"]:
        """The covariance of the colours over all pixels: E[x y] - E[x] E[y], of the pixels that there are.

        The difference is taken between whole numbers, so nothing cancels; each value is the float64 nearest to the
        true one.
        """
        self._refuse_nothing()
        n = self.pixels
        return np.array(
            [
                [(n * self.products[i][j] - self.colours[i] * self.colours[j]) / n**2 for j in range(self.channels)]
                for i in range(self.channels)
            ]
        )

    def principal_axes(self) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "C C"]]:
        """The covariance's eigenvalues, the largest first, and its eigenvectors as rows, their sign made definite.

        These are the lambda_i and p_i of AlexNet's section 4.1; the largest component of each p_i is positive.
        """
        from alexnet_resnet.ops import lighting  # JAX, which those who only add images up do not need

        return tuple(lighting.principal_axes(self.covariance()))

    def statistics(self) -> Statistics:
        """All results."""
        return Statistics(
            self.images, self.pixels, self.mean_image(), self.mean_colour(), self.covariance(), *self.principal_axes()
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as arrays of whole numbers, for `from_arrays`.

        Raises:
          OverflowError: a sum does not fit into int64, which takes 1.4e14 pixels.
        """
        return {
            "counts": np.array([self.images, self.pixels], np.int64),
            "colours": np.array(self.colours, np.int64),
            "products": np.array(self.products, np.int64),
            "squares": self.squares,
        }

    @classmethod
    def from_arrays(cls, arrays) -> "Sums":
        """The sums that `arrays` gave."""
        squares = np.array(arrays["squares"], np.int64)
        sums = cls(squares.shape[0], squares.shape[2])
        sums.images, sums.pixels = arrays["counts"].tolist()
        sums.colours, sums.products = arrays["colours"].tolist(), arrays["products"].tolist()
        sums.squares = squares
        return sums

    def _refuse_nothing(self):
        if not self.images:
            raise ValueError("expected at least one image, found none.")


def of_arrays(images: UInt8[np.ndarray, "N H W C"]) -> Statistics:
    """The statistics of images of one size; their mean image is the mean of the whole images, square or not."""
    sums = Sums(1, images.shape[-1])
    sums.add(images.reshape(-1, *images.shape[2:]))
    return dataclasses.replace(sums.statistics(), images=len(images), mean_image=mean_of_arrays(images))


def mean_of_arrays(images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "H W C"]:
    """The mean image, from exact sums, float64."""
    return images.sum(0, dtype=np.int64) / len(images)


def _added(one: list[list[int]], other: list[list[int]]) -> list[list[int]]:
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


def write(file, statistics: Statistics) -> None:
    """Writes statistics into a file opened for writing bytes, as an .npz of float64 arrays."""
    np.savez_compressed(file, **dataclasses.asdict(statistics))


def read(path: str) -> Statistics:
    """The statistics in a file that `write` made.

    Raises:
      UserError: the file is missing or damaged, or is another's.
    """
    path = os.path.expanduser(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {field.name: file[field.name] for field in dataclasses.fields(Statistics)}
        fields |= {"images": int(fields["images"]), "pixels": int(fields["pixels"])}
    except (OSError, TypeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(map(str, error.args))
        raise UserError(
            f"statistics {path!r}: expected the .npz file that `python -m alexnet_resnet.prepare` writes ({reason})."
        ) from error
    statistics = Statistics(**fields)
    channels = len(statistics.mean_colour)
    shapes = [a.shape for a in (statistics.covariance, statistics.eigenvectors)]
    if shapes != [(channels, channels)] * 2 or statistics.mean_image.shape[2:] != (channels,):
        raise UserError(f"statistics {path!r}: expected one row a channel, found {shapes}.")
    return statistics
