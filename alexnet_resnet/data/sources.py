"""Where examples come from: the embedded digits, arrays in an .npz file, datasets prepared by TFDS."""

import dataclasses
import os
import re

import numpy as np

from alexnet_resnet.errors import UserError, near_matches

DIGITS_TRAIN = 1437  # four fifths of the 1,797 digits; the rest is the test split


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The labelled images of one split, in a fixed order.

    Attributes:
      images: bytes [N, H, W, C] (uint8), or a list of N encoded images (JPEG, PNG) of any size.
      labels: [N], int32, from 0.
      label_names: one name a class.
      name: what they are, for messages: 'cifar10 train[:45000]'.
    """

    images: np.ndarray | list[bytes]
    labels: np.ndarray
    label_names: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def encoded(self) -> bool:
        return isinstance(self.images, list)

    @property
    def channels(self) -> int:
        return 3 if self.encoded else self.images.shape[-1]

    @property
    def num_classes(self) -> int:
        return len(self.label_names)


def load(data, split: str, field: str = "split") -> Examples:
    """The examples of one split of the dataset that `config.data` describes.

    Args:
      data: the configuration's `data` section.
      split: a split of the dataset or a slice of it: 'train', 'train[:45000]', 'test[50%:]'.
      field: what errors call the split.

    Raises:
      UserError: the dataset, its folder or the split is unknown, missing, unreadable or empty.
    """
    if not split:
        raise UserError(f"{field}='': expected the name of a split, such as 'train' or 'train[:45000]'.")
    readers = {"digits": _digits, "npz": _npz}
    try:
        examples = readers.get(data.dataset, _tfds)(data, split)
    except UnknownSplit as error:
        raise UserError(f"{field}={split!r}: {error}") from error
    if not len(examples):
        raise UserError(f"{field}={split!r} of {data.dataset}: expected at least one example, found none.")
    for name in ("num_classes", "channels"):
        if data[name] != getattr(examples, name):
            raise UserError(f"data.{name}={data[name]}: expected {getattr(examples, name)}, as {data.dataset} has.")
    lowest, highest = examples.labels.min(), examples.labels.max()
    if lowest < 0 or highest >= data.num_classes:
        raise UserError(
            f"{field}={split!r} of {data.dataset}: expected labels from 0 to {data.num_classes - 1}, found {lowest} to "
            f"{highest}."
        )
    if not examples.encoded and max(examples.images.shape[1:3]) > data.canvas_size:
        height, width = examples.images.shape[1:3]
        raise UserError(
            f"data.canvas_size={data.canvas_size}: expected at least {max(height, width)}, "
            f"the side of {data.dataset}'s images ({height}x{width})."
        )
    return examples


class UnknownSplit(Exception):
    """A split that the dataset does not have; the message says which it has."""


def _take(split: str, size_of: dict[str, int]) -> tuple[str, slice]:
    """Reads 'name[a:b]', with counts or percentages, as a split's name and a slice of its examples."""
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


