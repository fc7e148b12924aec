"""CIFAR-10 in a few files that a machine without network and without TensorFlow can be handed.

A part is a zip archive of lossless WebP mosaics with `TILE` images each, all labels, and a manifest that says what the
whole is and what every mosaic holds, with a SHA-256 digest of its pixels. On two busy CPU cores the 60,000 images took
about a minute to pack, into 101 MB (a mosaic of PNG takes 129 MB, predicted differences with lzma 99 MB and ten times
as long), and a few seconds to unpack.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import sources
from alexnet_resnet.errors import UserError

CIFAR10, SYNTHETIC = "cifar10", "synthetic"
SPLITS = ("train", "test")
ARRAYS = "cifar10.npz"
FINGERPRINT = "cifar10.json"
PARTS = "parts"
PART = re.compile(r"cifar10-(\d+)-of-(\d+)\.zip")
MANIFEST, LABELS = "manifest.json", "labels.npz"
FORMAT = 1
TILE, COLUMNS = 1000, 25  # images of a mosaic, and of its rows
MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A dataset in memory.

    Attributes:
      images: by split, uint8 [N, H, W, 3].
      labels: by split, int32 [N].
      label_names: one name a class.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    label_names: tuple[str, ...]

    def fingerprint(self) -> str:
        """A SHA-256 digest of all images, labels and names, in their order."""
        digest = hashlib.sha256()
        for split in SPLITS:
            images, labels = self.images[split], self.labels[split].astype("<i4")
            digest.update(f"{split} {images.shape} {' '.join(self.label_names)}".encode())
            digest.update(np.ascontiguousarray(images))
            digest.update(labels.tobytes())
        return digest.hexdigest()


def read(data_dir: str, dataset: str = CIFAR10) -> Arrays:
    """A dataset that TFDS has prepared, in the order of its files; TensorFlow is not needed.

    Raises:
      UserError: as `sources.load`.
    """
    data = config_lib.default("resnet_cifar").data
    data.dataset, data.data_dir = dataset, data_dir
    found = {split: sources.load(data, split) for split in SPLITS}
    return Arrays(
        {split: examples.images for split, examples in found.items()},
        {split: examples.labels for split, examples in found.items()},
        found["train"].label_names,
    )


def synthetic(train: int = 256, test: int = 64) -> Arrays:
    """Images of CIFAR-10's form that a rehearsal trains on: noise, each class bright in a place of its own."""
    random = np.random.default_rng(0)
    images, labels = {}, {}
    for split, count in zip(SPLITS, (train, test), strict=True):
        labels[split] = (np.arange(count) % 10).astype(np.int32)
        images[split] = random.integers(0, 60, (count, 32, 32, 3)).astype(np.uint8)
        for image, label in zip(images[split], labels[split], strict=True):
            top, left = 16 * (label // 5), 6 * (label % 5)
            image[top : top + 16, left : left + 6] += 150
    return Arrays(images, labels, tuple(f"class {number}" for number in range(10)))


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3] as one picture [rows * H, COLUMNS * W, 3]; places without an image are black."""
    count, height, width, channels = images.shape
    rows = -(-count // COLUMNS)
    padded = np.zeros((rows * COLUMNS, height, width, channels), np.uint8)
    padded[:count] = images
    grid = padded.reshape(rows, COLUMNS, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, COLUMNS * width, channels)


def _apart(mosaic: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The images [N, H, W, 3] of a mosaic."""
    count, height, width, channels = shape
    grid = mosaic.reshape(-1, height, COLUMNS, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, height, width, channels)[:count]


