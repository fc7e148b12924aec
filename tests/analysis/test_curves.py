"""The curves that a run draws."""

import json

import pytest
from PIL import Image

from alexnet_resnet.analysis import curves
from alexnet_resnet.errors import UserError


def write(workdir, rows, tail=""):
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def test_runs_are_overlaid_and_a_half_written_line_is_left_out(tmp_path, monkeypatch):
    drawn = []
    from matplotlib.axes import Axes

    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **style: drawn.append((x, y, style)) or plot(self, x, y, **style)
    )
    rows = [{"step": 10, "train/error": 0.5}, {"step": 20, "train/error": 0.25, "validation/error": 0.3}]
    write(tmp_path / "a", [*rows, {"step": 20, "test/error": 0.9}], tail='{"step": 30, "train/err')
    write(tmp_path / "b", [{"step": 10, "test/error": 0.4}])
    curves.draw([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "c.png"))
    assert Image.open(tmp_path / "c.png").size == (768, 480)
    a_train, a_validation, b_test = drawn
    assert a_train[:2] == ((10, 20), (50.0, 25.0)) and a_train[2]["ls"] == "--"
    assert a_validation[:2] == ((20,), (30.0,)) and "30.00%" in a_validation[2]["label"]
    assert b_test[:2] == ((10,), (40.0,)) and a_train[2]["color"] == a_validation[2]["color"] != b_test[2]["color"]


def test_a_folder_without_measurements_is_refused(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl"):
        curves.draw([str(tmp_path)], str(tmp_path / "c.png"))
