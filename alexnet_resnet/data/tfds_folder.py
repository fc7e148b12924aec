"""Datasets that TFDS has prepared, read from their folder without TFDS or TensorFlow.

The folder is data_dir/NAME[/CONFIG]/VERSION. Its dataset_info.json names the splits and how many examples each of their
files has, features.json says what an example is, and the files are TFRecords of tf.train.Example.
"""

import concurrent.futures
import dataclasses
import io
import json
import os
import re

import numpy as np

from alexnet_resnet.data.examples import EncodedExamples, Examples, Unreadable, take
from alexnet_resnet.data.records import Records, decode_example, image_and_label
from alexnet_resnet.errors import UserError, near_matches

BUILT_IN = ("digits", "npz", "folder", "prepared")
DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_INFO, _FEATURES = "dataset_info.json", "features.json"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHUNK = 512  # images that one task decodes
_THREADS = min(8, os.cpu_count() or 1)  # small images take turns at Python's lock more than they decode


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A dataset that lies in a folder.

    Attributes:
      name: of the dataset, which its files bear.
      full_name: with config and version, for messages.
      folder: where its files are.
    """

    name: str
    full_name: str
    folder: str


def load(data, split: str) -> Examples | EncodedExamples:
    """The examples of one split of `data.dataset`, as TFDS has prepared it in `data.data_dir`; nothing is downloaded.

    They come in the order of the files and of the records in them, which is TFDS's own with interleave_cycle_length=1.
    Images of one size, such as CIFAR-10's, are decoded (by PIL) and come as an array; those of any size stay encoded
    and are read when they are needed.

    Args:
      data: the configuration's `data` section. `dataset` is TFDS's name, 'name/config' where there are several, with
        ':version' for another than the newest; `data_dir` may be empty for the variable TFDS_DATA_DIR, or else
        ~/tensorflow_datasets.
      split: a split, or a slice of it.

    Raises:
      UnknownSplit: there is no such split, or it is smaller than the slice.
      UserError: the dataset is not there, is damaged, is not in TFRecords, or has no image and label.
    """
    data_dir = os.path.expanduser(data.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    dataset = find(data.dataset, data_dir)
    info, features = _json(dataset, _INFO), _json(dataset, _FEATURES)
    try:
        shape, names, has_file_name = _features(dataset, features)
        lengths = {s["name"]: [*map(int, s.get("shardLengths", ()))] for s in info.get("splits", ())}
        templates = {s["name"]: s.get("filepathTemplate") or DEFAULT_TEMPLATE for s in info.get("splits", ())}
        kinds = [info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", ())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"data.dataset={dataset.name!r}: {dataset.folder} cannot be understood ({type(error).__name__}: {error})."
        ) from error
    if "tfrecord" not in kinds:
        raise UserError(
            f"data.dataset={dataset.name!r}: expected TFRecord files, {dataset.folder} has {' and '.join(kinds)}; "
            f"`python -m tensorflow_datasets.scripts.convert_format --dataset_version_dir={dataset.folder} "
            "--out_file_format=tfrecord` puts such files beside them (it needs apache-beam)."
        )
    if not lengths:
        raise UserError(f"data.dataset={dataset.name!r}: {dataset.folder} has no splits.")
    name, part = take(split, {name: sum(counts) for name, counts in lengths.items()})
    counts = lengths[name]
    rows = range(sum(counts))[part]
    paths = _paths(dataset, name, templates[name], len(counts))
    _check_present(dataset, name, paths, counts, rows)
    records = Records(paths, counts)
    title = f"{dataset.name} {split}"
    if shape is None:
        return EncodedExamples(_Encoded(records, len(names), has_file_name), rows, names, title)
    images, labels = _decode(dataset, split, records, rows, shape)
    return Examples(images, labels, names, title)


def find(name: str, data_dir: str) -> Prepared:
    """The folder of a dataset's newest version, or of the one that its name asks for.

    Raises:
      UserError: it is not there; the message says what is.
    """
    base, _, wanted = name.partition(":")
    try:
        there = sorted(e.name for e in os.scandir(data_dir) if not e.name.startswith(".") and e.is_dir())
    except OSError as error:
        hint = near_matches(name, BUILT_IN)
        raise UserError(
            f"data.dataset={name!r}: expected {', '.join(map(repr, BUILT_IN))} or a dataset prepared by TFDS.{hint}"
            if hint
            else f"data.data_dir={data_dir!r}: expected a readable folder with data prepared by TFDS "
            f"({error.strerror}), for data.dataset={name!r}."
        ) from error
    parts = base.split("/")
    known = len(parts) <= 2 and all(re.fullmatch(r"[\w.+-]+", part) and part.strip(".") for part in parts)
    folder = os.path.join(data_dir, *parts)
    versions = _versions(folder) if known else {}
    if known and not versions and len(parts) == 1:
        configs = sorted(c for c in _subfolders(folder) if _versions(os.path.join(folder, c)))
        if len(configs) > 1:
            several = ", ".join(repr(f"{base}/{config}") for config in configs)
            raise UserError(f"data.dataset={name!r}: expected one of {several}, which are prepared in {data_dir}.")
        if configs:
            base = f"{base}/{configs[0]}"
            folder = os.path.join(folder, configs[0])
            versions = _versions(folder)
    if wanted and versions and wanted not in versions:
        raise UserError(f"data.dataset={name!r}: expected a version that is there, {', '.join(versions)}.")
    if not versions:
        prepared = [d for d in there if _is_prepared(os.path.join(data_dir, d))]
        found = ", ".join(map(repr, prepared[:20])) + (", ..." if len(prepared) > 20 else "") or "nothing"
        hint = near_matches(base, [*BUILT_IN, *prepared])
        raise UserError(
            f"data.dataset={name!r}: expected {', '.join(map(repr, BUILT_IN))} or a dataset prepared by TFDS; "
            f"{base} is not prepared there (data.data_dir={data_dir!r} has {found}); "
            f"`tfds build {base} --data_dir={data_dir}` downloads and prepares it.{hint}"
        )
    version = wanted or next(reversed(versions))
    return Prepared(parts[0], f"{base}:{version}", os.path.join(folder, version))


def _versions(folder: str) -> dict[str, tuple[int, ...]]:
    """The versions in a folder, from the oldest to the newest."""
    names = [v for v in _subfolders(folder) if re.fullmatch(r"\d+\.\d+\.\d+", v)]
    complete = [v for v in names if os.path.isfile(os.path.join(folder, v, _INFO))]
    return dict(sorted(((v, tuple(map(int, v.split(".")))) for v in complete), key=lambda item: item[1]))


def _is_prepared(folder: str) -> bool:
    return bool(_versions(folder)) or any(_versions(os.path.join(folder, name)) for name in _subfolders(folder))


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _json(dataset: Prepared, name: str) -> dict:
    path = os.path.join(dataset.folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except FileNotFoundError as error:
        raise UserError(
            f"data.dataset={dataset.name!r}: {path} is missing; `tfds build {dataset.full_name} --overwrite` with a "
            "TFDS of today writes it."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"data.dataset={dataset.name!r}: {path} cannot be read ({error}).") from error


def _features(dataset: Prepared, features: dict) -> tuple[tuple[int, int, int] | None, tuple[str, ...], bool]:
    """The images' shape, where they have one in common, the classes, and whether examples say their file's name."""
    found = features.get("featuresDict", {}).get("features", {})
    image, label = found.get("image", {}).get("image"), found.get("label", {}).get("classLabel")
    if image is None or label is None:
        raise UserError(
            f"data.dataset={dataset.name!r}: expected the features 'image' and 'label', has {sorted(found)}."
        )
    sides = tuple(int(side) for side in image["shape"]["dimensions"])
    if image.get("dtype", "uint8") != "uint8" or len(sides) != 3 or sides[2] not in (-1, *_MODES):
        raise UserError(
            f"data.dataset={dataset.name!r}: expected images of bytes with 1, 3 or 4 channels, has "
            f"{image.get('dtype')}{list(sides)}."
        )
    names = tuple(map(str, range(int(label["numClasses"]))))
    try:
        with open(os.path.join(dataset.folder, "label.labels.txt"), encoding="utf-8") as file:
            listed = tuple(line.strip() for line in file if line.strip())
    except FileNotFoundError:
        listed = names
    except (OSError, ValueError) as error:
        raise UserError(f"data.dataset={dataset.name!r}: label.labels.txt cannot be read ({error}).") from error
    if len(listed) != len(names):
        raise UserError(
            f"data.dataset={dataset.name!r}: label.labels.txt names {len(listed):,} classes, {_FEATURES} has "
            f"{len(names):,}."
        )
    return None if min(sides) < 0 else sides, listed, "text" in found.get("file_name", {})


def _paths(dataset: Prepared, split: str, template: str, count: int) -> list[str]:
    digits = max(5, len(str(count)))
    total = f"{count:0{digits}}"
    try:
        return [
            os.path.join(
                dataset.folder,
                template.format(
                    DATASET=dataset.name,
                    SPLIT=split,
                    FILEFORMAT="tfrecord",
                    NUM_SHARDS=total,
                    SHARD_INDEX=f"{shard:0{digits}}",
                    SHARD_X_OF_Y=f"{shard:0{digits}}-of-{total}",
                ),
            )
            for shard in range(count)
        ]
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"data.dataset={dataset.name!r}: {_INFO} names the files of {split!r} by {template!r}, which is not known."
        ) from error


def _check_present(dataset: Prepared, split: str, paths: list[str], counts: list[int], rows: range) -> None:
    """Every file that has one of these rows is there; a run must not learn of a hole after hours."""
    missing, first = [], 0
    for path, count in zip(paths, counts, strict=True):
        if count and rows and first <= rows[-1] and first + count > rows[0] and not os.path.isfile(path):
            missing.append(path)
        first += count
    if missing:
        raise UserError(
            f"data.dataset={dataset.name!r}: {len(missing):,} of the {len(paths):,} files of {split!r} are missing, "
            f"the first is {missing[0]}."
        )


class _Encoded:
    """A store of images in TFRecords."""

    def __init__(self, records: Records, num_classes: int, has_file_name: bool):
        self._records, self._num_classes, self._has_file_name = records, num_classes, has_file_name

    def __len__(self) -> int:
        return len(self._records)

    def read(self, row: int) -> tuple[bytes, int]:
        return _read(self._records, row, self._num_classes)

    def name_of(self, row: int) -> str:
        """The name of the file that the image came in, where the record says it, and the record."""
        place = self._records.name_of(row)
        if self._has_file_name:
            try:
                name = decode_example(self._records.read(row)).get("file_name")
                return f"{name.decode('utf-8', 'backslashreplace')} ({place})" if isinstance(name, bytes) else place
            except Unreadable:
                return place  # a damaged record, of which the name is asked most often
        return place


def _read(records: Records, row: int, num_classes: int) -> tuple[bytes, int]:
    payload = records.read(row)
    try:
        image, label = image_and_label(payload)
    except Unreadable as error:
        raise Unreadable(f"{records.name_of(row)}: {error}") from error
    if not 0 <= label < num_classes:
        raise Unreadable(f"{records.name_of(row)}: label {label} of {num_classes} classes")
    return image, label


def _decode(dataset: Prepared, split: str, records: Records, rows: range, shape) -> tuple[np.ndarray, np.ndarray]:
    """All images [N, H, W, C] and labels [N]; every one must be readable, since an array has no holes."""
    images, labels = np.empty((len(rows), *shape), np.uint8), np.empty(len(rows), np.int32)

    def decode(first: int) -> None:
        for place in range(first, min(first + _CHUNK, len(rows))):
            # Labels are checked by the caller, all at once.
            image, labels[place] = _read(records, rows[place], np.iinfo(np.int32).max)
            try:
                images[place] = _pixels(image, shape)
            except Exception as error:  # PIL's readers raise many kinds for damaged images.
                raise Unreadable(f"{records.name_of(rows[place])}: {error}") from error

    try:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(decode, range(0, len(rows), _CHUNK)):
                pass
    except Unreadable as error:
        raise UserError(f"split={split!r} of {dataset.full_name}: cannot be read ({error}).") from error
    return images, labels


def _pixels(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.size != (shape[1], shape[0]) or image.mode.startswith(("I", "F")):
            raise ValueError(f"expected {shape[0]}x{shape[1]} bytes, found {image.height}x{image.width} {image.mode}")
        mode = _MODES[shape[2]]
        return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(shape)