def pack(arrays: Arrays, folder: str, part_mb: float = 60.0) -> list[str]:
    """Writes the parts of a dataset, each below a size.

    Args:
      arrays: the dataset.
      folder: made if it is missing. Parts of earlier packings in it are removed.
      part_mb: the most that one file may have, in millions of bytes.

    Returns:
      The files.

    Raises:
      UserError: the folder cannot be written, or no part may be that small.
    """
    tiles = []
    for split in SPLITS:
        for start in range(0, len(arrays.images[split]), TILE):
            images = arrays.images[split][start : start + TILE]
            encoded = io.BytesIO()
            # More effort gains one percent and takes forty times as long.
            Image.fromarray(_mosaic(images)).save(encoded, "webp", lossless=True, quality=75, method=4)
            facts = dict(file=f"{split}-{start:06}.webp", split=split, start=start, shape=list(images.shape))
            tiles.append((facts | dict(sha256=hashlib.sha256(images).hexdigest()), encoded.getvalue()))
    labels = io.BytesIO()
    np.savez_compressed(labels, **arrays.labels)
    whole = dict(
        format=FORMAT,
        fingerprint=arrays.fingerprint(),
        label_names=list(arrays.label_names),
        shapes={split: list(images.shape) for split, images in arrays.images.items()},
    )
    # What a part holds besides its mosaics: labels, the manifest, the archive's own lists.
    fixed = len(labels.getvalue()) + len(json.dumps(whole)) + 1000
    groups = _share_out([len(encoded) + 600 for _, encoded in tiles], fixed, part_mb * MEGABYTE)
    if not groups:
        least = (fixed + 600 + max(len(encoded) for _, encoded in tiles)) / MEGABYTE + 0.001
        raise UserError(f"part_mb={part_mb:g}: expected at least {least:.3f}.")
    try:
        os.makedirs(folder, exist_ok=True)
        for name in filter(PART.fullmatch, os.listdir(folder)):
            os.remove(os.path.join(folder, name))
        paths = []
        for number, group in enumerate(groups, start=1):
            paths.append(os.path.join(folder, f"cifar10-{number}-of-{len(groups)}.zip"))
            part = [tiles[place] for place in group]
            manifest = whole | dict(part=number, parts=len(groups), tiles=[facts for facts, _ in part])
            with zipfile.ZipFile(paths[-1], "w") as archive:
                archive.writestr(MANIFEST, json.dumps(manifest))
                archive.writestr(LABELS, labels.getvalue())
                for facts, encoded in part:
                    archive.writestr(facts["file"], encoded)
    except OSError as error:
        raise UserError(f"pack={folder!r}: expected a folder that can be written ({error.strerror}).") from error
    return paths


