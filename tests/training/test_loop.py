"""What the loop does when it is told to stop, when its loss is no longer finite, when the disk is full."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import sys
import time

import jax
import numpy as np
import optax
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import loaders, sources
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import runs
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel import strategies
from alexnet_resnet.training import checkpoints as checkpoints_lib
from alexnet_resnet.training import loop, reporting
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.checkpoints import Unsaved
from alexnet_resnet.training.preemption import Stopped
from alexnet_resnet.training.reporting import Diverged

pytestmark = pytest.mark.usefixtures("short_runs")


def make_config(shapes_npz):
    config = config_lib.default("lenet")
    config.model.update(connections="full", subsampling="average", output="linear")
    config.data.update(dataset="npz", data_dir=str(shapes_npz), num_classes=4, loader="resident")
    config.data.update(validation_split="validation", test_split="", divisor=128.0)
    config.train.update(batch_size=16, duration="6 steps")
    config.optimizer.learning_rate = 0.01
    config.evaluation.update(every="2 steps", batch_size=24)
    config.checkpoint.every = "100 steps"
    config.log.update(every="1 step", tensorboard=False)
    return config


@pytest.fixture(scope="module")
def whole(short_runs, shapes_npz, tmp_path_factory):
    """A run that nothing happened to."""
    workdir = str(tmp_path_factory.mktemp("runs") / "whole")
    loop.train(make_config(shapes_npz), workdir)
    return workdir


def judged_often(shapes_npz):
    """A run whose evaluations are of several batches, the last of two splits."""
    config = make_config(shapes_npz)
    config.data.test_split = "test"
    config.evaluation.batch_size = 8
    return config


@pytest.fixture(scope="module")
def whole_judged_often(short_runs, shapes_npz, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("runs") / "whole")
    loop.train(judged_often(shapes_npz), workdir)
    return workdir


def rows(workdir):
    return [row for row in workdir_lib.read_metrics(workdir) if "validation/error" in row]


def restored(workdir, checkpoint="last"):
    """The state of one of a run's checkpoints, on the host."""
    one_device = mesh_lib.replicated(mesh_lib.create(1, 1, jax.devices()[:1]))
    return jax.device_get(runs.restore(workdir, checkpoint, one_device)[1])


def assert_same(one, other):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def untimed(workdir):
    """The rows of measurements without what two runs of one configuration may differ in."""
    return [
        {name: value for name, value in row.items() if name not in reporting.TIMINGS}
        for row in workdir_lib.read_metrics(workdir)
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_does_not_wait_for_an_evaluation_and_the_next_start_makes_up_for_it(number, whole, shapes_npz, tmp_path):
    config, stopped = make_config(shapes_npz), str(tmp_path / "stopped")

    def at_step(step):
        if step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="after step 4") as caught:
        loop.train(config, stopped, at_step)
    assert caught.value.why == signal.Signals(number).name
    assert signal.getsignal(number) == before
    assert [row["step"] for row in rows(stopped)] == [2], "the evaluation of step 4 was left out"
    loop.train(config, stopped)
    assert rows(stopped) == rows(whole) and [row["step"] for row in rows(whole)] == [2, 4, 6]
    assert untimed(stopped) == untimed(whole)
    assert_same(restored(stopped), restored(whole))


def diverging(shapes_npz, **fields):
    """A run whose rate is 1e30 in step 8 of 16, with a moving average; a checkpoint every three steps."""
    config = make_config(shapes_npz)
    config.data.loader = fields.get("loader", "resident")
    config.train.update(duration="16 steps", max_skips=fields.get("max_skips", 1))
    config.train.steps_per_call = fields.get("steps_per_call", 1)
    config.optimizer.groups = {"all": {"match": "*", "boundaries": (7 / 16, 8 / 16), "rate_after": (1e30, 1.0)}}
    config.optimizer.ema = 0.5
    config.evaluation.every = "5 steps"
    config.checkpoint.update(every="3 steps", keep_last=20)
    return config


def after_the_skip(config, workdir, kept, step):
    """The last state, from the batches themselves: those after `step`, onto the state of step `kept`."""
    strategy = strategies.create(config)
    network = state_lib.from_config(config)
    examples = sources.load(config.data, config.data.train_split)
    per_epoch = len(examples) / config.train.batch_size
    rate = optimizer_lib.schedule(config.optimizer, 16, per_epoch, config.train.batch_size)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    like = state_lib.like(config, network, optimizer, strategy.everywhere)
    checkpoints = checkpoints_lib.Checkpoints(os.path.join(workdir, workdir_lib.CHECKPOINTS), read_only=True)
    state = checkpoints.restore(like, kept)
    checkpoints.close()
    number = jax.device_put(np.int32(step), strategy.everywhere)
    state = type(state)(
        **{**vars(state), "step": number, "opt_state": optax.tree.set(state.opt_state, count=number.copy())}
    )
    take = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data)
    for batch in loaders.create(config.data, examples).training_batches(16, config.seed, step, 16):
        state, _ = take(state, batch)
    return jax.device_get(state)


