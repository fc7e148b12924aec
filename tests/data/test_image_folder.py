"""Folders of images as clusters have them: the classes are the folders, the order is by name, the rest is told."""

import concurrent.futures
import os
import types

import pytest

from alexnet_resnet.data import image_folder
from alexnet_resnet.data.examples import UnknownSplit, Unreadable
from alexnet_resnet.errors import UserError

TRAIN = ["n02/b.JPEG", "n02/a.jpg", "n01/z.jpeg", "n01/c.PNG", "n03/x_10.JPEG", "n03/x_2.JPEG"]
SORTED = ["n01/c.PNG", "n01/z.jpeg", "n02/a.jpg", "n02/b.JPEG", "n03/x_10.JPEG", "n03/x_2.JPEG"]


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return types.SimpleNamespace(data_dir=str(root), dataset="folder")


def train(*paths):
    return [f"train/{path}" for path in paths]


def names(examples):
    return [examples.name_of(i) for i in range(len(examples))]


def test_classes_and_files_come_in_the_order_of_their_names(tmp_path):
    examples = image_folder.load(make(tmp_path / "set", *train(*TRAIN)), "train")
    assert examples.label_names == ("n01", "n02", "n03") and examples.encoded and examples.name == "set train"
    assert names(examples) == train(*SORTED)
    read = [examples.read(i) for i in range(6)]
    assert read == [(f"train/{path}".encode(), int(path[2]) - 1) for path in SORTED]


def test_hidden_files_and_what_is_no_image_are_passed_over(tmp_path):
    extra = [
        "n01/notes.txt",
        "n01/.hidden.JPEG",
        "n01/._c.PNG",
        "n01/sub.jpeg/inside.JPEG",
        ".cache/a.JPEG",
        "top.JPEG",
    ]
    examples = image_folder.load(make(tmp_path, *train(*TRAIN, *extra), ".git/n01/a.JPEG"), "train")
    assert names(examples) == train(*SORTED)


def test_slices_are_those_of_all_datasets(tmp_path):
    data = make(tmp_path, *train(*TRAIN))
    assert names(image_folder.load(data, "train[1:3]")) == train(*SORTED[1:3])
    assert names(image_folder.load(data, "train[50%:]")) == train(*SORTED[3:])
    assert names(image_folder.load(data, "train[:-5]")) == train(*SORTED[:1])
    with pytest.raises(UnknownSplit, match="within the 6 examples of 'train'"):
        image_folder.load(data, "train[:7]")


@pytest.mark.parametrize(("folder", "asked"), [("val", "validation"), ("validation", "val"), ("val", "val")])
def test_the_validation_split_has_two_names_and_the_classes_of_train(tmp_path, folder, asked):
    data = make(tmp_path, *train(*TRAIN), f"{folder}/n03/v.JPEG", f"{folder}/n02/w.JPEG")
    (tmp_path / folder / "n01").mkdir()  # a class may have no image there
    examples = image_folder.load(data, asked)
    assert examples.label_names == ("n01", "n02", "n03")
    assert [examples.read(i)[1] for i in range(2)] == [1, 2]
    assert names(image_folder.load(data, f"{asked}[1:]")) == [f"{folder}/n03/v.JPEG"]


def test_without_a_train_split_the_classes_are_the_splits_own(tmp_path):
    data = make(tmp_path, "test/cat/a.jpg", "test/dog/b.jpg", "new/dog/c.jpg")
    assert image_folder.load(data, "test").label_names == ("cat", "dog")
    assert image_folder.load(data, "new").label_names == ("dog",)


def test_links_are_followed(tmp_path):
    data = make(tmp_path / "real", *train(*TRAIN))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "real" / "train")
    (tmp_path / "real" / "train" / "n01" / "link.JPEG").symlink_to(tmp_path / "real" / "train" / "n02" / "b.JPEG")
    (tmp_path / "real" / "train" / "n04").symlink_to(tmp_path / "real" / "train" / "n02")
    data.data_dir = str(tmp_path / "set")
    examples = image_folder.load(data, "train")
    assert len(examples) == 9 and examples.label_names[3] == "n04"
    assert examples.read(1) == (b"train/n02/b.JPEG", 0) and examples.name_of(1) == "train/n01/link.JPEG"


def test_a_file_that_is_gone_is_named(tmp_path):
    data = make(tmp_path, *train(*TRAIN))
    (tmp_path / "train" / "n01" / "dangling.JPEG").symlink_to(tmp_path / "nowhere")
    examples = image_folder.load(data, "train")
    (tmp_path / "train" / "n03" / "x_2.JPEG").unlink()
    for row, path in ((1, "n01/dangling.JPEG"), (6, "n03/x_2.JPEG")):
        with pytest.raises(Unreadable, match=f"train/{path}: No such file"):
            examples.read(row)
    assert examples.read(0)[1] == 0
    with pytest.raises(IndexError):
        examples.store.read(7)


def test_names_of_any_bytes_are_read_and_can_be_printed(tmp_path):
    data = make(tmp_path, *train(*TRAIN))
    try:
        with open(os.fsencode(tmp_path) + b"/train/n01/\xff.jpg", "wb") as file:
            file.write(b"odd")
    except OSError:
        pytest.skip("this file system has no such names")
    examples = image_folder.load(data, "train")
    assert examples.read(2) == (b"odd", 0) and examples.name_of(2) == r"train/n01/\xff.jpg"


def test_threads_read_at_once(tmp_path):
    examples = image_folder.load(make(tmp_path, *train(*TRAIN)), "train")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: examples.read(i % 6)[0].decode(), range(600)))
    assert read == train(*SORTED) * 100


def test_empty_classes_of_train_are_refused_by_name(tmp_path):
    data = make(tmp_path, *train(*TRAIN, "n04/readme.txt"))
    with pytest.raises(UserError, match="the class 'n04' in 'train' without a .jpeg, .jpg, .png file"):
        image_folder.load(data, "train")
    for i in range(5, 9):
        (tmp_path / "train" / f"n0{i}").mkdir()
    with pytest.raises(UserError, match=r"5 classes \('n04', 'n05', 'n06', \.\.\.\) in 'train' without"):
        image_folder.load(data, "train")


def test_classes_that_train_does_not_know_are_refused_by_name(tmp_path):
    data = make(tmp_path, *train(*TRAIN), "val/n01/a.jpg", "val/n09/b.jpg")
    with pytest.raises(UserError, match="a folder 'n09' in 'val' with no class of that name in 'train'"):
        image_folder.load(data, "validation")
    make(tmp_path, "val/n08/b.jpg")
    with pytest.raises(UserError, match=r"2 folders \('n08', 'n09'\) in 'val'"):
        image_folder.load(data, "validation")


def test_images_without_class_folders_are_refused(tmp_path):
    data = make(tmp_path, *train(*TRAIN), *(f"val/ILSVRC2012_val_{i:08}.JPEG" for i in range(1200)))
    with pytest.raises(UserError, match="1,200 images lie in 'val' itself; expected one folder a class in it"):
        image_folder.load(data, "validation")
    with pytest.raises(UserError, match="2 images lie in 'train' itself"):
        image_folder.load(make(tmp_path / "flat", "train/a.JPEG", "train/b.JPEG"), "train")


def test_splits_without_images_are_refused(tmp_path):
    data = make(tmp_path, *train(*TRAIN), "val/n01/a.txt", "test/readme")
    for split, folder in (("val", "val"), ("validation", "val"), ("test", "test")):
        with pytest.raises(UserError, match=f"no images in '{folder}'"):
            image_folder.load(data, split)


@pytest.mark.parametrize("split", ["training", "train[", "trian[:5]", "n01", "[:3]"])
def test_unknown_splits_are_refused_with_the_known_ones(tmp_path, split):
    data = make(tmp_path, *train(*TRAIN), "val/n01/a.jpg")
    with pytest.raises(UnknownSplit, match="expected one of 'train', 'val' or a slice"):
        image_folder.load(data, split)


def test_folders_of_another_layout_are_refused(tmp_path):
    data = make(tmp_path, *(f"n{i:02}/a.JPEG" for i in range(9)))
    with pytest.raises(
        UserError, match=r"expected the folders 'train' and 'validation' .* found 'n00', .*'n03', \.\.\."
    ):
        image_folder.load(data, "train")
    data.data_dir = ""
    with pytest.raises(UserError, match="data.data_dir='': expected the folders 'train'.*found no folders"):
        image_folder.load(data, "train")
    data.data_dir = str(tmp_path / "missing")
    with pytest.raises(UserError, match="missing'?: expected a readable folder"):
        image_folder.load(data, "train")
    data.data_dir = str(tmp_path / "n00" / "a.JPEG")
    with pytest.raises(UserError, match="expected a readable folder.*Not a directory"):
        image_folder.load(data, "train")


def test_a_class_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    data = make(tmp_path, *train(*TRAIN))
    scandir = os.scandir

    def refuse(path):
        if os.fsencode(path).endswith(b"n02"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"train/n02 cannot be listed \(Permission denied\)"):
        image_folder.load(data, "train")
