"""Sweeps: which runs a grid or a list means, and their table."""

import importlib

import numpy as np
import pytest

from alexnet_resnet.errors import UserError
from experiments import sweep
from experiments.study import Budget, Outcome, Settings, command, plan

SMALL = {
    "data.dataset": "npz",
    "data.num_classes": 4,
    "data.image_size": 8,
    "data.canvas_size": 10,
    "data.train_split": "train",
    "data.validation_split": "",
    "data.loader": "resident",
    "model.width": 0.25,
    "train.batch_size": 16,
    "evaluation.batch_size": 16,
    "log.tensorboard": False,
}


def test_a_grid_is_every_combination_the_last_field_fastest():
    assert sweep.parse_grid("seed=0,1; model.depth=8") == [{"seed": 0, "model.depth": 8}, {"seed": 1, "model.depth": 8}]
    rates = sweep.parse_grid("optimizer.learning_rate=0.1,1e-2;seed=0, 1")
    assert [tuple(changes.values()) for changes in rates] == [(0.1, 0), (0.1, 1), (0.01, 0), (0.01, 1)]
    # Commas inside brackets and quotes are a value's own.
    assert sweep.parse_grid("a=((1,2),(3,4)),'b,c'") == [{"a": ((1, 2), (3, 4))}, {"a": "b,c"}]
    assert sweep.parse_grid("optimizer.boundaries=(0.5, 0.75),()") == [
        {"optimizer.boundaries": (0.5, 0.75)},
        {"optimizer.boundaries": ()},
    ]


def test_a_list_is_a_run_a_line(tmp_path):
    path = tmp_path / "changes.txt"
    path.write_text(
        "# rates\noptimizer.learning_rate=0.1  seed=1\n\noptimizer.boundaries=(0.5, 0.75) log.every='1 epoch'\n"
    )
    assert sweep.parse_list(str(path)) == [
        {"optimizer.learning_rate": 0.1, "seed": 1},
        {"optimizer.boundaries": (0.5, 0.75), "log.every": "1 epoch"},
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(config=""), "--config is missing"),
        (dict(grid="", list=""), "--grid, --list: expected one of the two"),
        (dict(list="also.txt"), "--grid, --list: expected one of the two"),
        (dict(grid=" ; "), "at least one run"),
        (dict(grid="seed"), "--grid='seed'"),
        (dict(grid="seed="), "--grid='seed='"),
        (dict(grid="seed=0;seed=1"), "once a field"),
        (dict(grid="seed=0,0"), "expected each run once"),
        (dict(grid="seed=0.5"), "seed=0.5: expected a whole number"),
        (dict(grid="train.duration=5 steps"), "--budget"),
        (dict(grid="model.dept=8"), "Did you mean 'model.depth'"),
        (dict(config="configs/digit.py"), "Did you mean 'configs/digits.py'"),
        (dict(grid="seed=,1"), "--grid='seed=,1'"),
        (dict(grid="", list="missing.txt"), "--list='missing.txt'"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        sweep.check(dict(config="configs/digits.py", grid="seed=0,1", list="") | options)


def test_a_line_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "changes.txt"
    path.write_text("seed=0\nseed 1\n")
    with pytest.raises(UserError, match="line 2: 'seed 1'"):
        sweep.parse_list(str(path))


@pytest.fixture(scope="module")
def settings(tmp_path_factory, shapes_npz):
    grid = "optimizer.learning_rate=0.1,0.01;seed=0,1"
    options = dict(config="configs/digits.py", grid=grid, list="")
    out = str(tmp_path_factory.mktemp("sweep"))
    return Settings(out, budget=Budget("2 steps"), data_dir=str(shapes_npz), changes=SMALL, options=options)


def test_runs_that_differ_in_their_seed_are_one_row(settings):
    record = command.perform(sweep.STUDY, settings, say=lambda text: None)
    errors = {(run["fields"]["optimizer.learning_rate"], run["seed"]): run["error"] for run in record["runs"]}
    assert sorted(errors) == [(0.01, 0), (0.01, 1), (0.1, 0), (0.1, 1)]
    for row, rate in zip(record["rows"], (0.1, 0.01), strict=True):
        both = [errors[rate, 0], errors[rate, 1]]
        assert row["what"] == f"optimizer.learning_rate={rate}" and "2 of 2 seeds" in row["note"]
        np.testing.assert_allclose([row["ours"], row["spread"]], [np.mean(both), np.std(both, ddof=1)])
    folders = {settings.workdir(run) for run in sweep.runs(settings.options)}
    assert len(folders) == 4


def test_long_names_of_runs_leave_room_for_the_errors(tmp_path, recwarn):
    grid = (
        "optimizer.learning_rate=0.1,0.01;optimizer.weight_decay=0.001;data.random_flip=True;train.label_smoothing=0.1"
    )
    options = dict(config="configs/digits.py", grid=grid, list="")
    runs = sweep.runs(options)
    conclusion = sweep.conclude(Outcome(Settings("out", options=options), tuple(runs), {}), str(tmp_path))
    assert [row.what for row in conclusion.rows] == [run.label for run in runs] and len(runs[0].label) > 90
    assert not [str(one.message) for one in recwarn], "the panel has not collapsed"


def test_a_task_of_an_array_trains_its_own_run(settings, tmp_path):
    runs = sweep.runs(settings.options)
    only = command.chosen(runs, [], 3)
    one = Settings(str(tmp_path), budget=settings.budget, data_dir=settings.data_dir, changes=settings.changes,
                   only=only, options=settings.options)  # fmt: skip
    record = command.perform(sweep.STUDY, one, say=lambda text: None)
    assert [run["label"] for run in record["runs"]] == ["optimizer.learning_rate=0.01 seed=1"] == list(only)
    assert [row["ours"] is None for row in record["rows"]] == [True, False]


def test_the_command_reads_its_flags_and_ends_with_2_where_they_are_wrong(launcher, tmp_path):
    flags = ["--config=configs/digits.py", "--grid=seed=0,1", f"--out={tmp_path}", "--dry_run"]
    done = launcher.run("experiments.sweep", *flags, "--set=model.width=0.25", "--budget=10 steps")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 steps") >= 2 and "--config.seed=1" in done.stdout and not list(tmp_path.iterdir())
    assert "alexnet_resnet.train --config=configs/digits.py " in done.stdout
    done = launcher.run("experiments.sweep", *flags, "--set=model.widht=0.25")
    assert done.returncode == 2 and "Did you mean 'model.width'" in done.stderr and "Traceback" not in done.stderr


def test_every_config_of_a_sweep_is_a_path():
    run = sweep.runs(dict(config="configs/resnet_cifar.py:20", grid="seed=0", list=""))[0]
    other = sweep.runs(dict(config="configs/digits.py", grid="seed=0", list=""))[0]
    assert run.name != other.name, "sweeps of two configurations may share a folder"
    assert plan.full_config(run).model.depth == 20
    assert importlib.import_module("experiments.sweep").STUDY.name == "sweep"
