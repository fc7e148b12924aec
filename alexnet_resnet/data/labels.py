"""The names of classes, for people."""

import functools
import importlib.resources
import os

from alexnet_resnet.errors import UserError

IMAGENET_CLASSES = 1000


def imagenet() -> tuple[str, ...]:
    """The 1,000 classes of ILSVRC-2012 in the order of their WordNet numbers, each by the first word of its synset."""
    return tuple(_words().values())


@functools.cache
def _words() -> dict[str, str]:
    """From the WordNet number of each of the 1,000 classes to its word, in the order of the numbers."""
    text = importlib.resources.files("alexnet_resnet.data").joinpath("imagenet_classes.txt").read_text()
    return dict(line.split(" ", 1) for line in text.splitlines())


def read(path: str, count: int) -> tuple[str, ...]:
    """Names from a file, one a line.

    Args:
      path: the file.
      count: how many classes there are.

    Raises:
      UserError: it cannot be read, or has another number of names.
    """
    try:
        with open(os.path.expanduser(path)) as file:
            names = tuple(file.read().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"labels={path!r}: expected a text file with a name a line ({error}).") from error
    if len(names) != count:
        raise UserError(f"labels={path!r}: expected {count} names, one for each class, found {len(names)}.")
    return names


def readable(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a dataset's classes, ILSVRC-2012's WordNet numbers among them as words."""
    return tuple(_words().get(name, name) for name in names)
