"""Measurements are read one step late, averaged over windows, and never lost."""

import json

import jax.numpy as jnp
import pytest

from alexnet_resnet.training import reporting
from alexnet_resnet.training.reporting import Diverged, Meter, Progress, Writer


class Rows(Writer, Progress):
    """Stands for a writer and a progress bar: keeps what they are given."""

    def __init__(self):
        self.rows, self.shown = [], []

    def write(self, step, **values):
        self.rows.append({"step": step, **values})

    def report(self, step, **values):
        self.shown.append({"step": step, **values})


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(reporting.time, "monotonic", lambda: self.now)


def measured(loss, **other):
    values = {"loss": loss, "error": 0.5, "learning_rate": 0.1, "gradient_norm": 1.0, "parameter_norm": 1.0} | other
    return {name: jnp.float32(value) for name, value in values.items()}


@pytest.fixture
def meter(monkeypatch):
    rows, clock = Rows(), Clock(monkeypatch)
    return Meter(3, 10, rows, rows), rows, clock


def test_a_window_is_written_when_the_step_after_it_is_under_way(meter):
    meter, rows, _ = meter
    for step in (1, 2, 3):
        meter.add(step, measured(float(step)), 0.0)
    assert rows.rows == [], "step 3 is still running"
    meter.add(4, measured(4.0), 0.0)
    assert [row["step"] for row in rows.rows] == [3]
    assert rows.rows[0]["train/loss"] == pytest.approx(2.0)


def test_a_resumed_run_s_windows_end_at_the_same_steps(meter):
    meter, rows, _ = meter
    for step in range(5, 11):
        meter.add(step, measured(float(step)), 0.0)
    meter.finish()
    assert [(row["step"], row["train/loss"]) for row in rows.rows] == [(6, 5.5), (9, 8.0), (10, 10.0)]


def test_the_last_window_is_written_though_it_be_short(meter):
    meter, rows, _ = meter
    meter.add(1, measured(2.0), 0.0)
    meter.finish()
    assert [row["step"] for row in rows.rows] == [1]
    meter.finish()
    assert len(rows.rows) == 1


def test_speed_leaves_out_the_compilation_and_what_is_not_training(meter):
    meter, rows, clock = meter
    meter.add(1, measured(1.0), 0.0)
    clock.now += 100  # the compiler
    for step in (2, 3):
        meter.add(step, measured(1.0), 0.5)
        clock.now += 2
    meter.pause()
    clock.now += 1000  # an evaluation
    meter.proceed()
    meter.add(4, measured(1.0), 0.5)
    first = rows.rows[0]
    # Steps 2 and 3 of ten images in four seconds; half a second was spent waiting after the first step was read.
    assert first["train/images_per_second"] == pytest.approx(20 / 4)
    assert 0 < first["train/input_wait_share"] <= 0.25


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "parameter_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_the_run_and_names_the_step(meter, name, value):
    meter, _, _ = meter
    meter.add(6, measured(1.0), 0.0)
    meter.add(7, measured(1.0) | {name: jnp.float32(value)}, 0.0)
    with pytest.raises(Diverged, match=rf"step 7: .*{name.replace('_', ' ')} {value}.*learning rate 0.1"):
        meter.pause()


def test_rows_go_to_the_file_and_to_tensorboard(tmp_path):
    writer = Writer(str(tmp_path), 0, tensorboard=True)
    writer.write(5, **{"train/loss": 0.25})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 5, "train/loss": 0.25}
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in events
    writer = Writer(str(tmp_path), 4, tensorboard=False)
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "", "a row beyond the step the run goes on from"


def test_without_a_terminal_progress_is_plain_lines(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    progress = Progress(10, 110)
    clock.now = 50.0
    progress.advance()
    progress.report(60, loss=0.5)
    progress.close()
    assert capsys.readouterr().out == "step 60/110  loss 0.5  0:00:50 left\n"


def test_on_a_terminal_progress_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(reporting.sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(0, 4)
    for step in (1, 2):
        progress.advance()
        progress.report(step, loss=0.25)
    progress.say("a line")
    progress.close()
    shown = capsys.readouterr()
    assert "2/4" in shown.err and "loss=0.25" in shown.err and "a line" in shown.out
