"""The training command on a folder of photographs, bad ones among them, and with the set on the device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty photographs of two kinds; a PNG named .JPEG, a CMYK one and a truncated one are in the training split."""
    root, random = tmp_path_factory.mktemp("data") / "photographs", np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for label, colour in (("dark", 40), ("light", 200)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                noise = random.integers(-40, 40, (*random.integers(40, 70, 2), 3))
                Image.fromarray((colour + noise).astype(np.uint8)).save(root / split / label / f"{number:02}.JPEG")
    dark = root / "train" / "dark"
    Image.open(dark / "00.JPEG").save(dark / "90.JPEG", "PNG")
    Image.open(dark / "01.JPEG").convert("CMYK").save(dark / "91.JPEG")
    (dark / "92.JPEG").write_bytes((dark / "02.JPEG").read_bytes()[:700])
    return root


def flags_for(folder, workdir, **fields):
    fields = {
        "data.dataset": "folder",
        "data.data_dir": folder,
        "data.num_classes": 2,
        "data.canvas_size": 32,
        "data.image_size": 24,
        "data.view": "scale",
        "data.scale_range": "(28,40)",
        "data.mean_position": "centre",
        "data.random_crop": True,
        "data.random_flip": True,
        "data.lighting": "as_run",
        "data.lighting_statistics": "dataset",
        "data.max_unreadable": 0.05,
        "data.train_split": "train",
        "data.validation_split": "validation",
        "data.test_split": "",
        "model.width": 0.25,
        "train.batch_size": 8,
        "train.duration": "12 steps",
        "evaluation.every": "6 steps",
        "checkpoint.every": "3 steps",
        "log.every": "3 steps",
    } | fields
    return ["--config=configs/digits.py", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory, command):
    workdir = tmp_path_factory.mktemp("runs") / "folder"
    result = command("train", *flags_for(folder, workdir))
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_a_run_goes_over_a_bad_image_and_says_so_at_the_end_of_the_epoch(trained):
    workdir, printed = trained
    assert printed.count("photographs train: 1 of 35 images cannot be read; new: train/dark/92.JPEG: ") == 1
    assert (workdir / "unreadable.txt").read_text().startswith("train/dark/92.JPEG: ")
    assert "taking the mean over 35 images" in printed and "(8 examples)" in printed
    assert sorted(losses(workdir)) == [3, 6, 9, 12] and all(np.isfinite(list(losses(workdir).values())))


def test_a_run_that_was_killed_reads_on_where_it_stopped(trained, folder, tmp_path, launcher):
    workdir = tmp_path / "killed"
    process = launcher.start("train", *flags_for(folder, workdir))
    for line in process.stdout:
        if "step 6:" in line:
            break
    process.kill()
    again = launcher.run("train", *flags_for(folder, workdir))
    assert again.returncode == 0, again.stderr
    assert losses(workdir) == losses(trained[0])


def test_too_many_bad_images_end_the_run_with_one_line(folder, tmp_path, command):
    result = command("train", *flags_for(folder, tmp_path / "run", **{"data.max_unreadable": 0.01}))
    assert result.returncode == 2
    assert "error: data.max_unreadable=0.01: expected at most this share of photographs train" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_empty_class_folder_is_refused_by_name(folder, tmp_path, command):
    (tmp_path / "train" / "empty").mkdir(parents=True)
    (tmp_path / "train" / "full").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "full" / "a.JPEG")
    result = command("train", *flags_for(tmp_path, tmp_path / "run", **{"data.validation_split": ""}))
    assert result.returncode == 2 and "empty" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_set_on_the_device_trains_several_steps_a_call_without_tensorflow(shapes_npz, tmp_path):
    fields = {
        "data.dataset": "npz",
        "data.data_dir": shapes_npz,
        "data.num_classes": 4,
        "data.canvas_size": 10,
        "data.image_size": 8,
        "data.view": "canvas",
        "data.mean_position": "own",
        "data.loader": "resident",
        "data.validation_split": "",
        "train.steps_per_call": 4,
        "train.duration": "7 steps",
        "log.every": "5 steps",
        "log.tensorboard": False,
    }
    code = "import sys\nfor name in ('tensorflow', 'tensorflow_datasets'): sys.modules[name] = None\n"
    code += "from alexnet_resnet import cli, train\ncli.run(train.main)\n"
    result = subprocess.run(
        [sys.executable, "-c", code, *flags_for("", tmp_path / "run", **fields)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Calls of 4, 1 (a report is due), 1 (an evaluation) and 1.
    assert sorted(losses(tmp_path / "run")) == [5, 7]
