"""The prepared form is read back by place, and a folder that is not whole is refused by name."""

import json
import os
import types

import numpy as np
import pytest

from alexnet_resnet.data import prepared, records, statistics
from alexnet_resnet.data.examples import UnknownSplit, Unreadable
from alexnet_resnet.data.prepared import Manifest, Shard, Split
from alexnet_resnet.errors import UserError

COUNTS = (3, 0, 4)  # a shard may be empty where all its examples were unreadable


@pytest.fixture
def folder(tmp_path):
    """Seven examples in three shards; their images are any bytes, which nobody decodes here."""
    shards = []
    for place, count in enumerate(COUNTS):
        first = sum(COUNTS[:place])
        name = f"train-{place:05}-of-00003.tfrecord"
        with open(tmp_path / name, "wb") as file:
            for number in range(first, first + count):
                features = {prepared.IMAGE: b"image %d" % number, prepared.LABEL: number % 2, "image/height": 8}
                records.write(file, records.encode_example(features))
        shards.append(Shard(name, count, os.path.getsize(tmp_path / name)))
    sums = statistics.Sums(4)
    sums.add(np.arange(75, dtype=np.uint8).reshape(5, 5, 3))
    with open(tmp_path / "train-statistics.npz", "wb") as file:
        statistics.write(file, sums.statistics())
    split = Split(tuple(shards), "train-statistics.npz", ("a.JPEG: truncated",))
    manifest = Manifest("imagenet2012", 256, False, 90, ("cat", "dog"), {"train": split})
    (tmp_path / prepared.MANIFEST).write_text(prepared.encode_manifest(manifest))
    return tmp_path


def load(folder, split="train"):
    return prepared.load(types.SimpleNamespace(data_dir=str(folder)), split)


def test_every_example_is_read_at_its_place(folder):
    examples = load(folder)
    assert len(examples) == 7
    assert [examples.read(i) for i in range(7)] == [(b"image %d" % i, i % 2) for i in range(7)]
    assert examples.label_names == ("cat", "dog")
    assert examples.name == "imagenet2012 train"
    assert examples.name_of(3).endswith("train-00002-of-00003.tfrecord record 0")


def test_a_slice_has_its_own_rows_and_no_statistics(folder):
    examples = load(folder, "train[2:5]")
    assert [examples.read(i)[0] for i in range(3)] == [b"image 2", b"image 3", b"image 4"]
    assert examples.statistics is None
    assert load(folder, "train[:50%]").statistics is None
    for whole in ("train", "train[:]", "train[0:7]", "train[:100%]"):
        assert load(folder, whole).statistics == str(folder / "train-statistics.npz")
    found = prepared.read_statistics(load(folder).statistics)
    assert (found.images, found.pixels) == (1, 25)


def test_the_manifest_is_what_was_written(folder):
    manifest = prepared.read_manifest(str(folder))
    assert (manifest.size, manifest.square, manifest.quality) == (256, False, 90)
    split = manifest.splits["train"]
    assert (split.examples, split.unreadable) == (7, ("a.JPEG: truncated",))
    assert split.bytes == sum(path.stat().st_size for path in folder.glob("*.tfrecord"))
    assert prepared.encode_manifest(manifest) == (folder / prepared.MANIFEST).read_text()


def test_an_unknown_split_names_those_there_are(folder):
    with pytest.raises(UnknownSplit, match="expected one of 'train'.* Did you mean 'train'"):
        load(folder, "trian")


def test_a_folder_that_was_not_prepared_is_refused_with_the_command(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"data.data_dir='.*': expected a folder with .*alexnet_resnet.prepare"):
            load(folder)


def test_an_unfinished_folder_says_how_to_go_on(folder):
    (folder / prepared.MANIFEST).rename(folder / prepared.PLAN)
    with pytest.raises(UserError, match=r"data.data_dir=.*: is not finished; .* goes on when it is given again"):
        load(folder)


def test_another_format_is_refused_with_both_versions(folder):
    content = json.loads((folder / prepared.MANIFEST).read_text())
    (folder / prepared.MANIFEST).write_text(json.dumps({"format": 7, "splits": "unknown here"}))
    assert content["format"] == prepared.FORMAT
    with pytest.raises(UserError, match=f"prepared in format 7, and this program reads format {prepared.FORMAT}"):
        load(folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "list", "field", "type"])
def test_a_damaged_manifest_is_refused(folder, damage):
    path = folder / prepared.MANIFEST
    text = path.read_text()
    content = json.loads(text)
    if damage == "field":
        del content["splits"]["train"]["shards"][1]["bytes"]
    if damage == "type":
        content["splits"] = ["train"]
    texts = {"cut": text[: len(text) // 2], "empty": "", "list": "[]"}
    path.write_text(texts.get(damage, json.dumps(content)))
    with pytest.raises(UserError, match=r"data.data_dir=.*: its prepared.json is damaged"):
        load(folder)


def test_a_missing_or_shortened_shard_is_found_before_any_work(folder):
    path = folder / "train-00002-of-00003.tfrecord"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"train-00002-of-00003.tfrecord has {len(whole) - 1} bytes; expected the"):
        load(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"data.data_dir=.*train-00002-of-00003.tfrecord: No such file"):
        load(folder)


def test_a_corrupt_record_is_unreadable_by_name_and_its_neighbours_are_read(folder):
    path = folder / "train-00000-of-00003.tfrecord"
    content = bytearray(path.read_bytes())
    place = content.index(b"image 1")
    content[place] ^= 1
    path.write_bytes(content)
    examples = load(folder)
    with pytest.raises(Unreadable, match="train-00000-of-00003.tfrecord record 1"):
        examples.read(1)
    assert [examples.read(i)[0] for i in (0, 2)] == [b"image 0", b"image 2"]


def test_a_record_without_an_image_is_unreadable_by_name(folder):
    path = folder / "train-00001-of-00003.tfrecord"
    with open(path, "wb") as file:
        size = records.write(file, records.encode_example({"image/class/label": 1}))
    text = (folder / prepared.MANIFEST).read_text()
    content = json.loads(text)
    content["splits"]["train"]["shards"][1] |= {"examples": 1, "bytes": size}
    (folder / prepared.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(Unreadable, match="train-00001-of-00003.tfrecord record 0: no .*xample with one image"):
        load(folder).read(3)
