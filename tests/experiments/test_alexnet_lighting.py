"""The experiment on PCA lighting, run as its first lines say."""

import os

import numpy as np
import pytest
from PIL import Image

NAME = "experiments.alexnet_lighting"


@pytest.mark.parametrize("own_picture", [False, True])
def test_two_figures_and_the_table(command, tmp_path, own_picture):
    flags = [f"--out={tmp_path / 'new' / 'folder'}"]
    if own_picture:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own.png")
        flags.append(f"--image={tmp_path / 'own.png'}")
    result = command(NAME, *flags)
    assert result.returncode == 0, result.stderr
    for name in ("lighting_draws.png", "lighting_axes.png"):
        assert Image.open(tmp_path / "new" / "folder" / name).width > 1000
    # Convention, statistics, and on each axis the formula's standard deviation and that of 100,000 draws.
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines()[1:4]}
    assert [rows[name][2] for name in ("as_run", "unit_range", "as_written")] == ["12.18", "5.55", "1483.04"]
    for row in rows.values():
        numbers = [float(cell) for cell in row[2:8]]
        np.testing.assert_allclose(numbers[1::2], numbers[::2], rtol=0.02, atol=0.006)


@pytest.mark.parametrize(
    "flags,message",
    [
        ([], "--out"),
        (["--out=OUT/file"], "expected a folder"),
        (["--out=OUT", "--image=OUT/file"], "not an image that can be read"),
        (["--out=OUT", "--strength=-1"], "strength=-1.0: expected a number of at least 0."),
    ],
)
def test_what_is_wrong_is_one_line(command, tmp_path, flags, message):
    (tmp_path / "file").write_text("no picture")
    result = command(NAME, *[flag.replace("OUT", str(tmp_path)) for flag in flags])
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["file"]
