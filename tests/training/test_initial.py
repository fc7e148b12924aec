"""A run that begins where another one ended: with its parameters and velocity, and with nothing else of it."""

import contextlib
import io
import os
import shutil

import jax
import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import runs
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import initial, loop
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib

pytestmark = pytest.mark.usefixtures("short_runs")


def make_config(shapes_npz):
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, width=0.25)
    config.data.update(dataset="npz", data_dir=str(shapes_npz), num_classes=4, loader="resident", test_split="")
    config.train.update(batch_size=16, duration="5 steps")
    config.optimizer.update(learning_rate=0.05, boundaries=(0.6,))
    config.evaluation.every = config.checkpoint.every = "100 steps"
    config.log.update(every="1 step", tensorboard=False)
    return config


@pytest.fixture(scope="module")
def first(short_runs, shapes_npz, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("runs") / "first")
    loop.train(make_config(shapes_npz), folder)
    return folder


def read(workdir):
    everywhere = mesh_lib.replicated(mesh_lib.create(1, 1, jax.devices()[:1]))
    return jax.device_get(runs.restore(workdir, "last", everywhere)[1])


def begun(config, mean):
    """The state before the first step of a run that begins from another."""
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 10, 5)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    strategy = Strategy("data", mesh_lib.create(2, 1, jax.devices()[:2]))
    create = jax.jit(lambda mean, colours: state_lib.create(network, optimizer, config.seed, mean, colours))
    own = create(mean, np.zeros((3, 3), np.float32))
    initial.check(config, network, "nowhere")
    return jax.device_get((own, initial.begin(config, own, network, optimizer, strategy)))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("fields", [{}, {"ema": 0.9}, {"warmup_until_error": 0.5}])
def test_parameters_and_velocity_are_the_other_runs_and_all_else_is_new(shapes_npz, first, fields):
    """Under other optimizers too: with a moving average, and with a rate that depends on the error."""
    config = make_config(shapes_npz)
    config.seed, config.train.init_from = 1, first
    config.optimizer.update(fields)
    config.optimizer.groups = {"biases": {"match": "*/bias", "rate": 2.0}}
    last, mean = read(first), np.full((32, 32, 3), 7, np.float32)
    own, state = begun(config, mean)
    assert last.step == 5 and any(np.any(leaf) for leaf in jax.tree.leaves(last.opt_state))
    assert_equal((state.params, state.batch_stats), (last.params, last.batch_stats))
    # The velocity is all that is no single number.
    found = [leaf for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf)]
    assert_equal(found, [leaf for leaf in jax.tree.leaves(last.opt_state) if np.ndim(leaf)])
    counters = [[leaf for leaf in jax.tree.leaves(of.opt_state) if not np.ndim(leaf)] for of in (state, own)]
    assert_equal(*counters)
    same = ("step", "key", "mean", "colours")
    assert_equal([getattr(state, name) for name in same], [getattr(own, name) for name in same])
    if "ema" in fields:
        assert_equal(tuple(state.average), (last.params, last.batch_stats))


def second_config(shapes_npz, source):
    config = make_config(shapes_npz)
    config.train.init_from, config.checkpoint.every = source, "2 steps"
    return config


@pytest.fixture(scope="module")
def second(first, shapes_npz, tmp_path_factory):
    """A run that began from the first and was not stopped."""
    folder, said = str(tmp_path_factory.mktemp("runs") / "second"), io.StringIO()
    with contextlib.redirect_stdout(said):
        loop.train(second_config(shapes_npz, first), folder)
    assert f"; 5 steps from the end of {first}\n" in said.getvalue()
    return folder


@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_run_begins_where_the_other_ended_and_goes_on_without_it(killed_at, shapes_npz, first, second, tmp_path):
    """Without it from the first step on: it may have another end by then."""
    source, stopped = str(tmp_path / "source"), str(tmp_path / "stopped")
    shutil.copytree(first, source)
    config = second_config(shapes_npz, source)

    class Killed(Exception):
        pass

    def at_step(number):
        if number == killed_at:
            raise Killed

    with pytest.raises(Killed):
        loop.train(config, stopped, at_step)
    shutil.rmtree(source)
    loop.train(config, stopped)
    whole = read(second)
    assert_equal(read(stopped), whole)
    moved = jax.tree.map(lambda a, b: np.any(a != b), whole.params, read(first).params)
    assert any(jax.tree.leaves(moved))
    assert whole.step == 5


def refusal(config, workdir="nowhere"):
    with pytest.raises(UserError) as caught:
        initial.check(config, state_lib.from_config(config), workdir)
    return str(caught.value)


def test_what_a_run_cannot_begin_from_is_refused(shapes_npz, first, tmp_path):
    config = make_config(shapes_npz)
    initial.check(config, state_lib.from_config(config), "nowhere")

    config.train.init_from = "none"
    assert refusal(config) == (
        "train.init_from='none': expected the folder of a run, with a config.json ([Errno 2] No such file or "
        "directory: 'none/config.json')."
    )
    empty = str(tmp_path / "empty")
    shutil.copytree(first, empty, ignore=shutil.ignore_patterns("checkpoints"))
    config.train.init_from = empty
    assert refusal(config) == f"train.init_from={empty!r}: expected a run with a finished checkpoint, found none yet."

    config.train.init_from = first
    initial.check(config, state_lib.from_config(config), "nowhere")
    wider = config.copy_and_resolve_references()
    wider.data.num_classes = 5
    assert refusal(wider) == (
        f"train.init_from={first!r}: expected the same parameters, but fc/bias is float32[4] there and float32[5] here."
    )
    projecting = config.copy_and_resolve_references()
    projecting.model.shortcut = "B"
    assert refusal(projecting).endswith("but stage2/0/shortcut_bn/bias is absent there and float32[8] here.")
    outside = config.copy_and_resolve_references()
    outside.optimizer.momentum_order = "rate_outside"
    assert refusal(outside) == (
        f"train.init_from={first!r}: expected optimizer.momentum_order='rate_inside' as there, not 'rate_outside', "
        "which has another velocity."
    )


def test_a_refused_beginning_leaves_no_folder(shapes_npz, tmp_path):
    config, workdir = make_config(shapes_npz), str(tmp_path / "run")
    config.train.init_from = str(tmp_path / "none")
    with pytest.raises(UserError, match="expected the folder of a run"):
        loop.train(config, workdir)
    assert not os.path.exists(workdir)