@pytest.mark.parametrize("loader, steps_per_call", [("tf", 1), ("resident", 3)])
def test_a_run_that_diverges_goes_back_and_skips_what_came_since(
    loader, steps_per_call, shapes_npz, tmp_path, capsys, monkeypatch
):
    config = diverging(shapes_npz, loader=loader, steps_per_call=steps_per_call)
    whole = str(tmp_path / "whole")
    final = loop.train(config, whole)
    (row,) = [row for row in workdir_lib.read_metrics(whole) if loop.SKIPPED in row]
    step, kept = 8, 6
    assert row["step"] == step and row[loop.SKIPPED] == final[loop.SKIPPED] == step - kept
    said = capsys.readouterr().out
    assert f"going on after it from where step {kept} was: {step - kept} steps are skipped" in said
    expected, last = after_the_skip(config, whole, kept, step), restored(whole)
    if loader == "tf":
        assert_same(last, expected)
    for one, other in zip(jax.tree.leaves(last), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)  # another program, another order of sums
    assert_same(restored(whole, str(step)).params, restored(whole, str(kept)).params)

    # Killed, as it were, after it went back: what it does then is the same again.
    killed = str(tmp_path / "killed")

    def at_step(number):
        if number == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, killed, at_step)
    # As after a kill -9: the newest checkpoint is after that step, or is that of the step itself, or is before it.
    for newest in (kept,) if loader == "tf" else (step,):
        for number in range(newest + 1, 17):
            shutil.rmtree(os.path.join(killed, "checkpoints", str(number)), ignore_errors=True)
        loop.train(config, killed)
        assert_same(restored(killed), last)
        assert untimed(killed) == untimed(whole)


def test_going_back_has_an_end_which_a_new_start_knows(shapes_npz, tmp_path):
    config, workdir = diverging(shapes_npz, max_skips=1), str(tmp_path / "run")
    config.optimizer.groups = {"all": {"match": "*", "boundaries": (7 / 16,), "rate_after": (1e30,)}}
    for _ in range(2):
        with pytest.raises(Diverged, match="at learning rate"):
            loop.train(config, workdir)
        assert sum(loop.SKIPPED in row for row in workdir_lib.read_metrics(workdir)) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored(workdir).params))
    # It may be allowed more on resuming.
    config.train.max_skips = 20
    final = loop.train(config, workdir)
    assert final["step"] == 16 and final[loop.SKIPPED] >= 9


def test_diverging_before_there_is_a_checkpoint_goes_back_to_the_beginning(shapes_npz, tmp_path):
    config, workdir = diverging(shapes_npz, max_skips=3), str(tmp_path / "run")
    config.optimizer.groups = {"all": {"match": "*", "rate": 1e30, "boundaries": (2 / 16,), "rate_after": (1.0,)}}
    loop.train(config, workdir)
    first = next(row for row in workdir_lib.read_metrics(workdir) if loop.SKIPPED in row)
    assert first["step"] == first[loop.SKIPPED] in (1, 2)
    assert len({row["step"] for row in workdir_lib.read_metrics(workdir) if "train/loss" in row}) >= 13
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored(workdir).params))


