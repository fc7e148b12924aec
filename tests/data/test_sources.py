"""Where examples come from, and what is said when they cannot come from there."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import loaders, normalisation, sources
from alexnet_resnet.errors import UserError


def make_data(**fields):
    data = config_lib.default("resnet_cifar").data
    data.update(**fields)
    return data


def npz(path, **arrays):
    np.savez(path, **arrays)
    return make_data(dataset="npz", data_dir=str(path), num_classes=3, channels=1)


IMAGES = np.zeros((4, 5, 6, 1), np.uint8)
LABELS = np.array([0, 1, 2, 1])


def test_the_digits_are_scikit_learns_and_each_is_in_one_split():
    from sklearn.datasets import load_digits

    splits = [sources.load(make_data(), split) for split in ("train[:1257]", "train[1257:]", "test")]
    assert [len(split) for split in splits] == [1257, 180, 360]
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    assert images.shape == (1797, 32, 32, 3) and images.dtype == np.uint8
    # Block means of the enlarged images give back the 8x8 originals nearly; match each to its original.
    small = images[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(1797, 64)
    original = load_digits().images.reshape(1797, 64) * (255 / 16)
    nearest = ((small[:, None].astype(np.float32) - original[None].astype(np.float32)) ** 2).sum(-1).argmin(1)
    assert len(set(nearest)) > 1780, "an example stands twice or is missing"
    assert (load_digits().target[nearest] == labels).mean() > 0.99


def test_the_digits_splits_have_every_class():
    for split in ("train[:1257]", "train[1257:]", "test"):
        assert set(sources.load(make_data(), split).labels) == set(range(10))


def test_npz_arrays_come_back_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 1)).astype(np.uint8)
    data = npz(tmp_path / "a.npz", train_images=images, train_labels=LABELS, label_names=np.array(["x", "y", "z"]))
    examples = sources.load(data, "train")
    np.testing.assert_array_equal(examples.images, images)
    np.testing.assert_array_equal(examples.labels, LABELS)
    assert examples.label_names == ("x", "y", "z")
    np.testing.assert_array_equal(sources.load(data, "train[1:3]").labels, LABELS[1:3])
    np.testing.assert_array_equal(sources.load(data, "train[50%:]").labels, LABELS[2:])
    np.testing.assert_array_equal(sources.load(data, "train[:-1]").labels, LABELS[:-1])
    # 63% of 4 is 2.52, to the nearest 3.
    np.testing.assert_array_equal(sources.load(data, "train[:63%]").labels, LABELS[:3])
    with pytest.raises(UserError, match=r"split='train\[:5\]': expected a slice within the 4 examples of 'train'"):
        sources.load(data, "train[:5]")


def test_npz_grey_images_without_a_channel_axis_get_one(tmp_path):
    data = npz(tmp_path / "a.npz", train_images=IMAGES[..., 0], train_labels=LABELS)
    assert sources.load(data, "train").images.shape == (4, 5, 6, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(other=LABELS), "expected arrays named train_images, train_labels"),
        (dict(train_images=IMAGES), "expected train_labels beside train_images"),
        (dict(train_images=IMAGES.astype(np.float32), train_labels=LABELS), "float32.*expected uint8"),
        (dict(train_images=IMAGES[0, 0], train_labels=LABELS), "expected uint8"),
        (dict(train_images=IMAGES, train_labels=LABELS[:3]), "expected 4 whole numbers"),
        (dict(train_images=IMAGES, train_labels=LABELS * 0.5), "expected 4 whole numbers"),
        (dict(train_images=IMAGES, train_labels=LABELS - 1), "expected labels from 0 to 2, found -1 to 1"),
        (dict(train_images=IMAGES, train_labels=LABELS + 1), "expected labels from 0 to 2, found 1 to 3"),
        (dict(train_images=IMAGES, train_labels=LABELS, label_names=np.array(["x"])), "num_classes=3: expected 1"),
        (dict(train_images=IMAGES[:0], train_labels=LABELS[:0]), "expected at least one example, found none"),
        (dict(train_images=IMAGES, train_labels=np.array(list("abca"))), "expected 4 whole numbers"),
        (dict(train_images=np.uint8(7), train_labels=LABELS), "expected a readable .npz file|expected uint8"),
        (dict(train_images=np.repeat(IMAGES, 3, -1), train_labels=LABELS), "data.channels=1: expected 3"),
        (dict(train_images=np.zeros((4, 40, 8, 1), np.uint8), train_labels=LABELS), "canvas_size=32: expected .* 40"),
    ],
)
def test_npz_files_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        sources.load(npz(tmp_path / "a.npz", **arrays), "train")


def test_npz_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    for name in ("bad.npz", "missing.npz", ""):
        with pytest.raises(UserError, match="expected a readable .npz file"):
            sources.load(make_data(dataset="npz", data_dir=str(tmp_path / name)), "train")
    whole = (tmp_path / "whole.npz").as_posix()
    np.savez(whole, train_images=IMAGES, train_labels=LABELS)
    Path(whole).write_bytes(Path(whole).read_bytes()[:-40])
    with pytest.raises(UserError, match="expected a readable .npz file"):
        sources.load(make_data(dataset="npz", data_dir=whole), "train")


@pytest.mark.parametrize("split", ["trian", "train[:", "train[a:b]", "training[:5]", "train[0:4:2]"])
def test_unknown_splits_are_refused_with_the_known_ones(split):
    with pytest.raises(UserError, match="data.test_split=.*expected one of 'train', 'test' or a slice"):
        sources.load(make_data(), split, "data.test_split")


def test_near_misses_are_suggested():
    with pytest.raises(UserError, match="Did you mean 'train'"):
        sources.load(make_data(), "trian")
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        sources.load(make_data(dataset="digit"), "train")


@pytest.mark.parametrize("split", ["train[5:5]", ""])
def test_empty_splits_are_refused(split):
    with pytest.raises(UserError, match="split=.*expected"):
        sources.load(make_data(), split)


def test_npz_arrays_that_no_archive_holds_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(UserError, match="expected a readable .npz file"):
        sources.load(make_data(dataset="npz", data_dir=str(tmp_path / "a.npy")), "train")


def test_classes_that_a_split_lacks_are_still_classes(tmp_path):
    data = npz(tmp_path / "a.npz", train_images=IMAGES, train_labels=LABELS % 2)
    assert sources.load(data, "train").label_names == ("0", "1", "2")


def test_zero_classes_and_channels_take_what_the_dataset_has(tmp_path):
    data = npz(tmp_path / "a.npz", train_images=IMAGES, train_labels=LABELS)
    data.update(num_classes=0, channels=0)
    assert sources.load(data, "train").label_names == ("0", "1", "2")


def jpeg(path, side=40, value=99):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side + 10), (value, value, value)).save(path)


def test_folders_are_read_by_their_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                jpeg(tmp_path / split / label / f"{number}.JPEG")
    data = make_data(dataset="folder", data_dir=str(tmp_path), num_classes=2)
    examples = sources.load(data, "train[1:]")
    assert examples.encoded and len(examples) == 5 and examples.label_names == ("cat", "dog")
    assert [examples.read(index)[1] for index in range(5)] == [0, 0, 1, 1, 1]
    assert len(sources.load(data, "validation")) == 4
    with pytest.raises(UserError, match="data.num_classes=10: expected 2, as .* train has"):
        sources.load(make_data(dataset="folder", data_dir=str(tmp_path)), "train")
    with pytest.raises(UserError, match="data.test_split='test': expected one of"):
        sources.load(data, "test", "data.test_split")


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "square"])
def prepared(request, tmp_path_factory):
    """A folder that the prepare command's code has written, 32 pixels at its shorter side."""
    folder = tmp_path_factory.mktemp("prepared")
    for label in ("cat", "dog"):
        for number in range(3):
            jpeg(folder / "raw" / "train" / label / f"{number}.JPEG", value=50 * number)
    out = folder / "out"
    flags = ["--dataset=folder", f"--data_dir={folder / 'raw'}", "--size=32", f"--out={out}", "--splits=train"]
    command = [sys.executable, "-m", "alexnet_resnet.prepare", "--workers=1", *flags]
    done = subprocess.run(command + ["--square"] * request.param, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, request.param


def test_prepared_folders_are_read_with_their_statistics(prepared):
    out, square = prepared
    data = make_data(dataset="prepared", data_dir=str(out), num_classes=2)
    examples = sources.load(data, "train")
    assert examples.encoded and len(examples) == 6 and examples.statistics
    loader = loaders.create(data, examples)
    canvases = lambda rows: loader.evaluation_batches(2, rows=rows, whole_canvas=True)  # noqa: E731
    known, _ = normalisation.measure(data, examples, canvases)
    taken, _ = normalisation.measure(data, dataclasses.replace(examples, statistics=None), canvases)
    np.testing.assert_array_equal(known, taken)
    assert not sources.load(data, "train[:5]").statistics, "those of other images"
    # Grey images, each of one level: at another size the mean is the same.
    data.update(canvas_size=24, image_size=24)
    smaller, _ = normalisation.measure(data, sources.load(data, "train"), list)
    np.testing.assert_allclose(smaller, known[:24, :24], atol=1e-4)
    other = dataclasses.replace(examples, rows=range(5))
    with pytest.raises(UserError, match="train-statistics.npz is of 6 images, expected those of .* 5"):
        normalisation.measure(data, other, list)


def test_prepared_images_are_not_enlarged_nor_their_edges_missed(prepared):
    out, square = prepared
    data = make_data(dataset="prepared", data_dir=str(out), num_classes=2, canvas_size=40)
    with pytest.raises(UserError, match="data.canvas_size=40: expected at most 32, the size"):
        sources.load(data, "train")
    data.update(canvas_size=32, view="scale", scale_range=(32, 48))
    with pytest.raises(UserError, match=r"data.scale_range=\(32, 48\): expected sides of at most 32"):
        sources.load(data, "train")
    data.scale_range = (32, 32)
    if square:
        with pytest.raises(UserError, match="data.view='scale': expected 'canvas', as .* with --square"):
            sources.load(data, "train")
    else:
        assert len(sources.load(data, "train")) == 6


def test_other_names_are_those_of_tfds(tmp_path):
    with pytest.raises(UserError, match="data.dataset='cifar100'|cifar100 is not prepared"):
        sources.load(make_data(dataset="cifar100", data_dir=str(tmp_path)), "train")


REAL = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[3] / "shared" / "tfds"))


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="no CIFAR-10 prepared by TFDS here")
def test_the_real_cifar10_has_the_papers_splits():
    data = make_data(dataset="cifar10", data_dir=str(REAL))
    test = sources.load(data, "test")
    assert len(test) == 10_000 and np.bincount(test.labels).tolist() == [1000] * 10
    assert len(sources.load(data, "train[:2000]")) == 2000


@pytest.mark.skipif(not (REAL / "imagenet2012").is_dir(), reason="no ImageNet prepared by TFDS here")
def test_real_imagenet_stays_encoded():
    data = make_data(dataset="imagenet2012", data_dir=str(REAL), num_classes=1000, canvas_size=256, image_size=224)
    examples = sources.load(data, "validation")
    assert examples.encoded and examples.read(0)[0][:2] == b"\xff\xd8" and len(examples.label_names) == 1000
