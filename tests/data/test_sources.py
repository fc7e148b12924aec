"""Where examples come from, and what is said when they cannot come from there."""

import os
from pathlib import Path

import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import sources
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
    assert examples.label_names == ("x", "y", "z") and examples.num_classes == 3
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
    with pytest.raises(UserError, match="Did you mean .*'cifar10'"):
        sources.load(make_data(dataset="cifar_10"), "train")


@pytest.mark.parametrize("split", ["train[5:5]", ""])
def test_empty_splits_are_refused(split):
    with pytest.raises(UserError, match="split=.*expected"):
        sources.load(make_data(), split)


def test_tfds_folders_that_are_missing_or_empty_are_refused(tmp_path, monkeypatch):
    data = make_data(dataset="cifar10", data_dir=str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"data.data_dir=.*missing.*expected a readable folder"):
        sources.load(data, "train")
    with pytest.raises(UserError, match="cifar10 is not prepared there.*tfds build cifar10"):
        sources.load(make_data(dataset="cifar10", data_dir=str(tmp_path)), "train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "from_the_environment"))
    with pytest.raises(UserError, match="from_the_environment"):
        sources.load(make_data(dataset="cifar10"), "train")


def test_npz_arrays_that_no_archive_holds_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(UserError, match="expected a readable .npz file"):
        sources.load(make_data(dataset="npz", data_dir=str(tmp_path / "a.npy")), "train")


def test_classes_that_a_split_lacks_are_still_classes(tmp_path):
    data = npz(tmp_path / "a.npz", train_images=IMAGES, train_labels=LABELS % 2)
    assert sources.load(data, "train").label_names == ("0", "1", "2")


def test_tfds_datasets_without_an_image_and_a_label_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_datasets={"train": [(0, {"text": "a"})]},
        data_dir=str(tmp_path),
        disable_shuffling=True,
    )
    with pytest.raises(UserError, match=r"expected the features 'image' and 'label', has \['text'\]"):
        sources._tfds_examples(builder, "train", tfds)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset with TFDS's name and features for CIFAR-10, but 20 examples, written by TFDS itself."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    builder_type = tfds.builder_cls("cifar10")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    rows = [(i, {"id": f"row_{i}", "image": pixels, "label": i % 10}) for i, pixels in enumerate(images)]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    label = tfds.features.ClassLabel(names=names)
    image = tfds.features.Image(shape=(32, 32, 3))
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version=str(builder_type.VERSION),
        features=tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, "label": label}),
        split_datasets={"train": [*rows[:15]], "test": [*rows[15:]]},
        data_dir=str(folder),
        disable_shuffling=True,
    )
    return folder, images


def test_prepared_tfds_data_is_read_in_its_order(prepared):
    folder, images = prepared
    data = make_data(dataset="cifar10", data_dir=str(folder))
    examples = sources.load(data, "train[5:]")
    np.testing.assert_array_equal(examples.images, images[5:15])
    np.testing.assert_array_equal(examples.labels, np.arange(5, 15) % 10)
    assert examples.label_names[3] == "cat" and not examples.encoded
    with pytest.raises(UserError, match="expected one of 'test', 'train'|expected one of 'train', 'test'"):
        sources.load(data, "validation")


def test_a_damaged_record_is_named(prepared, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(prepared[0], folder)
    record = next(folder.rglob("*train*tfrecord*"))
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 0xFF
    record.write_bytes(content)
    with pytest.raises(UserError, match="split='train' of cifar10.*cannot be read"):
        sources.load(make_data(dataset="cifar10", data_dir=str(folder)), "train")


REAL = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[3] / "shared" / "tfds"))


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="no CIFAR-10 prepared by TFDS here")
def test_the_real_cifar10_has_the_papers_splits():
    data = make_data(dataset="cifar10", data_dir=str(REAL))
    test = sources.load(data, "test")
    assert len(test) == 10_000 and np.bincount(test.labels).tolist() == [1000] * 10
    assert len(sources.load(data, "train[:45000]")) == 45_000


@pytest.mark.skipif(not (REAL / "imagenet2012").is_dir(), reason="no ImageNet prepared by TFDS here")
def test_real_imagenet_stays_encoded():
    data = make_data(dataset="imagenet2012", data_dir=str(REAL), num_classes=1000, canvas_size=256, image_size=224)
    examples = sources.load(data, "validation")
    assert examples.encoded and examples.images[0][:2] == b"\xff\xd8" and examples.num_classes == 1000
