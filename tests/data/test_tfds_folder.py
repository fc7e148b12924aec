"""What TFDS has prepared is read as TFDS reads it, without TFDS; what it has not is told."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.data import tfds_folder
from alexnet_resnet.data.examples import EncodedExamples, UnknownSplit, Unreadable
from alexnet_resnet.errors import UserError

NAMES = [f"class_{i}" for i in range(10)]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)


def make_data(folder, dataset="cifar10"):
    return types.SimpleNamespace(dataset=dataset, data_dir=str(folder))


def write(folder, name, image, rows, names=NAMES, **features):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=names) if names else tfds.features.ClassLabel(num_classes=10)
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="3.0.2",
        features=tfds.features.FeaturesDict({"image": image, "label": label, **features}),
        split_datasets={split: list(enumerate(part)) for split, part in rows.items()},
        data_dir=str(folder),
        disable_shuffling=True,
    )


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """20 images with CIFAR-10's features, written by TFDS itself."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("arrays")
    rows = [{"id": f"row_{i}", "image": image, "label": i % 10} for i, image in enumerate(PIXELS)]
    image = tfds.features.Image(shape=(32, 32, 3))
    write(folder, "cifar10", image, {"train": rows[:15], "test": rows[15:]}, id=tfds.features.Text())
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """12 images of as many sizes with ImageNet's features, written by TFDS itself from JPEG files."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(12):
        path = folder / f"n{i:02}.JPEG"
        Image.fromarray(PIXELS[i][: 9 + i, : 20 - i]).save(path)
        rows.append({"file_name": path.name, "image": str(path), "label": i % 10})
    image = tfds.features.Image(encoding_format="jpeg")
    write(folder, "tiny", image, {"train": rows[:8], "validation": rows[8:]}, file_name=tfds.features.Text())
    return folder


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit(folder, file, change):
    path = next(Path(folder).rglob(file))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def split_of(content, name):
    return next(split for split in content["splits"] if split["name"] == name)


def reshard(folder, lengths, template=None, split="train"):
    """The records of a split spread over files of these lengths, named as the template says."""
    from alexnet_resnet.data import records

    (old,) = Path(folder).rglob(f"*-{split}.tfrecord*")
    reader = records.Records([str(old)], [sum(lengths)])
    payloads = iter([reader.read(row) for row in range(sum(lengths))])
    names = []
    for shard, length in enumerate(lengths):
        total = f"{len(lengths):05}"
        keys = dict(DATASET="tiny", SPLIT=split, FILEFORMAT="tfrecord", NUM_SHARDS=total, SHARD_INDEX=f"{shard:05}")
        keys["SHARD_X_OF_Y"] = f"{shard:05}-of-{total}"
        names.append(old.parent / (template or tfds_folder.DEFAULT_TEMPLATE).format(**keys))
        names[-1].parent.mkdir(exist_ok=True)
        with open(names[-1], "wb") as file:
            for _ in range(length):
                records.write(file, next(payloads))
    if old not in names:
        old.unlink()

    def change(content):
        split_of(content, split)["shardLengths"] = list(map(str, lengths))
        if template is None:
            split_of(content, split).pop("filepathTemplate")
        else:
            split_of(content, split)["filepathTemplate"] = template

    edit(folder, "dataset_info.json", change)
    return names


def as_tfds_reads(folder, name, split, encoded=False):
    import tensorflow_datasets as tfds

    version = next(path.parent for path in Path(folder, name).rglob("dataset_info.json"))
    builder = tfds.builder_from_directory(version)
    rows = builder.as_dataset(
        split=split,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
        decoders={"image": tfds.decode.SkipDecoding()} if encoded else None,
    )
    return [(row["image"], row["label"]) for row in tfds.as_numpy(rows)], tuple(builder.info.features["label"].names)


@pytest.mark.parametrize("split", ["train", "train[5:]", "train[:33%]", "test", "test[-2:]"])
def test_images_of_one_size_come_as_tfds_gives_them(arrays, split):
    examples = tfds_folder.load(make_data(arrays), split)
    theirs, names = as_tfds_reads(arrays, "cifar10", split)
    np.testing.assert_array_equal(examples.images, np.stack([image for image, _ in theirs]))
    np.testing.assert_array_equal(examples.labels, [label for _, label in theirs])
    assert examples.label_names == names == tuple(NAMES) and not examples.encoded
    assert examples.name == f"cifar10 {split}" and examples.labels.dtype == np.int32


@pytest.mark.parametrize("split", ["train", "train[2:7]", "validation"])
def test_images_of_any_size_stay_encoded_as_tfds_gives_them(pictures, split):
    examples = tfds_folder.load(make_data(pictures, "tiny"), split)
    theirs, names = as_tfds_reads(pictures, "tiny", split, encoded=True)
    assert isinstance(examples, EncodedExamples) and examples.label_names == names
    assert [examples.read(i) for i in range(len(examples))] == theirs
    assert (pictures / f"n{8 if split == 'validation' else examples.rows[0]:02}.JPEG").read_bytes() == theirs[0][0]


@pytest.mark.parametrize(
    "template",
    [None, "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}", "{SPLIT}_{SHARD_INDEX}_{NUM_SHARDS}"],
)
def test_several_files_are_read_in_their_order_whatever_they_are_called(pictures, tmp_path, template):
    folder = copy(pictures, tmp_path)
    reshard(folder, [3, 4, 1], template)
    examples = tfds_folder.load(make_data(folder, "tiny"), "train")
    theirs, _ = as_tfds_reads(folder, "tiny", "train", encoded=True)
    ours = [examples.read(i) for i in range(8)]
    assert ours == theirs == [tfds_folder.load(make_data(pictures, "tiny"), "train").read(i) for i in range(8)]


def test_tfrecords_beside_files_of_another_format_are_read(pictures, tmp_path):
    folder = copy(pictures, tmp_path)
    edit(folder, "dataset_info.json", lambda c: c.update(fileFormat="riegeli", alternativeFileFormats=["tfrecord"]))
    assert tfds_folder.load(make_data(folder, "tiny"), "train").read(1)[1] == 1


def test_files_without_records_are_passed_over(pictures, tmp_path):
    folder = copy(pictures, tmp_path)
    names = reshard(folder, [0, 5, 0, 3, 0])
    names[2].unlink()
    examples = tfds_folder.load(make_data(folder, "tiny"), "train")
    assert [examples.read(i)[1] for i in range(8)] == list(range(8))


def test_grey_images_without_class_names_are_read(tmp_path):
    import tensorflow_datasets as tfds

    rows = [{"image": PIXELS[i, :28, :28, :1], "label": i} for i in range(10)]
    write(tmp_path, "mnist", tfds.features.Image(shape=(28, 28, 1)), {"train": rows}, names=None)
    examples = tfds_folder.load(make_data(tmp_path, "mnist"), "train")
    np.testing.assert_array_equal(examples.images, PIXELS[:10, :28, :28, :1])
    assert examples.label_names == tuple("0123456789") and examples.channels == 1


def test_examples_are_named_by_their_files(pictures, arrays, tmp_path):
    examples = tfds_folder.load(make_data(pictures, "tiny"), "validation")
    assert examples.name_of(1).startswith("n09.JPEG (") and examples.name_of(1).endswith(" record 1)")
    folder = copy(pictures, tmp_path)
    edit(folder, "features.json", lambda c: c["featuresDict"]["features"].pop("file_name"))
    name = tfds_folder.load(make_data(folder, "tiny"), "validation").name_of(1)
    assert "tiny-validation.tfrecord-00000-of-00001 record 1" in name and "JPEG" not in name


def test_a_damaged_record_costs_one_encoded_example(pictures, tmp_path):
    folder = copy(pictures, tmp_path)
    path = next(Path(folder).rglob("*train*tfrecord*"))
    content = bytearray(path.read_bytes())
    content[content.index(b"n03.JPEG") + 1] ^= 1
    path.write_bytes(content)
    examples = tfds_folder.load(make_data(folder, "tiny"), "train")
    with pytest.raises(Unreadable, match=r"tiny-train.* record 3: .*CRC32C"):
        examples.read(3)
    assert examples.name_of(3).endswith(" record 3")
    assert [examples.read(i)[1] for i in (0, 1, 2, 4, 5, 6, 7)] == [0, 1, 2, 4, 5, 6, 7]


def replace_record(folder, **features):
    from alexnet_resnet.data import records

    path = next(Path(folder).rglob("*train*tfrecord*"))
    with open(path, "wb") as file:
        records.write(file, records.encode_example(features))
    edit(folder, "dataset_info.json", lambda c: split_of(c, "train").update(shardLengths=["1"]))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": b"a", "label": 10}, "record 0: label 10 of 10 classes"),
        ({"image": b"a", "label": -1}, "record 0: label -1 of 10 classes"),
        ({"label": 1}, "record 0: no tf.train.Example with one image"),
    ],
)
def test_records_that_are_no_example_are_told(pictures, tmp_path, features, message):
    folder = copy(pictures, tmp_path)
    replace_record(folder, **features)
    with pytest.raises(Unreadable, match=message):
        tfds_folder.load(make_data(folder, "tiny"), "train").read(0)


def test_damage_among_images_of_one_size_is_named(arrays, tmp_path):
    folder = copy(arrays, tmp_path)
    path = next(Path(folder).rglob("*train*tfrecord*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    data = make_data(folder)
    with pytest.raises(UserError, match=r"split='train' of cifar10:3.0.2: cannot be read \(.*record 1: .*CRC32C"):
        tfds_folder.load(data, "train")
    assert len(tfds_folder.load(data, "train[5:]")) == 10
    path.write_bytes(whole[:-3000])
    with pytest.raises(UserError, match="cannot be read .*record 14: the file ends within record 14 of 15|record 13"):
        tfds_folder.load(data, "train")
    small = tmp_path / "small.png"
    Image.fromarray(PIXELS[0, :31]).save(small)
    for image, message in ((small.read_bytes(), "expected 32x32 bytes, found 31x32 RGB"), (b"none", "record 0: ")):
        replace_record(folder, image=image, label=1)
        with pytest.raises(UserError, match=f"cannot be read .*{message}"):
            tfds_folder.load(data, "train")


def test_an_empty_slice_has_no_images(arrays):
    examples = tfds_folder.load(make_data(arrays), "train[5:5]")
    assert examples.images.shape == (0, 32, 32, 3) and len(examples) == 0


def test_unknown_splits_are_refused_with_the_known_ones(arrays):
    with pytest.raises(UnknownSplit, match="expected one of .*'test'.* or a slice"):
        tfds_folder.load(make_data(arrays), "validation")
    with pytest.raises(UnknownSplit, match="within the 15 examples"):
        tfds_folder.load(make_data(arrays), "train[:16]")


def test_missing_files_are_named_before_any_work(pictures, tmp_path):
    folder = copy(pictures, tmp_path)
    names = reshard(folder, [2, 2, 2, 2])
    names[1].unlink(), names[2].unlink()
    data = make_data(folder, "tiny")
    with pytest.raises(UserError, match=r"2 of the 4 files of 'train' are missing, the first .*train.*00001-of-00004"):
        tfds_folder.load(data, "train")
    # Those that a slice does not need may be missing.
    assert len(tfds_folder.load(data, "train[:2]")) == 2 and len(tfds_folder.load(data, "train[6:]")) == 2
    with pytest.raises(UserError, match="2 of the 4 files"):
        tfds_folder.load(data, "train[1:]")


def test_the_newest_version_is_read_by_number_or_the_one_that_is_asked_for(arrays, tmp_path):
    folder = copy(arrays, tmp_path)
    for version in ("3.0.10", "2.9.9", "10.0.0.incomplete", "11.0.0"):
        shutil.copytree(folder / "cifar10" / "3.0.2", folder / "cifar10" / version)
    (folder / "cifar10" / "11.0.0" / "dataset_info.json").unlink()
    assert tfds_folder.find("cifar10", str(folder)).full_name == "cifar10:3.0.10"
    assert tfds_folder.find("cifar10:2.9.9", str(folder)).folder.endswith("2.9.9")
    with pytest.raises(UserError, match="expected a version that is there, 2.9.9, 3.0.2, 3.0.10"):
        tfds_folder.find("cifar10:1.0.0", str(folder))


def test_configs_are_folders_between(arrays, tmp_path):
    (tmp_path / "set").mkdir()
    shutil.copytree(arrays / "cifar10", tmp_path / "set" / "one")
    assert tfds_folder.find("set", str(tmp_path)).full_name == "set/one:3.0.2"
    shutil.copytree(arrays / "cifar10", tmp_path / "set" / "two")
    found = tfds_folder.find("set/two", str(tmp_path))
    assert found.name == "set" and found.folder == str(tmp_path / "set" / "two" / "3.0.2")
    with pytest.raises(UserError, match="expected one of 'set/one', 'set/two', which are prepared"):
        tfds_folder.find("set", str(tmp_path))
    with pytest.raises(UserError, match="set/three is not prepared there"):
        tfds_folder.find("set/three", str(tmp_path))


def test_what_is_not_prepared_is_told_with_what_is(arrays):
    with pytest.raises(UserError) as error:
        tfds_folder.find("cifar100", str(arrays))
    for part in ("data.dataset='cifar100'", f"`tfds build cifar100 --data_dir={arrays}`", " has 'cifar10'"):
        assert part in str(error.value)
    for name, near in (("cifar_10", "cifar10"), ("digit", "digits"), ("folders", "folder"), ("prepare", "prepared")):
        with pytest.raises(UserError, match=f"'digits', 'npz', 'folder', 'prepared' or.*Did you mean '{near}'"):
            tfds_folder.find(name, str(arrays))
    for name in ("", "../cifar10", "cifar10/../cifar10", "a/b/c", "/etc"):
        with pytest.raises(UserError, match="is not prepared there"):
            tfds_folder.find(name, str(arrays))


def test_a_missing_or_empty_folder_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data.data_dir=.*missing.*expected a readable folder"):
        tfds_folder.load(make_data(tmp_path / "missing"), "train")
    with pytest.raises(UserError, match="data.dataset='digts': expected 'digits'.*Did you mean 'digits'"):
        tfds_folder.load(make_data(tmp_path / "missing", "digts"), "train")
    with pytest.raises(UserError, match="cifar10 is not prepared there.*has nothing.*tfds build cifar10"):
        tfds_folder.load(make_data(tmp_path), "train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "from_the_environment"))
    with pytest.raises(UserError, match="from_the_environment"):
        tfds_folder.load(make_data(""), "train")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="tensorflow_datasets"):
        tfds_folder.load(make_data(""), "train")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_a_damaged_description_is_told(arrays, tmp_path, file, content):
    folder = copy(arrays, tmp_path)
    next(Path(folder).rglob(file)).write_bytes(content)
    with pytest.raises(UserError, match=f"data.dataset='cifar10': .*{file} cannot be read"):
        tfds_folder.load(make_data(folder), "train")


def feature(content, name):
    return content["featuresDict"]["features"][name]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "dataset_info.json",
            lambda c: c.update(fileFormat="riegeli"),
            "TFRecord files, .* has riegeli; `python",
        ),
        ("dataset_info.json", lambda c: c.update(splits=[]), "has no splits"),
        ("dataset_info.json", lambda c: c.update(splits=[{"nme": "train"}]), "cannot be understood .KeyError: 'name'"),
        ("dataset_info.json", lambda c: c.update(splits="train"), "cannot be understood"),
        ("dataset_info.json", lambda c: c["splits"][0].update(shardLengths=["many"]), "cannot be understood"),
        ("dataset_info.json", lambda c: [s.update(filepathTemplate="{WHAT}") for s in c["splits"]], "WHAT}', which is"),
        (
            "dataset_info.json",
            lambda c: [s.update(filepathTemplate="{") for s in c["splits"]],
            "'{', which is not known",
        ),
        ("features.json", lambda c: c["featuresDict"]["features"].pop("image"), r"and 'label', has \['id', 'label'\]"),
        ("features.json", lambda c: c["featuresDict"]["features"].pop("label"), r"and 'label', has \['id', 'image'\]"),
        ("features.json", lambda c: feature(c, "label").pop("classLabel"), "expected the features 'image' and 'label'"),
        ("features.json", lambda c: c.pop("featuresDict"), r"expected the features 'image' and 'label', has \[\]"),
        ("features.json", lambda c: feature(c, "image")["image"].update(dtype="uint16"), r"has uint16\[32, 32, 3\]"),
        ("features.json", lambda c: feature(c, "image")["image"].update(shape={"dimensions": ["4", "4"]}), r"\[4, 4\]"),
        ("features.json", lambda c: feature(c, "image")["image"].pop("shape"), "cannot be understood"),
        ("features.json", lambda c: feature(c, "label")["classLabel"].update(numClasses="9"), "names 10 classes, .* 9"),
    ],
)
def test_descriptions_that_do_not_fit_are_told(arrays, tmp_path, file, change, message):
    folder = copy(arrays, tmp_path)
    edit(folder, file, change)
    with pytest.raises(UserError, match=f"data.dataset='cifar10': .*{message}"):
        tfds_folder.load(make_data(folder), "train")


def test_a_missing_description_is_told(arrays, tmp_path):
    folder = copy(arrays, tmp_path)
    next(Path(folder).rglob("features.json")).unlink()
    with pytest.raises(UserError, match="features.json is missing; `tfds build cifar10:3.0.2 --overwrite`"):
        tfds_folder.load(make_data(folder), "train")


def test_class_names_that_cannot_be_read_are_told(arrays, tmp_path):
    folder = copy(arrays, tmp_path)
    next(Path(folder).rglob("label.labels.txt")).write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match="label.labels.txt cannot be read"):
        tfds_folder.load(make_data(folder), "train")


def test_neither_tensorflow_nor_tfds_is_imported(arrays, pictures):
    code = (
        "import sys, types; from alexnet_resnet.data import tfds_folder\n"
        f"for name, folder in (('cifar10', {str(arrays)!r}), ('tiny', {str(pictures)!r})):\n"
        "    tfds_folder.load(types.SimpleNamespace(dataset=name, data_dir=folder), 'train')\n"
        "assert not [name for name in sys.modules if name.startswith('tensorflow')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=100)


REAL = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[3] / "shared" / "tfds"))


def real(name):
    return pytest.mark.skipif(not (REAL / name).is_dir(), reason=f"no {name} prepared by TFDS here")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param("cifar10", "train[49500:]", marks=real("cifar10")),
        pytest.param("mnist", "test[:500]", marks=real("mnist")),
    ],
)
def test_real_arrays_are_tfds_own(name, split):
    examples = tfds_folder.load(make_data(REAL, name), split)
    theirs, names = as_tfds_reads(REAL, name, split)
    np.testing.assert_array_equal(examples.images, np.stack([image for image, _ in theirs]))
    np.testing.assert_array_equal(examples.labels, [label for _, label in theirs])
    assert examples.label_names == names


@real("imagenet2012")
@pytest.mark.parametrize("split", ["train", "validation[:10%]"])
def test_real_imagenet_is_tfds_own_and_read_by_threads_at_once(split):
    examples = tfds_folder.load(make_data(REAL, "imagenet2012"), split)
    theirs, names = as_tfds_reads(REAL, "imagenet2012", split, encoded=True)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(examples.read, range(len(examples)))) == theirs
    assert examples.label_names == names and ".JPEG (" in examples.name_of(0)
