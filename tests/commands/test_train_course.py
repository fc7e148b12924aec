"""A run whose course decides its rate: plateau, warm-up by error, average and parts, killed, told to stop, resumed."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# A validation error that stands still in between: with a patience of one evaluation the rate falls.
COURSE = {
    "optimizer.plateau.times": 2,
    "optimizer.plateau.patience": 1,
    "optimizer.plateau.least": 0.02,
    "optimizer.boundaries": "()",
    "optimizer.warmup_until_error": 0.7,
    "optimizer.ema": 0.9,
    "train.accumulate": 2,
    "evaluation.every": "5 steps",
}


@pytest.fixture(scope="module")
def uninterrupted(flags_for, tmp_path_factory, command):
    workdir = tmp_path_factory.mktemp("courses") / "whole"
    result = command("train", *flags_for(workdir, **COURSE))
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


@pytest.fixture(scope="module")
def start(launcher):
    """Starts a training."""
    return lambda flags: launcher.start("train", *flags)


def rates(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["train/learning_rate"] for row in rows if "train/learning_rate" in row]


def test_the_course_decides_the_rate(uninterrupted, final_state):
    workdir, printed = uninterrupted
    control = final_state(workdir).opt_state.control
    assert int(control.cuts) == 2 and not control.warming and float(control.error) < 0.7
    assert printed.count("the validation error no longer falls") == 2
    found = rates(workdir)
    assert found[0] < 0.05 and max(found) == pytest.approx(0.05) and found[-1] == pytest.approx(0.0005, rel=1e-4)
    average = final_state(workdir).average
    assert np.any(average.params["fc"]["kernel"] != final_state(workdir).params["fc"]["kernel"])


def test_killed_in_the_middle_it_ends_with_the_very_same_state(
    uninterrupted, flags_for, tmp_path, final_state, assert_same, start
):
    workdir = tmp_path / "killed"
    process = start(flags_for(workdir, **COURSE))
    while "no longer falls" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.02)
    process.kill()
    process.communicate()
    again = start(flags_for(workdir, **COURSE))
    assert "going on after step" in again.communicate()[0]
    assert again.returncode == 0
    assert_same(final_state(workdir), final_state(uninterrupted[0]))
    assert rates(workdir) == rates(uninterrupted[0])


def test_told_to_stop_it_ends_with_the_very_same_state(
    uninterrupted, flags_for, tmp_path, final_state, assert_same, start
):
    workdir = tmp_path / "stopped"
    process = start(flags_for(workdir, **COURSE, **{"log.every": "1 steps", "checkpoint.every": "100 steps"}))
    while "step 7/30" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0]
    assert process.returncode == 0 and "Told to stop" in printed, printed
    stopped = final_state(workdir)
    assert 7 <= int(stopped.step) < 30
    again = start(flags_for(workdir, **COURSE))
    again.communicate()
    assert again.returncode == 0
    assert_same(final_state(workdir), final_state(uninterrupted[0]))


def test_what_is_judged_is_the_average(uninterrupted, command):
    workdir, _ = uninterrupted
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    result = command("evaluate", f"--workdir={workdir}", "--split=test")
    assert result.returncode == 0, result.stderr
    assert f"top-1 error {100 * rows[-1]['test/error']:.2f}%" in result.stdout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train.accumulate": 16}, "train.accumulate=16: expected a divisor of 8, the examples of train.batch_size=16"),
        ({"optimizer.plateau.times": 1, "data.validation_split": ""}, "optimizer.plateau.times=1: expected 0 with"),
    ],
)
def test_a_course_that_cannot_be_is_one_line(fields, message, flags_for, tmp_path, command):
    result = command("train", *flags_for(tmp_path / "run", **fields), devices=2)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr and not (tmp_path / "run").exists()
