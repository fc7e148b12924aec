"""The experiment on the split over two devices, run as its first lines say, but for its size."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NAME = "experiments.alexnet_columns"
SIDE, CLASSES = 67, 10
SMALL = (
    *("--width=0.0625", "--config.data.dataset=npz", "--config.data.loader=resident"),
    *(f"--config.data.canvas_size={SIDE + 4}", f"--config.data.image_size={SIDE}"),
    f"--config.data.num_classes={CLASSES}",
)
# Two columns that draw the same dropout masks, as two careless devices would.
SAME_MASKS = """
from alexnet_resnet import cli
from alexnet_resnet.ops.columns import Columns
from experiments import alexnet_columns
right = Columns.indices
Columns.indices = lambda self: [0 * index for index in right(self)] if self.axis else right(self)
cli.run(alexnet_columns.main)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "noise.npz"
    pixels = random.integers(0, 256, (24, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(path, train_images=pixels, train_labels=random.integers(0, CLASSES, 24))
    return f"--data_dir={path}"


@pytest.fixture(scope="module")
def two_devices(command, images, tmp_path_factory):
    """The claim in float32; the machine has one device, so two are simulated."""
    out = tmp_path_factory.mktemp("figures") / "new"
    done = command(NAME, *SMALL, images, f"--out={out}", "--steps=4", "--strategies=columns:1x2")
    assert done.returncode == 0, done.stderr
    return out, done, json.loads((out / "alexnet_columns.json").read_text())


def test_two_columns_are_the_network_on_one_device_bit_for_bit(two_devices):
    _, _, result = two_devices
    row = result["rows"]["columns:1x2"]
    assert result["dtype"] == "float32" and result["steps"] == 4
    assert row["losses"] == result["losses"] and len(set(row["losses"])) == 4
    assert row["values_that_differ"] == [0] * 5
    assert row["loss"] == [0] * 4 and row["parameters"] == row["momentum"] == [0] * 5
    assert all(claim["holds"] for claim in result["claims"])


def test_the_control_is_seen_to_differ(two_devices):
    control = two_devices[2]["rows"]["control"]
    assert all(count > 0 for count in control["values_that_differ"])
    assert all(0 < figure < 1e-3 for figure in control["parameters"])
    assert control["momentum"][0] == 0 < control["momentum"][1]


def test_the_files_say_what_was_measured_where_and_with_what(two_devices):
    out, done, result = two_devices
    assert (out / "alexnet_columns.txt").read_text() == done.stdout
    assert Image.open(out / "alexnet_columns.png").width > 1000
    where = result["machine"]
    assert where["command"].startswith(f"python -m {NAME} --width=0.0625")
    for fact in (where["processor"], where["date"], where["command"], "2 simulated devices (cpu)", "24 images"):
        assert fact in done.stdout
    assert re.search(
        r"^columns 1x2 is the network on one device, bit for bit \(4 losses, .*\): yes$", done.stdout, re.M
    )
    assert "columns 1x2: step 4: loss" in done.stderr


def test_masks_that_are_not_the_column_s_own_are_seen(images, tmp_path):
    flags = (*SMALL, images, f"--out={tmp_path}", "--steps=2", "--strategies=columns:1x2")
    done = subprocess.run(
        [sys.executable, "-c", SAME_MASKS, *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"^columns 1x2 is the network on one device, bit for bit .*: no$", done.stdout, re.M)
    row = json.loads((tmp_path / "alexnet_columns.json").read_text())["rows"]["columns:1x2"]
    assert row["values_that_differ"][0] == 0 < row["values_that_differ"][1] and row["loss"][0] > 1e-6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=OUT", "--strategies=columns"], "strategies='columns': expected STRATEGY:DATAxMODEL, such as"),
        (["--out=OUT", "--strategies=columns:1x4"], "parallel.model=4: expected 2, the columns of the network"),
        (["--out=OUT", "--strategies=data:2x2", "--batch_size=6"], "train.batch_size=6: expected a multiple of 4"),
        (["--out=OUT", "--dtype=float16"], "dtype='float16': expected one of 'float32'"),
        (["--out=OUT", "--config.data.dataset=npz", "--data_dir=OUT/none"], "data.data_dir="),
        (["--out=OUT/file"], "expected a folder"),
    ],
)
def test_what_is_wrong_is_one_line(command, flags, message, tmp_path, images):
    (tmp_path / "file").write_text("")
    flags = [flag.replace("OUT", str(tmp_path)) for flag in flags]
    done = command(NAME, *SMALL, images, *flags)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"]
