"""The curves that a run draws."""

import json

import pytest
from PIL import Image

from alexnet_resnet.analysis import curves
from alexnet_resnet.errors import UserError


def write(workdir, rows, tail=""):
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


@pytest.fixture
def drawn(monkeypatch):
    """What is plotted: (x, y, style)."""
    lines = []
    from matplotlib.axes import Axes

    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **style: lines.append((x, y, style)) or plot(self, x, y, **style)
    )
    return lines


def test_runs_are_overlaid_and_a_half_written_line_is_left_out(tmp_path, drawn):
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


def test_training_is_smoothed_and_what_is_judged_is_not(tmp_path, drawn):
    rows = [{"step": step, "train/loss": float(step), "test/loss": float(step)} for step in (1, 2, 3, 6)]
    write(tmp_path / "a", rows)
    curves.draw([str(tmp_path / "a")], str(tmp_path / "c.png"), "loss", smooth=2)
    train, test = drawn
    assert train[:2] == ((1, 2, 3, 6), (1.0, 1.5, 2.5, 4.5)) and (train[2]["ls"], train[2]["lw"]) == ("--", 1)
    assert test[1] == (1.0, 2.0, 3.0, 6.0) and (test[2]["ls"], test[2]["lw"]) == ("-", 2)


def test_what_only_training_measures_is_drawn_in_full_and_runs_of_one_name_are_told_apart(tmp_path, drawn):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "run", [{"step": 1, "train/learning_rate": 0.1, "train/error": 0.5}])
    folders = [str(tmp_path / folder / "run") for folder in ("x", "y")]
    curves.draw(folders, str(tmp_path / "c.png"), "learning_rate")
    assert [line[2]["ls"] for line in drawn] == ["-", "-"]
    assert [line[2]["label"] for line in drawn] == ["x/run: train (0.1)", "y/run: train (0.1)"]


def test_several_measurements_have_a_panel_each_and_none_for_what_nobody_measured(tmp_path, drawn):
    rows = [{"step": s, "train/error": 0.5, "train/loss": 1.0, "test/loss": 2.0, "train/seconds": 1.0} for s in (1, 2)]
    write(tmp_path / "a", rows)
    curves.draw([str(tmp_path / "a")], str(tmp_path / "c.png"), curves.OVERVIEW)
    assert [line[1] for line in drawn] == [(50.0, 50.0), (1.0, 1.0), (2.0, 2.0)]
    assert Image.open(tmp_path / "c.png").size == (864, 360), "two panels side by side"


def test_a_name_too_long_for_a_legend_stands_above_the_panels(tmp_path, monkeypatch, recwarn):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **named: figures.append(self) or self.draw_without_rendering()
    )
    rows = [{"step": s, "train/error": 0.5, "validation/error": 0.25, "train/loss": 1.0} for s in (1, 2)]
    long, longer = "alexnet-as_run+schedule_2012-without_lighting-seed0", "with many words " * 14
    for name in ("short", long, longer):
        write(tmp_path / name, rows)
    curves.draw([str(tmp_path / "short")], "c.png", curves.OVERVIEW)
    curves.draw([str(tmp_path / long), str(tmp_path / longer)], "c.png", curves.OVERVIEW)
    assert not [str(one.message) for one in recwarn], "the panels have room"
    one, both = figures
    labels = [[text.get_text() for text in figure.axes[0].get_legend().get_texts()] for figure in figures]
    assert not one.legends and labels[0] == ["short: train", "short: validation (25.00%)"]
    assert labels[1] == ["train", "validation (25.00%)"] * 2
    first, second = both.legends[0].get_texts()
    assert first.get_text() == long and second.get_text().split() == longer.split()
    width, height = both.get_size_inches()
    assert "\n" in second.get_text() and both.legends[0].get_window_extent().width <= width * both.dpi
    assert height > one.get_size_inches()[1]
    colours = [line.get_color() for line in both.axes[0].lines]
    assert [line.get_color() for line in both.legends[0].get_lines()] == [colours[0], colours[2]]


def test_the_command_draws_and_says_where(tmp_path, command):
    for name in ("a", "b"):
        write(tmp_path / name, [{"step": s, "train/error": 1 / s, "validation/error": 1 / s} for s in (1, 2, 3)])
    out = tmp_path / "c.png"
    result = command("analysis.curves", str(tmp_path / "a"), str(tmp_path / "b"), f"--out={out}", "--smooth=2")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"written to {out}\n", "")
    assert Image.open(out).size == (768, 480)
    assert command("analysis.curves", str(tmp_path / "a"), f"--out={out}", "--metric=all").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "--out is missing"),
        (["--out=c.png"], "no runs: expected their folders"),
        (["run", "--out=c.xyz"], "--out='c.xyz': expected a name that ends in one of"),
        (["run", "--out=no/c.png"], "--out='no/c.png': expected a file in a folder that exists"),
        (["nowhere", "--out=c.png"], "workdir='nowhere': expected the folder of a run, with a metrics.jsonl"),
        (["empty", "--out=c.png"], "empty': expected a run with measurements, found none yet"),
        (["run", "--out=c.png", "--metric=eror"], "--metric='eror': expected one of 'error', 'loss', which"),
        (["run", "--out=c.png", "--metric=loss,eror"], "--metric='eror': expected one of"),
        (["run", "--out=c.png", "--smooth=0"], "--smooth=0: expected a number of at least 1"),
        (["run", "--out=c.png", "--smooth=x"], "smooth"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message, tmp_path, command):
    write(tmp_path / "run", [{"step": 1, "train/error": 0.5, "train/loss": 1.0}])
    write(tmp_path / "empty", [])
    known = {name: str(tmp_path / name) for name in ("run", "empty")}
    result = command("analysis.curves", *(known.get(argument, argument) for argument in arguments))
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr
