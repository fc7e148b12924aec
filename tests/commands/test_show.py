"""The contact sheet of a training batch."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import contact_sheet
from alexnet_resnet.data import plan, sources
from alexnet_resnet.errors import UserError
from alexnet_resnet.ops import lighting


def tiles(path, side, count, factor, lines=1):
    """The views in a sheet: below the title and the labels, eight in a row."""
    paper = np.asarray(Image.open(path).convert("RGB"))
    gap, label, enlarged = contact_sheet.GAP, contact_sheet.LABEL, side * factor
    above = 2 * gap + contact_sheet.LINE * lines
    views = []
    for number in range(count):
        row, column = divmod(number, contact_sheet.COLUMNS)
        top, left = above + label + row * (label + enlarged + gap), gap + column * (enlarged + gap)
        view = paper[top : top + enlarged, left : left + enlarged]
        np.testing.assert_array_equal(view, view[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
        views.append(view[::factor, ::factor])
    return np.stack(views)


def expected(config, step, count):
    """The batch's views and labels, by NumPy from the plan: what was subtracted is added back, nothing else is done."""
    examples = sources.load(config.data, config.data.train_split)
    batch = next(plan.training_batches(config.data, len(examples), config.train.batch_size, config.seed, step))
    margin = (config.data.canvas_size - examples.images.shape[1]) // 2
    views = []
    for row, (top, left), flip in zip(batch.rows, batch.offsets, batch.flips, strict=True):
        canvas = np.pad(examples.images[row], [(margin, margin), (margin, margin), (0, 0)])
        view = canvas[top : top + config.data.image_size, left : left + config.data.image_size]
        views.append(view[:, ::-1] if flip else view)
    return np.stack(views)[:count], [examples.label_names[label] for label in examples.labels[batch.rows]][:count]


def digits(**fields):
    config = config_lib.default("resnet_cifar")
    config.data.update(canvas_size=36, random_crop=True, random_flip=True, **fields)
    config.train.update(batch_size=32, duration="2 epochs")
    return config


@pytest.mark.parametrize("loader", ["tf", "resident"])
def test_the_command_draws_the_batch_of_a_step(loader, command, tmp_path):
    out = tmp_path / "batch.png"
    flags = [f"--config.data.loader={loader}", "--config.data.random_flip=True", "--step=45", "--count=11"]
    result = command("data.show", "--config=configs/digits.py", f"--out={out}", *flags)
    assert result.returncode == 0, result.stderr
    # 32 examples a step of 1,257 an epoch: step 45 is in the second.
    title, last = result.stdout.splitlines()
    assert title.startswith("digits train[:1257], 11 of the 32 examples of step 45, epoch 2: view 'canvas': random")
    assert last == f"written to {out}"
    config = digits(train_split="train[:1257]")
    config.data.canvas_size = 34
    views, _ = expected(config, 45, 11)
    np.testing.assert_array_equal(tiles(out, 32, 11, 4), views)


@pytest.mark.parametrize("loader", ["tf", "resident"])
@pytest.mark.parametrize("fields", [{}, {"mean": "none", "divisor": 255.0}, {"mean_position": "centre"}])
def test_a_sheet_holds_the_views_and_their_labels(loader, fields):
    config = digits(loader=loader, **fields)
    sheet = contact_sheet.look(config, 3, 40)
    views, labels = expected(config, 3, 32)
    np.testing.assert_array_equal(sheet.images, views)
    assert sheet.labels == tuple(labels) and sheet.readable.all()


def test_lighting_shifts_each_view_by_a_colour_of_its_own():
    """As run: pixel = mean + (view - mean + shift) / 1.1, whatever the mean is where there is none."""
    plain = contact_sheet.look(digits(mean="none"), 0, 32).images.astype(float)
    config = digits(mean="none", lighting="as_run")
    lit = contact_sheet.look(config, 0, 32).images.astype(float)
    axes = lighting.shift_axes("as_run", *lighting.AUTHOR, 0.1)
    for before, after in zip(plain, lit, strict=True):
        inside = (after > 0).all(-1) & (after < 255).all(-1)
        shift = (after * 1.1 - before)[inside]
        assert np.abs(shift - shift.mean(0)).max() <= 1.2, "one shift an image, but for rounding"
        # The principal axes say which shifts are likely: within five draws' deviation on each.
        draws = shift.mean(0) @ np.linalg.inv(axes)
        assert np.abs(draws).max() < 5 + 0.6 * np.abs(np.linalg.inv(axes)).sum(0).max()
    assert not np.array_equal(lit, contact_sheet.look(digits(mean="none"), 0, 32).images)