@contextlib.contextmanager
def no_file_longer_than(size):
    """Writing beyond it fails, in the C++ libraries too, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("how", ["no room", "fails"])
def test_what_a_full_disk_cannot_take_is_told_and_the_last_good_one_stays(
    how, whole, shapes_npz, tmp_path, monkeypatch, capsys
):
    config, full = make_config(shapes_npz), str(tmp_path / "full")
    with contextlib.ExitStack() as stack:

        def at_step(number):
            while number == 3 and not os.path.exists(os.path.join(full, "checkpoints", "2")):
                time.sleep(0.01)
            if number == 3 and how == "fails":
                stack.enter_context(no_file_longer_than(20_000))
            elif number == 3:
                usage = shutil.disk_usage(tmp_path)._replace(free=1000)
                monkeypatch.setattr(checkpoints_lib.shutil, "disk_usage", lambda path: usage)

        with pytest.raises(
            Unsaved, match=r"^the checkpoint of step 6 could not be saved \(.*\); the newest .* step 2$"
        ):
            loop.train(config, full, at_step)
    monkeypatch.undo()
    said = capsys.readouterr().out
    reason = "File too large" if how == "fails" else "bytes are needed, 1,000 are free"
    assert "the checkpoint of step 4 could not be saved" in said and reason in said
    assert sorted(os.listdir(os.path.join(full, "checkpoints"))) == ["2"], "nothing half written is left"
    # With room again the same call goes on, and loses nothing but time.
    loop.train(config, full)
    assert untimed(full) == untimed(whole)
    assert_same(restored(full), restored(whole))


def test_a_stop_on_a_full_disk_is_not_said_to_be_saved(shapes_npz, tmp_path, monkeypatch):
    def at_step(number):
        if number == 3:
            usage = shutil.disk_usage(tmp_path)._replace(free=1000)
            monkeypatch.setattr(checkpoints_lib.shutil, "disk_usage", lambda path: usage)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Unsaved, match="the checkpoint of step 3 .* that is whole is that of step 2"):
        loop.train(make_config(shapes_npz), str(tmp_path / "run"), at_step)


def test_a_number_of_skips_below_zero_is_refused(shapes_npz, tmp_path):
    config = make_config(shapes_npz)
    config.train.max_skips = -1
    with pytest.raises(UserError, match="train.max_skips=-1: expected a number of at least 0"):
        loop.train(config, str(tmp_path / "run"))


def test_a_log_that_cannot_be_written_ends_no_run(shapes_npz, tmp_path, monkeypatch):
    """As where the log lies on the disk that is full, or its reader has gone."""
    config = make_config(shapes_npz)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        final = loop.train(config, str(tmp_path / "run"))
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert final["step"] == 6


def test_curves_that_cannot_be_drawn_are_said_and_the_run_is_complete(shapes_npz, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop.curves, "draw", full)
    assert loop.train(make_config(shapes_npz), str(tmp_path / "run"))["step"] == 6
    assert "the curves could not be drawn (No space left on device)" in capsys.readouterr().out


@pytest.mark.parametrize("at", [4, 6])
def test_a_stop_during_an_evaluation_does_not_wait_for_its_end(
    at, whole_judged_often, shapes_npz, tmp_path, monkeypatch
):
    """In the middle of the run, and at its end, where both splits are judged."""
    config, stopped, whole = judged_often(shapes_npz), str(tmp_path / "stopped"), whole_judged_often
    heed, judged = loop._Run._heed, []

    def told(run, images):
        judged.append(images)
        if run.number == at and not run.preemption.noticed:
            judged.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        heed(run, images)

    monkeypatch.setattr(loop._Run, "_heed", told)
    with pytest.raises(Stopped, match=f"after step {at}"):
        loop.train(config, stopped)
    monkeypatch.undo()
    assert not judged, "nothing was judged after the signal"
    assert [row["step"] for row in rows(stopped)] == list(range(2, at, 2))
    assert loop.train(config, stopped)["step"] == 6
    assert untimed(stopped) == untimed(whole)
    assert_same(restored(stopped), restored(whole))


def test_a_checkpoint_that_was_judged_later_can_be_the_best(shapes_npz, tmp_path, monkeypatch):
    """A run is stopped just where its lowest error would have been measured."""
    config, workdir = make_config(shapes_npz), str(tmp_path / "run")
    config.checkpoint.update(keep_last=1, keep_best=1)
    errors, judge = {2: 0.5, 4: 0.25, 6: 0.75}, loop.Judge.__call__

    def judged(self, step, state, last, written, heed):
        judge(self, step, state, last, written, heed)
        return errors[step]

    monkeypatch.setattr(loop.Judge, "__call__", judged)

    def at_step(number):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        loop.train(config, workdir, at_step)
    loop.train(config, workdir)
    checkpoints = checkpoints_lib.Checkpoints(os.path.join(workdir, workdir_lib.CHECKPOINTS), read_only=True)
    assert (checkpoints.steps(), checkpoints.best_step(), checkpoints.error(4)) == ([4, 6], 4, 0.25)
    checkpoints.close()
    assert int(restored(workdir, "best").step) == 4


def test_what_follows_from_an_evaluation_that_was_made_up_for_survives_a_kill(shapes_npz, tmp_path):
    """The second evaluation cuts the rate; the run is stopped before it, makes up for it, and is killed then."""
    config, killed, whole = make_config(shapes_npz), str(tmp_path / "killed"), str(tmp_path / "whole")
    config.optimizer.plateau.update(times=1, patience=1, least=1.0)
    config.optimizer.boundaries = ()
    loop.train(config, whole)
    rates = [row["train/learning_rate"] for row in workdir_lib.read_metrics(whole) if "train/loss" in row]
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 2)

    def stop(number):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    def kill(number):
        raise KeyboardInterrupt

    with pytest.raises(Stopped):
        loop.train(config, killed, stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, killed, kill)
    loop.train(config, killed)
    assert_same(restored(killed), restored(whole))
    assert untimed(killed) == untimed(whole)
