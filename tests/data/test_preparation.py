"""The prepared form holds what it should, whoever makes it, and is never half there."""

import errno
import fcntl
import io
import json
import os
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.data import preparation, prepared, records, shards, sources
from alexnet_resnet.data.examples import EncodedExamples, Examples, InMemory
from alexnet_resnet.data.preparation import Options, Started
from alexnet_resnet.errors import UserError

SIZE = 24
DATA = types.SimpleNamespace(dataset="tiny", data_dir="")
NAMES = ("cat", "dog", "hen")


def picture(height, width, seed, mode="RGB"):
    """Coloured waves, which a JPEG can hold."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + seed + c) + y / (9 - c)) for c in range(4 if mode == "CMYK" else 3)]
    pixels = np.round(127.5 + 127 * np.stack(waves, -1)).astype(np.uint8)
    return Image.fromarray(pixels, mode if mode == "CMYK" else "RGB").convert(mode)


def stored(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded_examples(images, name="tiny"):
    return EncodedExamples(InMemory(images, [i % 3 for i in range(len(images))]), range(len(images)), NAMES, name)


@pytest.fixture(scope="module")
def images():
    shapes = [(30, 40), (50, 31), (24, 24), (10, 20), (24, 60), (80, 25), (33, 33)]
    return [stored(picture(*shape, seed)) for seed, shape in enumerate(shapes * 2)]


@pytest.fixture
def source(images, monkeypatch):
    """A dataset of two splits, which a test may change."""
    splits = {"train": encoded_examples(images), "validation": encoded_examples(images[:5])}
    monkeypatch.setattr(sources, "load", lambda data, split, field: splits[split])
    return splits


def run(out, processes=1, max_unreadable=0.01, data=DATA, **options):
    """All that `prepare` yields."""
    options = {"size": SIZE, "shard_images": 4} | options
    return list(preparation.prepare(data, Options(**options), str(out), processes, max_unreadable))


def load(out, split="train"):
    return prepared.load(types.SimpleNamespace(data_dir=str(out)), split)


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def content(out):
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("square", [False, True])
def test_every_image_is_stored_once_small_and_in_order(source, images, tmp_path, square):
    run(tmp_path, square=square, quality=90)
    for split, originals in (("train", images), ("validation", images[:5])):
        examples = load(tmp_path, split)
        assert len(examples) == len(originals)
        assert examples.label_names == NAMES
        for index, original in enumerate(originals):
            data, label = examples.read(index)
            assert label == index % 3
            whole = Image.open(io.BytesIO(original)).convert("RGB")
            width, height = whole.size
            scale = SIZE / min(width, height)
            small = whole.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
            if square:
                left, top = (small.width - SIZE) // 2, (small.height - SIZE) // 2
                small = small.crop((left, top, left + SIZE, top + SIZE))
            assert min(small.size) == SIZE
            expected = stored(small, quality=90, subsampling="4:2:0")
            np.testing.assert_array_equal(decoded(data), decoded(expected))
            assert len(data) <= len(expected), "tables made for the image"


@pytest.mark.parametrize(("processes", "shard_images"), [(1, 100), (1, 3), (3, 3), (3, 5)])
def test_the_statistics_are_numpys_whatever_the_processes_and_shards(source, tmp_path, processes, shard_images):
    run(tmp_path / "one", shard_images=4)
    run(tmp_path / "other", processes, shard_images=shard_images)
    for split in ("train", "validation"):
        examples = load(tmp_path / "other", split)
        found = prepared.read_statistics(examples.statistics)
        images = [decoded(examples.read(i)[0]).astype(np.float64) for i in range(len(examples))]
        pixels = np.concatenate([image.reshape(-1, 3) for image in images])
        covariance = np.cov(pixels.T, bias=True)
        assert (found.images, found.pixels) == (len(images), len(pixels))
        np.testing.assert_allclose(found.mean_colour, pixels.mean(0), rtol=1e-9)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)
        np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(covariance)[::-1], rtol=1e-9)
        np.testing.assert_allclose(found.eigenvectors @ covariance, found.eigenvalues[:, None] * found.eigenvectors)
        corners = [((i.shape[0] - SIZE) // 2, (i.shape[1] - SIZE) // 2) for i in images]
        squares = [i[t : t + SIZE, s : s + SIZE] for i, (t, s) in zip(images, corners, strict=True)]
        np.testing.assert_allclose(found.mean_image, np.mean(squares, 0), rtol=1e-9)
        name = f"{split}-statistics.npz"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_processes_change_no_bit(source, tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "three", 3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_tensorflow_reads_the_records_and_sees_the_same_pixels(source, images, tmp_path):
    import tensorflow as tf

    run(tmp_path)
    kinds = {
        "image/encoded": tf.string, "image/class/label": tf.int64, "image/filename": tf.string,
        "image/height": tf.int64, "image/width": tf.int64,
    }  # fmt: skip
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}
    files = [str(tmp_path / shard.file) for shard in prepared.read_manifest(str(tmp_path)).splits["train"].shards]
    assert files == sorted(map(str, tmp_path.glob("train-*.tfrecord")))
    rows = list(tf.data.TFRecordDataset(files).map(lambda row: tf.io.parse_single_example(row, features)))
    assert len(rows) == len(images)
    examples = load(tmp_path)
    for index, row in enumerate(rows):
        data, label = examples.read(index)
        assert (row["image/encoded"].numpy(), int(row["image/class/label"])) == (data, label)
        assert row["image/filename"].numpy() == b"image %d" % index
        # Left to itself TensorFlow takes a faster transform, which is off by some levels.
        pixels = tf.io.decode_jpeg(data, dct_method="INTEGER_ACCURATE").numpy()
        assert pixels.shape == (int(row["image/height"]), int(row["image/width"]), 3)
        np.testing.assert_array_equal(pixels, decoded(data))


def test_arrays_are_encoded(tmp_path, monkeypatch):
    arrays = np.stack([np.asarray(picture(12, 12, seed)) for seed in range(9)])
    examples = Examples(arrays, np.arange(9, dtype=np.int32) % 3, NAMES, "tiny")
    monkeypatch.setattr(sources, "load", lambda data, split, field: examples)
    run(tmp_path / "one", size=12, quality=95, splits=("train",))
    run(tmp_path / "two", 2, size=12, quality=95, splits=("train",))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    found = load(tmp_path / "one")
    for index in range(9):
        data, label = found.read(index)
        assert label == index % 3
        expected = decoded(stored(Image.fromarray(arrays[index]), quality=95, subsampling="4:2:0"))
        np.testing.assert_array_equal(decoded(data), expected)


def test_images_of_other_kinds_are_brought_to_rgb(source, tmp_path):
    """ImageNet has a PNG named .JPEG and 22 in CMYK; the camera's orientation is not applied."""
    turned = picture(30, 50, 0)
    turned.getexif()[0x0112] = 6
    source["train"] = encoded_examples(
        [
            stored(picture(30, 40, 1), "PNG"),
            stored(picture(30, 40, 2, "CMYK")),
            stored(picture(30, 40, 3, "L")),
            stored(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"),
            stored(turned, exif=turned.getexif()),
        ]
    )
    run(tmp_path, quality=95)
    shapes = [decoded(load(tmp_path).read(i)[0]).shape for i in range(5)]
    assert shapes == [(24, 32, 3), (24, 32, 3), (24, 32, 3), (24, 24, 3), (24, 40, 3)]
    np.testing.assert_allclose(decoded(load(tmp_path).read(3)[0]).mean((0, 1)), (200, 100, 50), atol=2)


def test_noise_that_defeats_the_search_for_tables_is_stored_all_the_same():
    noise = np.random.default_rng(0).integers(0, 2, (256, 256, 3), np.uint8) * 255
    expected = stored(Image.fromarray(noise), quality=94, subsampling="4:2:0")
    np.testing.assert_array_equal(decoded(shards.encode(noise, 94)), decoded(expected))


def test_unreadable_images_are_left_out_and_listed(source, images, tmp_path):
    damaged = list(images)
    damaged[2] = images[2][: len(images[2]) // 2]
    damaged[9] = b"no image"
    damaged[10] = stored(Image.new("RGB", (3, 9000)), "PNG")
    source["train"] = encoded_examples(damaged)
    manifest = run(tmp_path, max_unreadable=0.3)[-1]
    split = manifest.splits["train"]
    assert split.examples == len(load(tmp_path)) == len(images) - 3
    assert [reason.split(":")[0] for reason in split.unreadable] == ["image 2", "image 9", "image 10"]
    assert "runcated" in split.unreadable[0]
    assert "9000x3 pixels: too narrow" in split.unreadable[2]
    assert manifest.splits["validation"].unreadable == ()
    kept = [label for index, label in enumerate(i % 3 for i in range(len(images))) if index not in (2, 9, 10)]
    assert [load(tmp_path).read(i)[1] for i in range(len(kept))] == kept
    assert prepared.read_statistics(load(tmp_path).statistics).images == len(kept)


def test_too_many_unreadable_images_stop_and_a_larger_share_goes_on(source, images, tmp_path):
    source["train"] = encoded_examples([b"no image"] * 3 + images[3:])  # all of the first shard
    with pytest.raises(
        UserError,
        match=r"max_unreadable=0.2: 3 of the 14 examples of 'train' are unreadable, such as image 0: .*; "
        r"1 of 6 shards are finished and stay; the same command goes on",
    ):
        run(tmp_path, max_unreadable=0.2)
    first = tmp_path / "train-00000-of-00004.tfrecord"
    before = os.stat(first)
    assert before.st_size == 0
    manifest = run(tmp_path, max_unreadable=0.3)[-1]
    assert os.stat(first).st_ino == before.st_ino
    assert [shard.examples for shard in manifest.splits["train"].shards] == [0, 4, 3, 4]
    examples = load(tmp_path)
    assert [examples.read(i)[1] for i in range(11)] == [i % 3 for i in range(3, 14)]


def test_nothing_readable_is_no_split(source, tmp_path):
    source["train"] = encoded_examples([b"no image"] * 3)
    with pytest.raises(UserError, match="splits='train': expected at least one image that can be read"):
        run(tmp_path, max_unreadable=1.0)


@pytest.fixture
def interrupted(source, tmp_path, monkeypatch):
    """A folder in which a run has ended, as one does that is killed, in the middle of its third shard."""
    written = []

    def write(file, payload):
        written.append(payload)
        if len(written) == 9:
            raise KeyboardInterrupt
        return original(file, payload)

    original = records.write
    with monkeypatch.context() as patch:
        patch.setattr(records, "write", write)
        patch.setattr(shards, "remove_temporaries", lambda folder: None)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
    return tmp_path / "out"


def test_an_interrupted_run_goes_on_and_gives_the_same_bits(interrupted, tmp_path):
    assert [p for p in interrupted.iterdir() if p.name.startswith(shards.TEMPORARY)], "the third shard's beginning"
    finished = {path: os.stat(path) for path in interrupted.glob("*.tfrecord")}
    assert len(finished) == 2
    with pytest.raises(UserError, match="is not finished"):
        load(interrupted)
    started, *_, manifest = run(interrupted)
    assert started == Started(19, sum(shard.examples for shard in manifest.splits["train"].shards[:2]))
    for path, before in finished.items():
        assert (os.stat(path).st_ino, os.stat(path).st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    run(tmp_path / "straight")
    assert content(interrupted) == content(tmp_path / "straight")


def test_a_shard_that_is_not_whole_is_made_again(interrupted, tmp_path):
    one, two = sorted(interrupted.glob("*.tfrecord"))
    one.write_bytes(one.read_bytes()[:-1])
    (interrupted / f".{two.name}.sums.npz").write_bytes(b"PK damaged")
    assert run(interrupted)[0].finished == 0
    run(tmp_path / "straight")
    assert content(interrupted) == content(tmp_path / "straight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 32}, "size: 24 -> 32"),
        ({"square": True}, "square: False -> True"),
        ({"quality": 95}, "quality: 90 -> 95"),
        ({"splits": ("train",)}, r"splits: \['train', 'validation'\] -> \['train'\]"),
        ({"data": types.SimpleNamespace(dataset="other", data_dir="")}, "dataset: 'tiny' -> 'other'"),
    ],
)
def test_another_preparation_into_the_same_folder_is_refused(interrupted, change, message):
    with pytest.raises(UserError, match=f"out='.*' was begun as another preparation, which differs in {message}: exp"):
        run(interrupted, **change)
    run(interrupted)
    before = content(interrupted)
    with pytest.raises(UserError, match=message):
        run(interrupted, **change)
    assert content(interrupted) == before


def test_other_images_under_the_same_name_are_refused(interrupted, source, images):
    source["validation"] = encoded_examples([*images[:4], images[6]])
    with pytest.raises(UserError, match="differs in images: '.*' -> '.*'"):
        run(interrupted)


def test_a_finished_folder_is_left_alone(source, tmp_path):
    manifest = run(tmp_path)[-1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".tfrecord") == [
        "prepared.json",
        "train-statistics.npz",
        "validation-statistics.npz",
    ]
    before = content(tmp_path)
    shutil.copy(tmp_path / "prepared.json", tmp_path / "plan.json")  # as a kill at the very end leaves it
    source.clear()
    assert run(tmp_path, 3, shard_images=7) == [manifest]
    assert content(tmp_path) == before


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("where", ["record", "fsync", "rename"])
def test_a_full_disk_is_one_error_and_the_finished_shards_stay(source, tmp_path, monkeypatch, where, reason):
    calls = []
    module, name = {"record": (records, "write"), "fsync": (os, "fsync"), "rename": (os, "replace")}[where]
    original = getattr(module, name)

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 10:
            raise OSError(reason, os.strerror(reason))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(UserError) as caught:
            run(tmp_path)
    stay = len(list(tmp_path.glob("*.tfrecord")))
    assert stay > 0
    assert str(caught.value) == (
        f"out={str(tmp_path)!r}: {os.strerror(reason).lower()}; "
        f"{stay} of 6 shards are finished and stay; the same command goes on."
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(shards.TEMPORARY)]
    run(tmp_path)
    assert len(load(tmp_path)) == 14


def test_two_at_once_are_refused(source, tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="out=.*: expected no other process to prepare there, but one does"):
        run(tmp_path)
    os.close(descriptor)
    run(tmp_path)


def test_a_folder_that_cannot_be_used_is_refused(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out=.*file': file exists"):
        run(tmp_path / "file")
    (tmp_path / "plan.json").write_text("[")
    with pytest.raises(UserError, match="out=.*: its plan.json is damaged"):
        run(tmp_path)
    (tmp_path / "plan.json").rename(tmp_path / "foreign.tfrecord")
    with pytest.raises(UserError, match="holds 'foreign.tfrecord' but no plan.json: expected a new or an empty folder"):
        run(tmp_path)
    (tmp_path / "prepared.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(UserError, match="prepared in format 9"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0: expected a number of at least 1"),
        ({"size": 70_000}, "size=70000: expected at most 65500"),
        ({"quality": 0}, "quality=0: expected a number from 1 to 100"),
        ({"quality": 101}, "quality=101: expected a number from 1 to 100"),
        ({"shard_images": 0}, "shard_images=0: expected a number of at least 1"),
        ({"splits": ()}, "splits='': expected the names of different splits"),
        ({"splits": ("train", "train")}, "splits='train,train': expected the names of different splits"),
        ({"splits": ("train[:9]",)}, r"splits='train\[:9\]': expected the name of a whole split"),
        ({"processes": 0}, "workers=0: expected a number of at least 1"),
        ({"max_unreadable": 1.5}, "max_unreadable=1.5: expected a share from 0 to 1"),
        ({"max_unreadable": float("nan")}, "max_unreadable=nan: expected a share from 0 to 1"),
    ],
)
def test_options_are_checked_before_any_work(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_grey_arrays_are_refused(tmp_path, monkeypatch):
    examples = Examples(np.zeros((3, 9, 9, 1), np.uint8), np.zeros(3, np.int32), NAMES, "tiny")
    monkeypatch.setattr(sources, "load", lambda data, split, field: examples)
    with pytest.raises(UserError, match="splits='train': expected images of 3 channels, found 1"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
