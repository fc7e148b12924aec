"""Measurements are read one step late, averaged over windows, and never lost."""

import errno
import json
import os
import struct
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.parallel.host import peak_memory
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


def test_the_time_of_a_short_last_window_counts_once(meter):
    meter, rows, clock = meter
    meter.add(1, measured(1.0), 0.0)
    meter.add(2, measured(1.0), 0.0)
    clock.now += 2
    meter.pause()
    meter.finish()
    (last,) = rows.rows
    assert last["train/seconds"] == 2
    # Ten images, of the one step whose time is known.
    assert last["train/images_per_second"] == pytest.approx(10 / 2)


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_rows_that_a_full_disk_has_no_room_for_are_kept_until_it_has(tmp_path):
    said = []
    writer = Writer(str(tmp_path), 0, tensorboard=False, tell=said.append)
    writer.write(1, a=1.0)
    file, writer._file = writer._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    writer.write(2, a=2.0)
    writer.write(3, a=3.0)
    assert len(said) == 1 and "step 2: measurements wait for room" in said[0] and "No space left" in said[0]
    writer._file = file
    writer.write(4, a=4.0)
    writer.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_rows_that_never_found_room_are_told(tmp_path):
    said = []
    writer = Writer(str(tmp_path), 0, tensorboard=False, tell=said.append)
    writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    for step in (1, 2):
        writer.write(step, a=1.0)
    writer.close()
    assert said[-1] == "2 rows of measurements are lost (No space left on device)"


def test_tensorboard_s_events_end_where_they_cannot_be_written_and_the_run_goes_on(tmp_path, monkeypatch):
    said = []
    writer = Writer(str(tmp_path), 0, tensorboard=True, tell=said.append)

    def full(step, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._events, "write", full)
    for step in (1, 2):
        writer.write(step, a=1.0)
    writer.close()
    assert said == ["step 1: no more events for TensorBoard (No space left on device); metrics.jsonl has all"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_tensorboard_reads_the_events_and_hides_what_a_killed_run_wrote_beyond(tmp_path):
    from tensorboardX.proto import event_pb2

    for start in (0, 3):
        writer = Writer(str(tmp_path), start, tensorboard=True)
        writer.write(start + 5, **{"train/loss": 0.25})
        writer.close()
    events = []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    scalars = [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in events if e.summary.value]
    assert sorted(scalars) == [(5, "train/loss", 0.25), (8, "train/loss", 0.25)]
    started = [e.step for e in events if e.session_log.status == event_pb2.SessionLog.START]
    assert sorted(started) == [1, 4], "from these steps on TensorBoard forgets what came before"


def test_the_memory_of_a_cpu_is_the_process_s():
    taken = np.ones(2**24)  # 128 MiB
    assert peak_memory() > taken.nbytes


def test_the_memory_of_an_accelerator_is_the_fullest_device_s(monkeypatch):
    devices = [
        Mock(spec=["memory_stats"], memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (5, 7)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_memory() == 7


def test_a_window_says_how_long_it_took_and_what_memory(meter):
    meter, rows, clock = meter
    meter.add(1, measured(1.0), 0.0)
    for step in (2, 3, 4):
        clock.now += 2
        meter.add(step, measured(1.0), 0.0)
    assert rows.rows[0]["train/seconds"] == pytest.approx(4) and rows.rows[0]["train/device_memory_gib"] > 0.01


def test_what_is_forgotten_is_neither_read_nor_averaged(meter):
    meter, rows, _ = meter
    meter.add(1, measured(1.0), 0.0)
    meter.add(2, measured(float("nan")), 0.0)
    meter.forget()
    for step in (5, 6):
        meter.add(step, measured(8.0), 0.0)
    meter.finish()
    assert [(row["step"], row["train/loss"]) for row in rows.rows] == [(6, 8.0)]
