"""Where examples come from: digits and arrays here, encoded images in `tfds_folder`, `image_folder` and `prepared`."""

import os

import numpy as np

from alexnet_resnet.data import image_folder, prepared, tfds_folder
from alexnet_resnet.data.examples import EncodedExamples, Examples, UnknownSplit, take
from alexnet_resnet.errors import UserError

DIGITS_TRAIN = 1437  # four fifths of the 1,797 digits; the rest is the test split


def load(data, split: str, field: str = "split") -> Examples | EncodedExamples:
    """The examples of one split of the dataset that `config.data` describes.

    Args:
      data: the configuration's `data` section. A num_classes or channels of 0 takes what the dataset has.
      split: a split of the dataset or a slice of it: 'train', 'train[:45000]', 'test[50%:]'.
      field: what errors call the split.

    Raises:
      UserError: the dataset, its folder or the split is unknown, missing, unreadable or empty.
    """
    if not split:
        raise UserError(f"{field}='': expected the name of a split, such as 'train' or 'train[:45000]'.")
    readers = {"digits": _digits, "npz": _npz, "folder": image_folder.load, "prepared": prepared.load}
    try:
        examples = readers.get(data.dataset, tfds_folder.load)(data, split)
    except UnknownSplit as error:
        raise UserError(f"{field}={split!r}: {error}") from error
    if not len(examples):
        raise UserError(f"{field}={split!r} of {data.dataset}: expected at least one example, found none.")
    for name, found in (("num_classes", len(examples.label_names)), ("channels", examples.channels)):
        if data[name] not in (0, found):
            raise UserError(f"data.{name}={data[name]}: expected {found}, as {examples.name} has.")
    if data.dataset == "prepared":
        _check_prepared(data)
    if not examples.encoded:
        _check_arrays(data, examples, f"{field}={split!r}")
    return examples


def _check_arrays(data, examples: Examples, split: str) -> None:
    lowest, highest, classes = examples.labels.min(), examples.labels.max(), len(examples.label_names)
    if lowest < 0 or highest >= classes:
        raise UserError(
            f"{split} of {data.dataset}: expected labels from 0 to {classes - 1}, found {lowest} to {highest}."
        )
    height, width = examples.images.shape[1:3]
    if max(height, width) > data.canvas_size:
        raise UserError(
            f"data.canvas_size={data.canvas_size}: expected at least {max(height, width)}, "
            f"the side of {data.dataset}'s images ({height}x{width})."
        )


def _check_prepared(data) -> None:
    """A smaller set would be enlarged, and a squared one has no more than its canvas, without a word."""
    manifest = prepared.read_manifest(data.data_dir)
    if data.canvas_size > manifest.size:
        raise UserError(
            f"data.canvas_size={data.canvas_size}: expected at most {manifest.size}, the size that the images in "
            f"data.data_dir={data.data_dir!r} were prepared at."
        )
    if data.view == "scale" and data.scale_range[1] > manifest.size:
        raise UserError(
            f"data.scale_range={tuple(data.scale_range)}: expected sides of at most {manifest.size}, the size that the "
            f"images in data.data_dir={data.data_dir!r} were prepared at (prepare --size=480 for ResNet's)."
        )
    if manifest.square and data.view != "canvas":
        raise UserError(
            f"data.view={data.view!r}: expected 'canvas', as the images in data.data_dir={data.data_dir!r} were "
            "prepared with --square."
        )


def _digits(data, split: str) -> Examples:
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), enlarged to 32x32 RGB, in a fixed shuffle."""
    from PIL import Image
    from sklearn.datasets import load_digits

    name, part = take(split, {"train": DIGITS_TRAIN, "test": 1797 - DIGITS_TRAIN})
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
            name, part = take(split, sizes)
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
    names = names or tuple(map(str, range(data.num_classes or int(labels.max(initial=0)) + 1)))
    images = images[..., None] if images.ndim == 3 else images
    return Examples(images[part], labels[part].astype(np.int32), names, f"{os.path.basename(path)} {split}")
