"""Images as files in one folder a class: data_dir/SPLIT/CLASS/*.JPEG, as ImageNet lies on most clusters."""

import bisect
import concurrent.futures
import itertools
import os
import re

import numpy as np

from alexnet_resnet.data.examples import EncodedExamples, Unreadable, take
from alexnet_resnet.errors import UserError

SUFFIXES = (b".jpeg", b".jpg", b".png")
# The same split by two names.
ALIASES = {"validation": "val", "val": "validation"}
_USUAL = ("train", "validation", "val", "test")
_THREADS = 16  # listing waits for the file system


def load(data, split: str) -> EncodedExamples:
    """The images of one split of the folder `data.data_dir`, class after class, sorted by name.

    The classes are the folders of the split 'train' (where there is none, of the split itself), sorted by name; their
    place is the label. Hidden files and files that are no .jpeg, .jpg or .png are passed over; links are followed.
    Other splits may lack classes or images of them, since a class without a validation image is still a class;
    but they may not have others.

    Args:
      data: the configuration's `data` section.
      split: a split's folder, or a slice of it; 'validation' may lie in 'val' and the other way round.

    Raises:
      UnknownSplit: there is no such folder, or it is smaller than the slice.
      UserError: the folder is missing, unreadable or laid out in another way, or a class of 'train' has no image.
    """
    root = os.path.expanduser(data.data_dir)
    splits = [name for name in _folders(root, root) if re.fullmatch(r"\w+", name)] if data.data_dir else []
    name = split.split("[")[0]
    folder = ALIASES[name] if name not in splits and ALIASES.get(name) in splits else name
    if folder not in splits:
        if not set(splits) & set(_USUAL):
            some = ", ".join(map(repr, splits[:4])) or "no folders"
            raise UserError(
                f"data.data_dir={data.data_dir!r}: expected the folders 'train' and 'validation' with one folder a "
                f"class in each, found {some}{', ...' if len(splits) > 4 else ''}."
            )
        take(split, dict.fromkeys(splits, 0))  # says which there are
    path = os.path.join(root, folder)
    first = os.path.join(root, "train") if "train" in splits else path
    classes = _folders(first, root)
    files = _list(path, root, classes, every=path == first)
    _, part = take(split.replace(name, folder, 1), dict.fromkeys(splits, 0) | {folder: sum(map(len, files))})
    store = _Files(root, folder, classes, files)
    title = f"{os.path.basename(os.path.abspath(root))} {split}"
    return EncodedExamples(store, range(len(store))[part], tuple(classes), title)


class _Files:
    """A store of the files of one split."""

    def __init__(self, root: str, folder: str, classes: list[str], files: list[np.ndarray]):
        self._root, self._folder, self._classes, self._files = root, folder, classes, files
        self._firsts = [0, *itertools.accumulate(map(len, files))]

    def __len__(self) -> int:
        return self._firsts[-1]

    def _locate(self, row: int) -> tuple[int, str]:
        if not 0 <= row < len(self):
            raise IndexError(f"image {row} of {len(self)}")
        # Of classes that begin at the same place all but the last are empty.
        label = bisect.bisect_right(self._firsts, row) - 1
        file = os.fsdecode(self._files[label][row - self._firsts[label]])
        return label, os.path.join(self._folder, self._classes[label], file)

    def read(self, row: int) -> tuple[bytes, int]:
        label, path = self._locate(row)
        try:
            with open(os.path.join(self._root, path), "rb", buffering=0) as file:
                return file.read(), label
        except OSError as error:
            raise Unreadable(f"{self.name_of(row)}: {error.strerror}") from error

    def name_of(self, row: int) -> str:
        """The file's path within data_dir."""
        return os.fsencode(self._locate(row)[1]).decode("utf-8", "backslashreplace")


def _list(path: str, root: str, classes: list[str], every: bool) -> list[np.ndarray]:
    """The files of each class, sorted; `every` class must have some."""
    known = set(classes)
    others = [name for name in _folders(path, root) if name not in known]
    if others:
        raise UserError(
            f"data.data_dir={root!r}: {_some(others, 'a folder', 'folders')} in {os.path.basename(path)!r} "
            "with no class of that name in 'train'."
        )
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(lambda name: _images(os.path.join(path, name), root), classes))
    if not any(map(len, files)):
        raise UserError(_flat(path, root) or f"data.data_dir={root!r}: no images in {os.path.basename(path)!r}.")
    empty = [name for name, some in zip(classes, files, strict=True) if not len(some)]
    if every and empty:
        raise UserError(
            f"data.data_dir={root!r}: {_some(empty, 'the class', 'classes')} in {os.path.basename(path)!r} without a "
            f"{', '.join(suffix.decode() for suffix in SUFFIXES)} file; expected at least one in each."
        )
    return files


def _folders(path: str, root: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        where = "" if path == root else f" {path}"
        raise UserError(f"data.data_dir={root!r}: expected a readable folder{where} ({error.strerror}).") from error


def _images(path: str, root: str) -> np.ndarray:
    """The names of the images in a folder, sorted, as bytes: a million of them as strings would take 100 MB."""
    try:
        with os.scandir(os.fsencode(path)) as entries:
            # A link to nothing stays: it is counted as unreadable when its turn comes.
            names = [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(b".") and not entry.is_dir()
            ]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise UserError(f"data.data_dir={root!r}: {path} cannot be listed ({error.strerror}).") from error
    return np.sort(np.array(names, np.bytes_))


def _flat(path: str, root: str) -> str:
    """What to say of a split whose images lie in no class folders, as ImageNet's validation images come."""
    count = len(_images(path, root))
    if not count:
        return ""
    return (
        f"data.data_dir={root!r}: {count:,} images lie in {os.path.basename(path)!r} itself; "
        "expected one folder a class in it, named as those of 'train', with the images in them."
    )


def _some(names: list[str], one: str, several: str) -> str:
    if len(names) == 1:
        return f"{one} {names[0]!r}"
    return f"{len(names):,} {several} ({', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''})"