def _digits(data, split: str) -> Examples:
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), enlarged to 32x32 RGB, in a fixed shuffle."""
    from PIL import Image
    from sklearn.datasets import load_digits

    name, part = _take(split, {"train": DIGITS_TRAIN, "test": 1797 - DIGITS_TRAIN})
    digits = load_digits()
    # The file lists the writers one after another; shuffled, every split has digits of all of them.
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(digits.target))
    rows = (order[:DIGITS_TRAIN] if name == "train" else order[DIGITS_TRAIN:])[part]
    grey = np.round(digits.images[rows] * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in grey]
    images = np.repeat(np.asarray(large, np.uint8).reshape(-1, 32, 32, 1), 3, axis=-1)
    return Examples(images, digits.target[rows].astype(np.int32), tuple("0123456789"), f"digits {split}")


def _npz(data, split: str) -> Examples:
    """Arrays NAME_images [N, H, W, C] (uint8) and NAME_labels [N] of an .npz file; optionally label_names."""
    path = os.path.expanduser(data.data_dir)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = set(file.files)
            sizes = {a[: -len("_images")]: len(file[a]) for a in arrays if a.endswith("_images")}
            if not sizes:
                raise UserError(f"data.data_dir={data.data_dir!r}: expected arrays named train_images, train_labels.")
            name, part = _take(split, sizes)
            if f"{name}_labels" not in arrays:
                raise UserError(f"data.data_dir={data.data_dir!r}: expected {name}_labels beside {name}_images.")
            images, labels = file[f"{name}_images"], file[f"{name}_labels"]
            names = tuple(map(str, file["label_names"])) if "label_names" in arrays else ()
    except (UserError, UnknownSplit):
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for files that are no archive of arrays.
        raise UserError(f"data.data_dir={data.data_dir!r}: expected a readable .npz file ({error}).") from error
    where = f"data.data_dir={data.data_dir!r}: {name}"
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(f"{where}_images is {images.dtype}{list(images.shape)}; expected uint8 [N, H, W, C].")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(f"{where}_labels is {labels.dtype}{list(labels.shape)}; expected {len(images)} whole numbers.")
    names = names or tuple(map(str, range(data.num_classes)))
    images = images[..., None] if images.ndim == 3 else images
    return Examples(images[part], labels[part].astype(np.int32), names, f"{os.path.basename(path)} {split}")


def _tfds(data, split: str) -> Examples:
    """A dataset that TFDS has prepared; nothing is downloaded."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if data.dataset not in known:
        hint = near_matches(data.dataset, ["digits", "npz", *known])
        raise UserError(f"data.dataset={data.dataset!r}: expected 'digits', 'npz' or a TFDS dataset's name.{hint}")
    data_dir = os.path.expanduser(data.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    if not os.access(data_dir, os.R_OK | os.X_OK):
        raise UserError(f"data.data_dir={data_dir!r}: expected a readable folder with data prepared by TFDS.")
    try:
        builder = tfds.builder(data.dataset, data_dir=data_dir)
        prepared = bool(builder.info.splits)
    except Exception as error:  # TFDS raises many kinds for folders that it cannot make sense of.
        raise UserError(
            f"data.data_dir={data_dir!r}: {data.dataset} cannot be read there ({_first(error)})."
        ) from error
    if not prepared:
        raise UserError(
            f"data.data_dir={data_dir!r}: {data.dataset} is not prepared there; "
            f"`tfds build {data.dataset} --data_dir={data_dir}` downloads and prepares it."
        )
    return _tfds_examples(builder, split, tfds)


def _tfds_examples(builder, split: str, tfds) -> Examples:
    features = builder.info.features
    label = dict(features.items()).get("label")
    if "image" not in features or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"data.dataset={builder.name!r}: expected the features 'image' and 'label', has {[*features]}.")
    _take(split, {name: info.num_examples for name, info in builder.info.splits.items()})
    encoded = None in features["image"].shape
    try:
        rows = builder.as_dataset(
            split=split,
            # One file after another: the order of the examples is part of what makes a run repeatable.
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
            decoders={"image": tfds.decode.SkipDecoding()} if encoded else None,
            batch_size=None if encoded else 1024,
        ).map(lambda row: (row["image"], row["label"]))
        parts = list(tfds.as_numpy(rows))
    except Exception as error:  # TensorFlow's errors for damaged records have no common base but this.
        raise UserError(f"split={split!r} of {builder.info.full_name}: cannot be read ({_first(error)}).") from error
    images, labels = zip(*parts, strict=True) if parts else ((), ())
    names = tuple(features["label"].names)
    if encoded:
        return Examples(list(images), np.asarray(labels, np.int32), names, f"{builder.name} {split}")
    if not parts:
        images, labels = (np.zeros((0, *features["image"].shape), np.uint8),), (np.zeros(0),)
    return Examples(np.concatenate(images), np.concatenate(labels).astype(np.int32), names, f"{builder.name} {split}")


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
