"""The prepare command: killed, stopped, out of room, and what it says."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.data import prepared, shards

ROOT = Path(__file__).parent.parent.parent
COUNT, SHARDS = 240, 12


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Two hundred and forty 16x16 images, and a few to validate with."""
    random = np.random.default_rng(0)
    levels = random.integers(0, 256, (COUNT, 1, 1, 3))
    images = np.clip(levels + random.integers(-20, 20, (COUNT, 16, 16, 3)), 0, 255).astype(np.uint8)
    labels = np.arange(COUNT) % 3
    path = tmp_path_factory.mktemp("source") / "colours.npz"
    np.savez(path, train_images=images, train_labels=labels, validation_images=images[:9], validation_labels=labels[:9])
    return path


def arguments(npz, out, *more):
    flags = ["--dataset=npz", f"--data_dir={npz}", f"--out={out}", "--size=192", "--shard_images=20", *more]
    return [sys.executable, "-m", "alexnet_resnet.prepare", *flags]


def start(npz, out, *more, **options):
    """The command in a group of its own, as a terminal starts it."""
    return subprocess.Popen(
        arguments(npz, out, *more),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options,
    )  # fmt: skip


def run(npz, out, *more, **options):
    process = start(npz, out, *more, **options)
    stdout, stderr = process.communicate(timeout=120)
    return types.SimpleNamespace(returncode=process.returncode, stdout=stdout, stderr=stderr)


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def wait_for_shards(process, out, count):
    while shards.count(str(out)) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def straight(npz, tmp_path_factory):
    """What an uninterrupted run of one process writes, and says."""
    out = tmp_path_factory.mktemp("prepared") / "straight"
    return out, run(npz, out, "--workers=1")


def test_what_is_written_is_told(straight):
    out, result = straight
    assert result.returncode == 0, result.stderr
    size = sum(path.stat().st_size for path in out.glob("train-*.tfrecord"))
    assert f"train: 240 images, {size / 1e6:,.1f} MB in 12 shards, 0 unreadable" in result.stdout
    assert "validation: 9 images" in result.stdout
    examples = prepared.load(types.SimpleNamespace(data_dir=str(out)), "train")
    found = prepared.read_statistics(examples.statistics)
    for value in (*found.mean_colour, *found.eigenvalues):
        assert f"{value:,.2f}" in result.stdout
    assert f"--config.data.dataset=prepared --config.data.data_dir={out} --config.data.num_classes=3" in result.stdout
    assert re.search(r"^249 images in [\d.]+ s, [\d,]+ images/s$", result.stderr, re.M)
    assert [examples.read(i)[1] for i in range(COUNT)] == [i % 3 for i in range(COUNT)]


def test_killed_by_force_it_goes_on_without_making_a_shard_twice(npz, straight, tmp_path):
    out = tmp_path / "out"
    process = start(npz, out, "--workers=2")
    wait_for_shards(process, out, 3)
    process.kill()
    process.communicate(timeout=60)  # until all who hold its output are gone: its processes end by themselves
    before = {path: path.stat() for path in out.glob("train-*.tfrecord")}
    assert 3 <= len(before) < SHARDS
    result = run(npz, out, "--workers=2")
    assert result.returncode == 0, result.stderr
    assert f"{20 * len(before):,} of 249 images are in finished shards" in result.stderr
    for path, stat in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert content(out) == content(straight[0])


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_asked_to_stop_it_ends_cleanly_and_says_how_to_go_on(npz, straight, tmp_path, number, workers):
    out = tmp_path / "out"
    process = start(npz, out, f"--workers={workers}")
    wait_for_shards(process, out, 2)
    os.killpg(process.pid, number)  # all of its processes, as a terminal and a scheduler do
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    stay = shards.count(str(out))
    assert stderr.splitlines()[-1] == f"interrupted: {stay} shards are finished and stay; the same command goes on."
    assert "Traceback" not in stderr
    assert not [path for path in out.iterdir() if path.name.startswith(shards.TEMPORARY)]
    assert run(npz, out, "--workers=2").returncode == 0
    assert content(out) == content(straight[0])


