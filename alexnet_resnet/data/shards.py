"""One shard of the prepared form: images made small, written as records, their sums beside them.

A shard is written under another name, brought to the disk and renamed; so a file that has a shard's name is whole.
"""

import contextlib
import dataclasses
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from alexnet_resnet.data import encoded, photos, prepared, records, statistics
from alexnet_resnet.data.examples import EncodedExamples, Unreadable
from alexnet_resnet.data.prepared import Shard
from alexnet_resnet.errors import UserError

TEMPORARY = ".unfinished-"
LONGEST = 65_500  # pixels a side, which is what JPEG can hold
REPORT_EVERY = 16  # images between two signs of life


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to be made.

    Attributes:
      folder: where.
      split: of which split.
      file: the shard's name.
      rows: which of the split's examples.
      size: what the images' shorter side is brought to.
      square: whether the centre size x size is cut out.
      quality: of the JPEGs.
      images: the pixels of these rows, where the source has them in memory.
      labels: their labels.
    """

    folder: str
    split: str
    file: str
    rows: range
    size: int
    square: bool
    quality: int
    images: np.ndarray | None = None
    labels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """So many more images are done."""

    images: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished shard, and the examples that are not in it, each with the reason."""

    shard: Shard
    unreadable: tuple[str, ...]


def make(sources: dict[str, EncodedExamples], task: Task) -> Iterator[Progress | Outcome]:
    """Writes a shard and its sums.

    Args:
      sources: the splits whose images are not in memory.
      task: what to make.

    Yields:
      `Progress` now and then, and at last the `Outcome`.

    Raises:
      UserError: the shard cannot be written, as when the disk is full, or the source cannot be read at all.
    """
    sums, unreadable, written, told = statistics.Sums(task.size), [], 0, 0
    temporary = os.path.join(task.folder, f"{TEMPORARY}{task.file}-{os.getpid()}")
    with writing(task.folder), open(temporary, "wb") as file:
        for place in range(len(task.rows)):
            name = _name(sources, task, place)
            try:
                image, label = _read(sources, task, place)
                jpeg = encode(resized(image, task.size, task.square), task.quality)
            except Unreadable as error:
                reason = " ".join(str(error).split())
                unreadable.append(reason if reason.startswith(name) else f"{name}: {reason}")
            except OSError as error:
                raise UserError(f"data_dir: {name}: {error.strerror or error}") from error
            else:
                # What a reader will see, which is not quite what was put in.
                pixels = encoded.as_rgb(jpeg)
                sums.add(pixels)
                features = {
                    prepared.IMAGE: jpeg,
                    prepared.LABEL: label,
                    "image/height": pixels.shape[0],
                    "image/width": pixels.shape[1],
                    "image/filename": name.encode(),
                }
                records.write(file, records.encode_example(features))
                written += 1
            if (place + 1) % REPORT_EVERY == 0:
                yield Progress(place + 1 - told)
                told = place + 1
        file.flush()
        os.fsync(file.fileno())
        outcome = Outcome(Shard(task.file, written, file.tell()), tuple(unreadable))
    with writing(task.folder):
        _write_sums(task.folder, outcome, sums)
        os.replace(temporary, os.path.join(task.folder, task.file))
        _sync(task.folder)
    yield Progress(len(task.rows) - told)
    yield outcome


def resized(image: np.ndarray, size: int, square: bool) -> np.ndarray:
    """The shorter side brought to `size`, smaller or larger, antialiased; with `square` the central square of it.

    Raises:
      Unreadable: the image is so long and narrow that it would not fit into a JPEG.
    """
    from PIL import Image

    height, width, _ = image.shape
    shorter = min(height, width)
    shape = max(size, round(width * size / shorter)), max(size, round(height * size / shorter))
    if max(shape) > LONGEST:
        raise Unreadable(f"{height}x{width} pixels: too narrow to be brought to a shorter side of {size}")
    if square:
        return photos.centre_square(image, size)
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))


def encode(image: np.ndarray, quality: int) -> bytes:
    """An RGB image as a JPEG with 4:2:0 chroma and Huffman tables made for it."""
    from PIL import Image

    picture, buffer = Image.fromarray(image), io.BytesIO()
    try:
        picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    except OSError:
        # PIL's buffer is too small to find tables where an image is nearly noise; the pixels are the same without.
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _name(sources, task: Task, place: int) -> str:
    row = task.rows[place]
    return f"{task.split} {row}" if task.images is not None else sources[task.split].name_of(row)


def _read(sources, task: Task, place: int) -> tuple[np.ndarray, int]:
    """An example's pixels and label."""
    if task.images is not None:
        return task.images[place], int(task.labels[place])
    data, label = sources[task.split].read(task.rows[place])
    return encoded.as_rgb(data), label


def _sums_of(file: str) -> str:
    return f".{file}.sums.npz"


def _write_sums(folder: str, outcome: Outcome, sums: statistics.Sums) -> None:
    shard, buffer = outcome.shard, io.BytesIO()
    np.savez_compressed(
        buffer,
        **sums.arrays(),
        shard=np.array([shard.examples, shard.bytes]),
        unreadable=np.array(json.dumps(outcome.unreadable)),
    )
    write(folder, _sums_of(shard.file), buffer.getvalue())


def finished(folder: str, file: str) -> tuple[Outcome, statistics.Sums] | None:
    """A shard that was finished and its sums, or None where it has to be made."""
    try:
        with np.load(os.path.join(folder, _sums_of(file)), allow_pickle=False) as arrays:
            examples, size = arrays["shard"].tolist()
            unreadable = tuple(json.loads(str(arrays["unreadable"])))
            sums = statistics.Sums.from_arrays(arrays)
        whole = os.path.getsize(os.path.join(folder, file)) == size
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return (Outcome(Shard(file, examples, size), unreadable), sums) if whole else None


@contextlib.contextmanager
def writing(folder: str) -> Iterator[None]:
    """A full disk and the like, as the user's errors."""
    try:
        yield
    except OSError as error:
        raise UserError(f"out={folder!r}: {(error.strerror or str(error)).lower()}") from error


def write(folder: str, name: str, content: bytes) -> None:
    """Replaces a file as a whole: after a crash it is the old one or the new one."""
    temporary = os.path.join(folder, f"{TEMPORARY}{name}-{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, os.path.join(folder, name))
    _sync(folder)


def _sync(folder: str) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def count(out: str) -> int:
    """How many finished shards a folder has."""
    try:
        names = os.listdir(os.path.expanduser(out))
    except OSError:
        return 0
    return sum(name.endswith(".tfrecord") for name in names)


def remove_temporaries(folder: str) -> None:
    """Removes what runs that ended on the way have left."""
    _remove(name for name in _paths(folder) if os.path.basename(name).startswith(TEMPORARY))


def remove_sums(folder: str) -> None:
    """Removes the sums of shards, which only serve until the statistics are written."""
    _remove(name for name in _paths(folder) if name.endswith(_sums_of(".tfrecord")[1:]))


def _paths(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder)]


def _remove(paths) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
