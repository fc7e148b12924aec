"""The training command end to end: what it leaves, that it resumes bit for bit, and what it refuses."""

import json
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted(flags_for, tmp_path_factory, command):
    """A run that was never stopped, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    result = command("train", *flags_for(workdir))
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_a_run_prints_a_table_and_leaves_its_files(uninterrupted):
    workdir, printed = uninterrupted
    table = printed[printed.index("\n\n") :]
    lines = ("parameters", "steps", "train error", "train loss", "validation error", "lowest", "test error")
    lines += ("learning rate", "gradient norm", "training time", "images/s", "waiting for input", "device memory")
    for line in (*lines, "curve", "all measurements", "checkpoints"):
        assert line in table, line
    assert table.count("\n") < 24, "one screen"
    for figure in ("curve.png", "overview.png"):
        assert (workdir / figure).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((workdir / "config.json").read_text())["model"]["depth"] == 8
    assert any((workdir / "tensorboard").iterdir())
    steps = {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
    assert 30 in steps and len(steps) <= 3


def test_the_measurements_are_of_every_window_and_every_evaluation(uninterrupted):
    rows = [json.loads(line) for line in (uninterrupted[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [5, 10, 15, 20, 25, 30]
    assert [row["step"] for row in rows if "validation/error" in row] == [10, 20, 30]
    assert [row["step"] for row in rows if "test/error" in row] == [30]
    assert rows[-1]["test/error"] < 0.5, "four bright corners are learnt in thirty steps"


def test_the_same_command_on_a_finished_run_changes_nothing(uninterrupted, flags_for, command):
    workdir, printed = uninterrupted
    before = (workdir / "metrics.jsonl").read_text()
    again = command("train", *flags_for(workdir))
    assert again.returncode == 0, again.stderr
    assert (workdir / "metrics.jsonl").read_text() == before
    assert printed.split("parameters")[-1] == again.stdout.split("parameters")[-1]


def test_killed_at_random_moments_it_ends_with_the_very_same_state(
    uninterrupted, flags_for, tmp_path, final_state, assert_same, launcher
):
    workdir = tmp_path / "killed"
    dice, kills = random.Random(0), 0
    for _ in range(12):
        process = launcher.start("train", *flags_for(workdir))
        # Killed after a number of lines (a line is printed every five steps and at every evaluation) and a moment.
        for _ in range(dice.randint(2, 4)):
            if not process.stdout.readline():
                break
        time.sleep(dice.random() * 0.05)
        if kills < 3 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
            process.communicate()
            continue
        process.communicate()
        break
    assert process.returncode == 0
    assert kills >= 2
    assert_same(final_state(workdir), final_state(uninterrupted[0]))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [5, 10, 15, 20, 25, 30]


def test_sigterm_saves_at_the_next_step_and_ends_well(flags_for, tmp_path, final_state, launcher):
    """tests/training/test_loop.py goes on from there."""
    workdir = tmp_path / "stopped"
    process = launcher.start("train", *flags_for(workdir, **{"checkpoint.every": "100 steps"}))
    printed = [process.stdout.readline() for _ in range(2)]  # the first report: training goes on
    process.send_signal(signal.SIGTERM)
    printed.append(process.communicate()[0])
    assert process.returncode == 0, printed
    step = int(final_state(workdir).step)
    assert 5 < step < 30 and f"Told to stop (SIGTERM): saved after step {step}," in printed[-1]


def test_another_model_in_the_same_folder_is_refused_with_the_difference(uninterrupted, flags_for, command):
    flags = flags_for(uninterrupted[0], **{"model.width": 0.5, "optimizer.learning_rate": 0.1})
    result = command("train", *flags)
    assert result.returncode == 2
    assert "model.width: 0.25 -> 0.5" in result.stderr and "optimizer.learning_rate: 0.05 -> 0.1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_does_not_change_the_results_may_change_on_resuming(uninterrupted, flags_for, command):
    flags = flags_for(uninterrupted[0], **{"log.every": "3 steps", "checkpoint.keep_last": 1})
    assert command("train", *flags).returncode == 0


def test_a_diverging_run_stops_and_keeps_what_was_good(flags_for, tmp_path, command, final_state):
    """A rate of 1e30 after 12 good steps: the step is named, and the newest checkpoint is the one before."""
    rates = {"optimizer.warmup": "12 steps", "optimizer.warmup_learning_rate": 0.01, "optimizer.learning_rate": 1e30}
    result = command("train", *flags_for(tmp_path / "run", **rates))
    assert result.returncode == 1
    said = re.search(
        r"error: stopped at step (\d+): loss \S+, gradient norm \S+ parameter norm \S+ at learning rate 1e\+30",
        result.stderr,
    )
    assert said, result.stderr
    assert 13 <= int(said[1]) <= 16
    state = final_state(tmp_path / "run")
    assert int(state.step) == 10
    assert all(np.isfinite(leaf).all() for leaf in [*_leaves(state.params), *_leaves(state.opt_state)])


def test_a_run_that_breaks_at_its_last_step_does_not_end_well(flags_for, tmp_path, command, final_state):
    """The loss of the last step is finite; the parameters that it leaves are not, and are not saved."""
    rates = {"optimizer.warmup": "29 steps", "optimizer.warmup_learning_rate": 0.01, "optimizer.learning_rate": 3e38}
    result = command("train", *flags_for(tmp_path / "run", **rates))
    assert result.returncode == 1
    assert "stopped at step 30" in result.stderr and "parameter norm" in result.stderr
    assert int(final_state(tmp_path / "run").step) == 25


def test_a_killed_start_leaves_a_folder_that_starts(
    uninterrupted, flags_for, tmp_path, final_state, assert_same, launcher
):
    """Killed as soon as its configuration is written, before there is any checkpoint."""
    workdir = tmp_path / "killed"
    process = launcher.start("train", *flags_for(workdir), out=tmp_path / "said")
    while not (workdir / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    (workdir / "metrics.jsonl").write_text('{"step": 9, "train/lo')
    again = launcher.run("train", *flags_for(workdir))
    assert again.returncode == 0, again.stderr
    assert_same(final_state(workdir), final_state(uninterrupted[0]))


def test_two_trainers_do_not_share_a_folder(uninterrupted, flags_for, command):
    import fcntl

    with open(uninterrupted[0] / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = command("train", *flags_for(uninterrupted[0]))
    assert result.returncode == 2 and "expected no other process to train there" in result.stderr


def test_other_examples_in_the_same_folder_are_refused(uninterrupted, shapes_npz, flags_for, tmp_path, command):
    arrays = dict(np.load(shapes_npz))
    arrays["train_labels"] = arrays["train_labels"][::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    result = command("train", *flags_for(uninterrupted[0], **{"data.data_dir": tmp_path / "other.npz"}))
    assert result.returncode == 2 and "expected the examples that the run" in result.stderr


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


REFUSED = {
    "an unknown field": (["--config.model.dpth=20"], "no field 'dpth'. Did you mean 'depth'"),
    "an unknown section": (["--config.modle.depth=20"], "no field 'modle'. Did you mean 'model'"),
    "a value of another type": (["--config.train.batch_size=many"], "invalid literal for int"),
    "an unknown flag": (["--workdri=x"], "Unknown command line flag 'workdri'"),
    "a loose argument": (["now"], "argument 'now': expected flags only"),
    "an unknown network": (["--config.model.name=resnet_cifra"], "model.name='resnet_cifra': expected one of"),
    "a field of another network": (["--config.model.name=alexnet"], "model.depth: alexnet has no such field"),
    "an impossible depth": (["--config.model.depth=21"], "model.depth=21: expected 6n + 2"),
    "an unknown dataset": (["--config.data.dataset=digts"], "data.dataset='digts'"),
    "an unknown split": (["--config.data.train_split=training"], "data.train_split='training': expected one of"),
    "a missing folder": (
        ["--config.data.dataset=cifar10", "--config.data.data_dir=/nowhere"],
        "data.data_dir='/nowhere'",
    ),
    "a batch the devices do not divide": (
        ["--config.train.batch_size=63"],
        "train.batch_size=63: expected a multiple of 2",
    ),
    "a mesh of other devices": (["--config.parallel.data=3"], "parallel.data=3: expected 2"),
    "a length that is none": (["--config.train.duration=soon"], "train.duration='soon': expected a length"),
    "a length of nothing": (["--config.train.duration=0 epochs"], "train.duration='0 epochs': expected a length above"),
    "falling boundaries": (["--config.optimizer.boundaries=(0.9,0.5)"], "optimizer.boundaries=(0.9, 0.5)"),
    "a crop larger than its canvas": (
        ["--config.data.image_size=99"],
        "data.canvas_size=34: expected a number of at least 99",
    ),
    "a negative rate": (["--config.optimizer.learning_rate=-1"], "optimizer.learning_rate=-1.0: expected"),
    "other classes than the data has": (["--config.data.num_classes=11"], "data.num_classes=11: expected 10"),
    "a slice beyond the end": (["--config.data.train_split=train[:5000]"], "data.train_split='train[:5000]': expected"),
    "less than a step": (
        ["--config.train.duration=0.001 epochs"],
        "train.duration='0.001 epochs': expected at least one",
    ),
    "ghost batches that do not fit": (["--config.model.ghost_batch=48"], "model.ghost_batch=48: expected a divisor of"),
    "a seed out of range": (["--config.seed=4294967296"], "seed=4294967296: expected a number from 0"),
    "an infinite rate": (["--config.optimizer.learning_rate=inf"], "optimizer.learning_rate=inf: expected"),
    "boundaries that are no numbers": (
        ["--config.optimizer.boundaries=('a',)"],
        "optimizer.boundaries=('a',): expected",
    ),
    "ghost batches that do not nest in the shards": (
        ["--config.model.ghost_batch=48", "--config.train.batch_size=144"],
        "model.ghost_batch=48: expected a divisor or a multiple of 72",
    ),
    "a mesh with other columns": (["--config.parallel.model=3"], "parallel.model=3: expected a divisor of the number"),
    "an unknown strategy": (["--config.parallel.strategy=pmap"], "parallel.strategy='pmap': expected one of 'data',"),
    "a strategy that the network lacks": (
        ["--config.parallel.strategy=columns"],
        "parallel.strategy='columns': expected one of 'data', 'fsdp' with model.name='resnet_cifar'",
    ),
    "a cluster without saying so": (["--num_processes=2"], "--num_processes: expected --distributed with it"),
    "half a cluster": (
        ["--distributed", "--num_processes=2"],
        "--coordinator_address, --process_id: expected all three of",
    ),
    "a cluster that nobody finds": (["--distributed"], "--distributed: expected a cluster that JAX detects (SLURM,"),
    "a process beyond the last": (
        ["--distributed", "--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"],
        "--process_id=2: expected one from 0 to --num_processes=2 less one",
    ),
    "an address without a port": (
        ["--distributed", "--coordinator_address=localhost", "--num_processes=2", "--process_id=0"],
        "--coordinator_address='localhost': expected that of process 0 as host:port",
    ),
    "an address without a host": (
        ["--distributed", "--coordinator_address=12345", "--num_processes=2", "--process_id=0"],
        "--coordinator_address='12345': expected that of process 0 as host:port",
    ),
    "a heartbeat for one": (["--heartbeat=5"], "--heartbeat: expected --distributed with it"),
    "views that are not to be had": (
        ["--config.evaluation.views=multi_scale"],
        "evaluation.views='multi_scale': expected 'centre', 'ten_crop' or 'nine_crop' for digits",
    ),
    "no heartbeat": (["--distributed", "--heartbeat=0"], "--heartbeat=0: expected seconds"),
    "a folder that is none": (["--workdir=gs://bucket/run"], "workdir='gs://bucket/run': expected a folder of a file"),
    "an unknown loader": (["--config.data.loader=torch"], "data.loader='torch': expected one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_that_names_it(case, tmp_path, command):
    extra, message = REFUSED[case]
    folder = tmp_path / "run"
    folder.mkdir()
    result = command("train", f"--workdir={folder}", "--config=configs/digits.py", *extra, devices=2)
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr
    assert not list(folder.iterdir()), "nothing is written before the input is known to be good"