def test_without_room_it_is_one_error_in_any_process(npz, tmp_path):
    """A limit on the size of files is met in the middle of one, as the end of a disk is."""
    out = tmp_path / "out"
    limit = 40_000
    result = run(npz, out, "--workers=2", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"error: out={str(out)!r}: file too large; 0 of 13 shards are finished and stay; the same command goes on."
    )
    assert "Traceback" not in result.stderr
    assert not [path for path in out.iterdir() if path.name.startswith(shards.TEMPORARY)]


def test_a_finished_folder_is_said_to_be_and_other_flags_are_refused(npz, straight):
    out, first = straight
    before = content(out)
    again = run(npz, out)
    assert again.returncode == 0
    assert again.stdout == f"{out} is finished already.\n{first.stdout}"
    other = run(npz, out, "--quality=80")
    assert other.returncode == 2
    assert re.fullmatch(r"error: out=.* differs in quality: 90 -> 80: .*\n", other.stderr)
    assert content(out) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset="], "--dataset is missing: expected one such as --dataset=imagenet2012."),
        (["--out="], "--out is missing: expected one such as --out=prepared/imagenet-256."),
        (["--size=0"], "size=0: expected a number of at least 1."),
        (["--quality=101"], "quality=101: expected a number from 1 to 100."),
        (["--workers=0"], "workers=0: expected a number of at least 1."),
        (["--size=big"], r"flag --size=big: .*"),
        (["--splits=train,tset"], r"splits='tset': expected one of .*'train'.*"),
        (["--dataset=npzz"], r"data.dataset='npzz': expected .*Did you mean .*'npz'.*"),
    ],
)
def test_wrong_flags_are_one_line_before_any_work(npz, tmp_path, flags, message):
    result = run(npz, tmp_path / "out", *flags)
    assert result.returncode == 2
    assert re.fullmatch(f"error: {message}\n", result.stderr)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_bad_images_is_prepared_without_them(tmp_path):
    """ImageNet's own oddities, and a file that was cut off; the last is left out and named."""
    folder = tmp_path / "images"
    for name in ("train/cat", "train/dog", "validation/cat"):
        (folder / name).mkdir(parents=True)
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8)[:, None], (40, 1, 3)).reshape(40, 60, 3))
    ramp.save(folder / "train/cat/a.JPEG")
    ramp.save(folder / "train/cat/b.JPEG", "PNG")
    ramp.convert("CMYK").save(folder / "train/dog/c.JPEG")
    Image.new("RGB", (1, 1)).save(folder / "train/dog/d.JPEG")
    whole = (folder / "train/cat/a.JPEG").read_bytes()
    (folder / "train/dog/e.JPEG").write_bytes(whole[: len(whole) // 2])
    ramp.save(folder / "validation/cat/f.JPEG")
    out = tmp_path / "out"
    flags = ("--dataset=folder", "--size=32", "--shard_images=2", "--workers=2")
    refused = run(folder, out, *flags)
    assert refused.returncode == 2
    assert re.search(
        r"^error: max_unreadable=0.01: 1 of the 5 examples of 'train' are unreadable", refused.stderr, re.M
    )
    result = run(folder, out, *flags, "--max_unreadable=0.2")
    assert result.returncode == 0, result.stderr
    assert "train: 4 images, " in result.stdout
    assert re.search(r"^  left out: train/dog/e.JPEG: .*$", result.stdout, re.M)
    examples = prepared.load(types.SimpleNamespace(data_dir=str(out)), "train")
    assert [examples.read(i)[1] for i in range(4)] == [0, 0, 1, 1]
    assert examples.label_names == ("cat", "dog")


def test_the_processes_that_work_need_neither_jax_nor_tensorflow():
    code = (
        "import alexnet_resnet.prepare, alexnet_resnet.data.shards, alexnet_resnet.data.workers, sys;"
        "print(*{'jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'sklearn'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "\n"


def test_help_explains_the_flags(npz, tmp_path):
    said = run(npz, tmp_path, "--help").stdout
    assert "python -m alexnet_resnet.prepare --dataset=imagenet2012 --size=256 --out=DIR" in said
    for flag in ("dataset", "data_dir", "out", "size", "square", "quality", "splits", "workers", "max_unreadable"):
        assert re.search(rf"--(\[no\])?{flag}: \S", said), flag