def _share_out(sizes: Sequence[int], fixed: int, most: float) -> list[list[int]]:
    """The places of `sizes` in as few groups of about the same size as stay below `most`; none if none do."""
    total = sum(sizes)
    for count in range(1, len(sizes) + 1):
        groups, before = [[] for _ in range(count)], 0
        for place, size in enumerate(sizes):
            groups[(before + size // 2) * count // total].append(place)
            before += size
        if all(fixed + sum(sizes[place] for place in group) <= most for group in groups):
            return [group for group in groups if group]
    return []


def parts(folder: str) -> tuple[dict[int, str], int]:
    """The parts that a folder has, by number, and how many there are of the dataset; none and 0 for none.

    Raises:
      UserError: the files are of several packings.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}, 0
    found = [(int(match[1]), int(match[2]), name) for name in names if (match := PART.fullmatch(name))]
    totals = sorted({total for _, total, _ in found})
    if len(totals) > 1:
        raise UserError(f"data={folder!r}: expected the parts of one packing, found those of {len(totals)}.")
    return {number: os.path.join(folder, name) for number, _, name in found}, totals[0] if totals else 0


def unpack(paths: Sequence[str]) -> Arrays:
    """The dataset that all parts hold together.

    Raises:
      UserError: one is damaged or missing, or they do not belong together.
    """
    images, labels, whole, filled = {}, {}, None, dict.fromkeys(SPLITS, 0)
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(archive.read(MANIFEST))
                if manifest["format"] != FORMAT:
                    raise ValueError(f"format {manifest['format']}")
                if whole is None:
                    whole = manifest
                    images = {split: np.zeros(shape, np.uint8) for split, shape in manifest["shapes"].items()}
                    with np.load(io.BytesIO(archive.read(LABELS))) as file:
                        labels = {split: file[split] for split in SPLITS}
                if manifest["fingerprint"] != whole["fingerprint"]:
                    raise ValueError("it is of another dataset than the others")
                for tile in manifest["tiles"]:
                    with Image.open(io.BytesIO(archive.read(tile["file"]))) as picture:
                        pixels = np.ascontiguousarray(_apart(np.asarray(picture), tile["shape"]))
                    if hashlib.sha256(pixels).hexdigest() != tile["sha256"]:
                        raise ValueError(f"the pixels of {tile['file']} are not those that were packed")
                    images[tile["split"]][tile["start"] : tile["start"] + len(pixels)] = pixels
                    filled[tile["split"]] += len(pixels)
        # zipfile, zlib, json, numpy and PIL raise many kinds for files that are damaged.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise UserError(f"data={path!r}: expected a part that --pack wrote ({reason}).") from error
    if whole is None or any(filled[split] != len(images[split]) for split in SPLITS):
        raise UserError(f"data: expected all parts, found {len(paths)} of {whole['parts'] if whole else 'none'}.")
    arrays = Arrays(images, labels, tuple(whole["label_names"]))
    if arrays.fingerprint() != whole["fingerprint"]:
        raise UserError(f"data: the labels of {paths[0]!r} are not those that were packed.")
    return arrays


def save(arrays: Arrays, out: str, name: str = CIFAR10) -> str:
    """Writes a dataset as the `npz` source reads it, and beside it what it is; the file's path."""
    path = os.path.join(out, ARRAYS)
    named = {f"{split}_images": images for split, images in arrays.images.items()}
    named |= {f"{split}_labels": labels for split, labels in arrays.labels.items()}
    with open(f"{path}.partial", "wb") as file:
        np.savez(file, label_names=np.asarray(arrays.label_names), **named)
    os.replace(f"{path}.partial", path)
    counts = {split: len(labels) for split, labels in arrays.labels.items()}
    with open(os.path.join(out, FINGERPRINT), "w", encoding="utf-8") as file:
        json.dump(dict(name=name, fingerprint=arrays.fingerprint(), bytes=os.path.getsize(path), **counts), file)
    return path


def there(out: str, name: str = CIFAR10) -> str:
    """The path of what `save` wrote before under a name, if it is there as a whole; else ''."""
    path = os.path.join(out, ARRAYS)
    try:
        with open(os.path.join(out, FINGERPRINT), encoding="utf-8") as file:
            found = json.load(file)
        return path if (found["name"], found["bytes"]) == (name, os.path.getsize(path)) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def prepare(out: str, folder: str, data_dir: str) -> tuple[str, str]:
    """Brings the dataset into `out`, from parts that were handed over now or before, or from a folder of TFDS.

    Args:
      out: the campaign's folder; it keeps the parts until all have come.
      folder: where parts may be; '' for none.
      data_dir: where TFDS has prepared cifar10; '' for none.

    Returns:
      The path of the arrays, '' if they cannot be had, and a sentence that says where they are from or what is missing.

    Raises:
      UserError: a part is damaged; the folder of TFDS has no such dataset.
    """
    if path := there(out):
        return path, "CIFAR-10 is there from before"
    kept = os.path.join(out, PARTS)
    if folder:
        handed, _ = parts(folder)
        if not handed and not os.path.isdir(folder):
            raise UserError(f"data={folder!r}: expected a folder with parts that --pack wrote.")
        for source in handed.values():
            target = os.path.join(kept, os.path.basename(source))
            if not os.path.exists(target):
                os.makedirs(kept, exist_ok=True)
                _copy(source, target)
    found, total = parts(kept)
    if found and len(found) == total:
        path = save(unpack([found[number] for number in sorted(found)]), out)
        for part in found.values():
            os.remove(part)
        return path, f"CIFAR-10 from {total} parts"
    if data_dir:
        return save(read(data_dir), out), "CIFAR-10 from the folder of TFDS"
    if found:
        missing = [str(number) for number in range(1, total + 1) if number not in found]
        return "", f"of CIFAR-10's {total} parts {', '.join(missing)} has not come yet"
    return "", "no CIFAR-10 was handed over (--data or --data_dir)"


def _copy(source: str, target: str) -> None:
    """Copies a part that is sound; a damaged one would have to be found and removed in `out`."""
    try:
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
        if broken:
            raise UserError(f"data={source!r}: expected a part that --pack wrote ({broken} in it is damaged).")
        with open(source, "rb") as file, open(f"{target}.partial", "wb") as copy:
            copy.write(file.read())
        os.replace(f"{target}.partial", target)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"data={source!r}: expected a part that --pack wrote ({error}).") from error
