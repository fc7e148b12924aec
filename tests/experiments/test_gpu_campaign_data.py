"""The GPU campaign's dataset: CIFAR-10 packed in parts, and damage that is found."""

import dataclasses
import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.data import records
from alexnet_resnet.errors import UserError
from experiments.benchmarks.campaign import data

NAME = "experiments.benchmarks.gpu_campaign"


@pytest.fixture(scope="module")
def arrays():
    return data.synthetic(train=2100, test=130)


@pytest.fixture(scope="module")
def packed(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    (folder / "cifar10-1-of-9.zip").write_bytes(b"of an earlier packing")
    paths = data.pack(arrays, str(folder), part_mb=3)
    assert sorted(os.listdir(folder)) == [Path(path).name for path in paths]
    return paths


def equal(one, other):
    return one.label_names == other.label_names and all(
        np.array_equal(mine[split], theirs[split]) and mine[split].dtype == theirs[split].dtype
        for mine, theirs in ((one.images, other.images), (one.labels, other.labels))
        for split in data.SPLITS
    )


def test_what_is_packed_is_unpacked(arrays, packed):
    assert len(packed) == 2 and all(os.path.getsize(path) <= 3e6 for path in packed)
    assert equal(data.unpack(packed), arrays) and equal(data.unpack(packed[::-1]), arrays)


def test_a_dataset_is_told_from_one_that_differs_in_a_pixel_a_label_or_the_order():
    first = data.synthetic(20, 10)
    prints = [first.fingerprint()]
    for change in ("pixel", "label", "order", "name"):
        other = data.synthetic(20, 10)
        if change == "pixel":
            other.images["test"][9, 31, 31, 2] ^= 1
        if change == "label":
            other.labels["train"][0] += 1
        if change == "order":
            other.images["train"][:] = other.images["train"][::-1]
        if change == "name":
            other = dataclasses.replace(other, label_names=(*other.label_names[1:], "x"))
        prints.append(other.fingerprint())
    assert len({*prints}) == 5 and prints[0] == data.synthetic(20, 10).fingerprint()


def rewritten(path, target, **changes):
    """A part with some members changed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(
                name, changes.get(name.split(".")[0].replace("-", "_"), lambda old: old)(source.read(name))
            )
    return str(target)


def test_damage_is_found(packed, tmp_path):
    whole = Path(packed[1]).read_bytes()
    broken = tmp_path / "cifar10-2-of-2.zip"
    # In the manifest, and in the images.
    for place in (100, len(whole) // 2):
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises(UserError, match="expected a part that --pack wrote"):
            data.unpack([packed[0], str(broken)])
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="expected a part that --pack wrote"):
        data.unpack([packed[0], str(broken)])

    def other_pixel(old):
        pixels = np.array(Image.open(io.BytesIO(old)))
        pixels[0, 0, 0] ^= 1
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "webp", lossless=True)
        return target.getvalue()

    def other_label(old):
        with np.load(io.BytesIO(old)) as file:
            labels = dict(file)
        labels["train"][5] += 1
        target = io.BytesIO()
        np.savez(target, **labels)
        return target.getvalue()

    def other_set(old):
        return json.dumps(dict(json.loads(old), fingerprint="another")).encode()

    with pytest.raises(UserError, match="the pixels of train-000000.webp"):
        data.unpack([rewritten(packed[0], tmp_path / "pixel.zip", train_000000=other_pixel), packed[1]])
    with pytest.raises(UserError, match="the labels of"):
        data.unpack([rewritten(packed[0], tmp_path / "label.zip", labels=other_label), packed[1]])
    with pytest.raises(UserError, match="another dataset"):
        data.unpack([packed[0], rewritten(packed[1], tmp_path / "other.zip", manifest=other_set)])
    with pytest.raises(UserError, match="expected all parts, found 1 of 2"):
        data.unpack(packed[:1])
    with pytest.raises(UserError, match="format 2"):
        newer = lambda old: json.dumps(dict(json.loads(old), format=2)).encode()  # noqa: E731
        data.unpack([rewritten(packed[0], tmp_path / "newer.zip", manifest=newer)])


def test_parts_may_come_in_several_calls(arrays, packed, tmp_path):
    out, hand = tmp_path / "out", tmp_path / "hand"
    hand.mkdir()
    out.mkdir()
    assert data.prepare(str(out), "", "") == ("", "no CIFAR-10 was handed over (--data or --data_dir)")
    for number, path in enumerate(packed):
        moved = hand / Path(path).name
        moved.write_bytes(Path(path).read_bytes())
        path, said = data.prepare(str(out), str(hand), "")
        moved.unlink()
        if not number:
            assert path == "" and said == "of CIFAR-10's 2 parts 2 has not come yet"
    assert said == "CIFAR-10 from 2 parts" and os.listdir(out / data.PARTS) == []
    with np.load(path) as file:
        assert np.array_equal(file["test_images"], arrays.images["test"])
        assert np.array_equal(file["train_labels"], arrays.labels["train"])
        assert tuple(file["label_names"]) == arrays.label_names
    assert data.prepare(str(out), "", "")[0] == path
    # Half of it, or what a rehearsal made, is not CIFAR-10.
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    assert data.there(str(out)) == ""
    data.save(data.synthetic(10, 10), str(out), data.SYNTHETIC)
    assert data.there(str(out)) == "" and data.there(str(out), data.SYNTHETIC) == path


def test_a_damaged_part_is_not_kept(packed, tmp_path):
    hand, out = tmp_path / "hand", tmp_path / "out"
    hand.mkdir()
    whole = Path(packed[0]).read_bytes()
    place = len(whole) // 2
    (hand / Path(packed[0]).name).write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    with pytest.raises(UserError, match=r"cifar10-1-of-2.zip.*--pack"):
        data.prepare(str(out), str(hand), "")
    assert os.listdir(out / data.PARTS) == []
    (hand / "cifar10-1-of-3.zip").write_bytes(b"")
    with pytest.raises(UserError, match="the parts of one packing, found those of 2"):
        data.prepare(str(out), str(hand), "")
    with pytest.raises(UserError, match="expected a folder with parts"):
        data.prepare(str(out), str(tmp_path / "nowhere"), "")


def test_a_part_may_be_too_small(arrays, tmp_path):
    with pytest.raises(UserError, match=r"part_mb=0.01: expected at least (\d+\.\d+)\.") as error:
        data.pack(arrays, str(tmp_path / "parts"), 0.01)
    least = float(re.search(r"at least (\d+\.\d+)", str(error.value))[1])
    paths = data.pack(arrays, str(tmp_path / "parts"), least)
    assert all(os.path.getsize(path) <= least * 1e6 for path in paths) and len(paths) > 2
    assert equal(data.unpack(paths), arrays)


def test_cifar_10_as_tfds_prepares_it_is_packed(command, tmp_path):
    folder = tmp_path / "tfds" / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    image, label = dict(shape=dict(dimensions=["32", "32", "3"]), dtype="uint8"), dict(numClasses="10")
    features = dict(featuresDict=dict(features=dict(image=dict(image=image), label=dict(classLabel=label))))
    (folder / "features.json").write_text(json.dumps(features))
    arrays, splits = data.synthetic(30, 12), []
    for split in data.SPLITS:
        with open(folder / f"cifar10-{split}.tfrecord-00000-of-00001", "wb") as file:
            for pixels, number in zip(arrays.images[split], arrays.labels[split], strict=True):
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "png")
                example = dict(image=encoded.getvalue(), label=int(number))
                records.write(file, records.encode_example(example))
        splits.append(dict(name=split, shardLengths=[str(len(arrays.labels[split]))]))
    (folder / "dataset_info.json").write_text(json.dumps(dict(fileFormat="tfrecord", splits=splits)))
    (folder / "label.labels.txt").write_text("\n".join(arrays.label_names))
    result = command(NAME, f"--pack={tmp_path / 'parts'}", f"--data_dir={tmp_path / 'tfds'}")
    assert result.returncode == 0, result.stderr
    assert f"fingerprint {arrays.fingerprint()}" in result.stdout
    assert equal(data.unpack([str(tmp_path / "parts" / "cifar10-1-of-1.zip")]), arrays)
