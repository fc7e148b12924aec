"""The names of classes, for people."""

import importlib.resources
import os

from alexnet_resnet.errors import UserError

IMAGENET_CLASSES = 1000


def imagenet() -> tuple[str, ...]:
    """The 1,000 classes of ILSVRC-2012 in the order of their WordNet numbers, each by the first word of its synset."""
    text = importlib.resources.files("alexnet_resnet.data").joinpath("imagenet_classes.txt").read_text()
    return tuple(line.split(" ", 1)[1] for line in text.splitlines())


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
    """The names of a dataset's classes; ImageNet's WordNet numbers become words."""
    wordnet = len(names) == IMAGENET_CLASSES and all(name[:1] == "n" and name[1:].isdigit() for name in names)
    return imagenet() if wordnet else names