def jpeg(colour, size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Plain colours as an image folder, WordNet numbers as its classes; one image is no image."""
    for number, (word, colour) in enumerate([("n01440764", (200, 30, 30)), ("n02119789", (30, 30, 200))]):
        place = tmp_path / "images" / "train" / word
        place.mkdir(parents=True)
        for image in range(8):
            (place / f"{image}.JPEG").write_bytes(jpeg(colour))
        (place / f"{number}_broken.JPEG").write_bytes(b"\xff\xd8 this is no picture")
    config = config_lib.default("resnet_cifar")
    config.data.update(dataset="folder", data_dir=str(tmp_path / "images"), num_classes=2, max_unreadable=0.5)
    config.train.update(batch_size=18)
    return config


@pytest.mark.parametrize("view", ["canvas", "scale", "area"])
def test_an_encoded_set_has_its_words_and_what_cannot_be_read_is_marked(folder, view, tmp_path):
    fields = dict(random_crop=True, mean_position="centre", scale_range=(32, 40))
    folder.data.update(view=view, mean_examples=5, **fields)
    said = []
    sheet = contact_sheet.look(folder, 0, 18, said.append)
    assert sorted(sheet.readable) == [False] * 2 + [True] * 16
    colours = {"tench": (200, 30, 30), "kit fox": (30, 30, 200)}
    for image, label, readable in zip(sheet.images, sheet.labels, sheet.readable, strict=True):
        if readable:
            assert np.abs(image.astype(int) - colours[label]).max() <= 3
    assert said[0].endswith("taking the mean over 5 images") and "2 of 18 images cannot be read" in said[-1]
    assert "of 5 images here" in sheet.title and f"view '{view}'" in sheet.title
    path = tmp_path / "sheet.png"
    contact_sheet.draw(sheet, str(path))
    paper = np.asarray(Image.open(path).convert("RGB")).astype(int)
    crosses = (paper == (200, 0, 0)).all(-1)
    assert crosses.sum() > 1000, "diagonals where the two are"


def test_no_text_leaves_the_sheet(tmp_path):
    images = np.zeros((3, 8, 8, 1), np.uint8)
    names = ("W" * 90, "$not_math$", "ok")
    title = "a title that is long " * 20 + "X" * 300
    path = tmp_path / "long.png"
    contact_sheet.draw(contact_sheet.Sheet(images, names, np.array([True, True, False]), title), str(path))
    paper = np.asarray(Image.open(path).convert("L"))
    assert paper.shape[1] == contact_sheet.NARROWEST
    assert (paper[:, :3] == 255).all() and (paper[:, -3:] == 255).all() and (paper[:3] == 255).all()
    # Between one label and the next is nothing but the gap.
    lines = round((paper.shape[0] - 2 * contact_sheet.GAP - contact_sheet.LABEL - 128 - contact_sheet.GAP) / 18)
    above = 2 * contact_sheet.GAP + contact_sheet.LINE * lines
    for column in (1, 2):
        left = contact_sheet.GAP + column * (128 + contact_sheet.GAP)
        assert (paper[above:, left - contact_sheet.GAP : left] == 255).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is missing"),
        (["--config=configs/digits.py"], "--out is missing"),
        (["--config=configs/digits.py", "--out=OUT/no/batch.png"], "expected a file in a folder that exists"),
        (["--config=configs/digits.py", "--out=OUT/batch.gif"], "expected a name that ends in .png"),
        (["--config=configs/digits.py", "--out=OUT/a.png", "--count=0"], "count=0: expected a number of at least 1"),
        (["--config=configs/digits.py", "--out=OUT/a.png", "--step=-1"], "step=-1: expected a number of at least 0"),
    ],
)
def test_what_is_wrong_is_one_line(flags, message, command, tmp_path):
    result = command("data.show", *[flag.replace("OUT", str(tmp_path)) for flag in flags])
    assert result.returncode == 2 and message in result.stderr
    assert re.fullmatch(r"error: .*\n", result.stderr) and not list(tmp_path.iterdir())


def test_a_step_beyond_the_run_and_a_set_that_is_not_there_are_refused(tmp_path):
    # 1,437 digits in batches of 32, twice.
    with pytest.raises(UserError, match=r"step=90: expected at most 89, as train.duration='2 epochs' says"):
        contact_sheet.look(digits(), 90, 1)
    config = digits()
    config.data.update(dataset="npz", data_dir=str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match="data.data_dir="):
        contact_sheet.look(config, 0, 1)
    with pytest.raises(UserError, match="out=.*expected a file that can be written"):
        (tmp_path / "locked.png").symlink_to(tmp_path / "missing" / "file.png")
        contact_sheet.draw(contact_sheet.look(digits(), 0, 1), str(tmp_path / "locked.png"))


def test_the_resident_loader_needs_no_tensorflow(tmp_path):
    flags = ["--config=configs/digits.py", "--config.data.loader=resident", f"--out={tmp_path}/a.png"]
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'keras'): sys.modules[name] = None\n"
        f"sys.argv = ['show', *{flags!r}]\n"
        "import runpy; runpy.run_module('alexnet_resnet.data.show', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a.png").exists()


def test_help_explains_the_flags(command):
    result = command("data.show", "--help")
    said = result.stdout + result.stderr
    assert "python -m alexnet_resnet.data.show" in said
    for flag in ("config", "out", "step", "count"):
        assert re.search(rf"--{flag}: \w+", said), flag
