"""The labelled images of a split: arrays in memory, or encoded images that are read one by one when they are needed."""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from alexnet_resnet.errors import near_matches

# Examples that a checksum looks at.
SAMPLE = 64


class UnknownSplit(Exception):
    """A split that the dataset does not have; the message says which it has."""


class Unreadable(Exception):
    """One example that cannot be read or decoded; the message names it and says why."""


@runtime_checkable
class Store(Protocol):
    """Encoded images with their labels, in a fixed order, to be read by place from any number of threads."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> tuple[bytes, int]:
        """The encoded image (JPEG, PNG, ...) at a place and its label.

        Raises:
          Unreadable: it is damaged, or its file is.
        """

    def name_of(self, row: int) -> str:
        """What messages call the example, such as its file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Images of one size, in memory.

    Attributes:
      images: bytes [N, H, W, C] (uint8).
      labels: [N], int32, from 0.
      label_names: one name a class.
      name: what they are, for messages: 'cifar10 train[:45000]'.
    """

    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    name: str
    encoded = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.images.shape[-1]

    def checksum(self) -> int:
        """A number that other examples hardly have: of all labels and the first images."""
        return zlib.crc32(self.images[:SAMPLE].tobytes(), zlib.crc32(self.labels.tobytes()))


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedExamples:
    """Encoded images of any size, in a store.

    Attributes:
      store: where they are.
      rows: their places in the store.
      label_names: one name a class.
      name: what they are, for messages: 'imagenet2012 train'.
      statistics: the file with the statistics of exactly these images, where they were prepared with them.
    """

    store: Store
    rows: range
    label_names: tuple[str, ...]
    name: str
    statistics: str | None = None
    encoded = True
    channels = 3

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and the label of one example; raises `Unreadable`."""
        return self.store.read(self.rows[index])

    def name_of(self, index: int) -> str:
        return self.store.name_of(self.rows[index])

    def checksum(self) -> int:
        """A number that other examples hardly have: of a few that are spread over the split, with their labels."""
        total = 0
        for index in range(0, len(self), -(-len(self) // SAMPLE)):
            try:
                image, label = self.read(index)
            except Unreadable:
                image, label = b"", -1
            total = zlib.crc32(image, zlib.crc32(label.to_bytes(8, "little", signed=True), total))
        return total


class InMemory:
    """A store of encoded images that are there already."""

    def __init__(self, images: Sequence[bytes], labels: Sequence[int] | np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> tuple[bytes, int]:
        return self._images[row], int(self._labels[row])

    def name_of(self, row: int) -> str:
        return f"image {row}"


def take(split: str, size_of: dict[str, int]) -> tuple[str, slice]:
    """Reads 'name[a:b]', with counts or percentages, as a split's name and a slice of its examples.

    Raises:
      UnknownSplit: there is no such split, or it is smaller than the slice.
    """
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match or match[1] not in size_of:
        hint = near_matches(split.split("[")[0], size_of)
        raise UnknownSplit(
            f"expected one of {', '.join(map(repr, size_of))} or a slice of one, "
            f"such as '{next(iter(size_of))}[:90%]'.{hint}"
        )
    name, *ends = match.groups()
    size = size_of[name]
    # As TFDS reads them: percentages to the nearest example, and nothing beyond the end.
    places = [round(int(e[:-1]) * size / 100) if e and e.endswith("%") else int(e) if e else None for e in ends]
    if any(place is not None and abs(place) > size for place in places):
        raise UnknownSplit(f"expected a slice within the {size:,} examples of {name!r}.")
    return name, slice(*places)
