"""What an analysis is given is what the trainer and the evaluation see."""

import dataclasses
import functools
import itertools
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import loaders, sources
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import inspection, runs
from alexnet_resnet.models import Context
from alexnet_resnet.ops import lighting
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.checkpoints import Checkpoints
from alexnet_resnet.training.step import training_images


def make_config(shapes_npz):
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, width=0.25)
    config.data.update(dataset="npz", data_dir=str(shapes_npz), num_classes=4, loader="resident", image_size=8)
    config.data.update(canvas_size=10, random_crop=True, random_flip=True, divisor=50.0)
    config.data.update(lighting="as_run", lighting_statistics="author", lighting_until=0.5)
    config.train.update(batch_size=16, duration="4 steps")
    config.optimizer.update(learning_rate=0.05, boundaries=(0.6,), ema=0.5)
    config.evaluation.update(every="100 steps", batch_size=10)
    config.checkpoint.every = "2 steps"
    config.log.update(every="1 step", tensorboard=False)
    return config


@pytest.fixture(scope="module")
def run(shapes_npz, tmp_path_factory):
    """A run's folder as the trainer leaves it, with a moving average that is not the parameters."""
    config, folder = make_config(shapes_npz), str(tmp_path_factory.mktemp("runs") / "run")
    examples = sources.load(config.data, "train")
    mean = np.pad(examples.images.astype(np.float64).mean(0), ((1, 1), (1, 1), (0, 0)))
    colours = lighting.shift_axes("as_run", *lighting.AUTHOR, 0.1)
    state = started(config, mean.astype(np.float32), np.asarray(colours, np.float32))
    with workdir_lib.claim(folder, config, workdir_lib.describe(examples)):
        checkpoints = Checkpoints(os.path.join(folder, workdir_lib.CHECKPOINTS))
        for step in (2, 4):
            average = jax.tree.map(lambda leaf, step=step: leaf * step, state.average)
            checkpoints.save(step, dataclasses.replace(state_lib.at_step(state, step), average=average))
        checkpoints.close()
    return config, folder


def started(config, mean, colours):
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    return jax.jit(functools.partial(state_lib.create, network, optimizer, config.seed))(mean, colours)


def arrays(network, kind):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(network, kind)))]


def read(folder, checkpoint):
    return runs.restore(folder, checkpoint, SingleDeviceSharding(jax.devices()[0]))[1]


@pytest.mark.parametrize("checkpoint", ["last", "2"])
def test_an_opened_network_is_what_evaluations_judge(run, checkpoint):
    config, folder = run
    found, network = inspection.opened(folder, checkpoint)
    assert found.to_json() == config.to_json()
    judged = state_lib.to_judge(read(folder, checkpoint))
    for kind, expected in ((nnx.Param, judged.params), (nnx.BatchStat, judged.batch_stats)):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(expected)]
        assert leaves and all(map(np.array_equal, arrays(network, kind), leaves))
    images, _ = next(inspection.evaluation_batches(folder, 1))
    logits, _ = state_lib.from_config(config).apply(judged.params, judged.batch_stats, images)
    np.testing.assert_allclose(network(images, Context()), logits, rtol=1e-4, atol=1e-5)


def test_a_fresh_network_has_the_parameters_that_the_trainer_starts_from(run):
    config, _ = run
    state = started(config, np.zeros((10, 10, 3), np.float32), np.zeros((3, 3), np.float32))
    fresh = inspection.fresh(config)
    assert all(map(np.array_equal, arrays(fresh, nnx.Param), map(np.asarray, jax.tree.leaves(state.params))))
    assert all(map(np.array_equal, arrays(fresh, nnx.BatchStat), map(np.asarray, jax.tree.leaves(state.batch_stats))))
    other = config.copy_and_resolve_references()
    other.seed = 1
    assert not np.array_equal(arrays(inspection.fresh(other), nnx.Param)[-1], arrays(fresh, nnx.Param)[-1])


def seen_in_training(config, folder, count, lighting_until):
    """The images and labels of a run's first steps, by the trainer's own functions."""
    examples = sources.load(config.data, config.data.train_split)
    state = read(folder, "last")
    for batch in loaders.create(config.data, examples).training_batches(16, config.seed, stop_step=count):
        yield training_images(config.data, state, jax.tree.map(jnp.asarray, batch), lighting_until), batch["label"]


def test_training_batches_are_the_trainers(run):
    config, folder = run
    found = list(inspection.training_batches(folder, 3))
    # After half of the four steps there is no more lighting, and the run stands at its end.
    for (images, labels), (expected, right) in zip(found, seen_in_training(config, folder, 3, 2), strict=True):
        np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(labels, right)
        assert images.dtype == np.float32 and images.shape == (16, 8, 8, 3)


def test_a_configuration_has_the_batches_of_the_run_that_it_would_be(run):
    config, folder = run
    found = list(inspection.training_batches(config, 2))
    # At the start there is lighting; mean and colours are those that the run has.
    for (images, labels), (expected, right) in zip(found, seen_in_training(config, folder, 2, None), strict=True):
        np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(labels, right)
    assert [len(labels) for _, labels in inspection.training_batches(config, 3, batch_size=5)] == [5, 5, 5]
    ours, theirs = (next(inspection.evaluation_batches(source, 1))[0] for source in (config, folder))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_evaluation_batches_are_the_split_in_its_order(run):
    config, folder = run
    examples = sources.load(config.data, "test")
    found = list(inspection.evaluation_batches(folder))
    assert [len(labels) for _, labels in found] == [10, 10, 7], "what fills the last batch up is left out"
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), examples.labels)
    mean = np.asarray(read(folder, "last").mean)[1:9, 1:9]
    images = np.concatenate([images for images, _ in found])
    np.testing.assert_allclose(images, (examples.images - mean) / 50, rtol=1e-5, atol=1e-5)
    first = list(inspection.evaluation_batches(folder, 1, split="validation[5:]", batch_size=15))
    assert len(first) == 1 and len(first[0][1]) == 15
    np.testing.assert_array_equal(first[0][1], sources.load(config.data, "validation").labels[5:])


def test_images_that_cannot_be_read_are_left_out():
    batches = [
        dict(image=np.arange(3.0), label=np.arange(3), valid=np.array([True, False, True])),
        dict(image=np.arange(3.0), label=np.arange(3), valid=np.zeros(3, bool)),
    ]
    ((images, labels),) = runs.readable(lambda batch: batch["image"] + 1, iter(batches))
    assert images.tolist() == [1, 3] and labels.tolist() == [0, 2]


@pytest.mark.parametrize("count", [0, -1, True])
def test_counts_that_are_none(run, count):
    for batches in (inspection.training_batches, inspection.evaluation_batches):
        with pytest.raises(UserError, match="count=.*: expected a whole number of at least 1"):
            batches(run[1], count)
        with pytest.raises(UserError, match="batch_size=-1: expected a whole number of at least 0"):
            batches(run[1], 1, batch_size=-1)


@pytest.mark.parametrize("value", [1.5, "2", None])
def test_only_whole_numbers_count(value):
    with pytest.raises(UserError, match="count=.*: expected a whole number of at least 1"):
        inspection._check_whole("count", value, 1)


def test_more_than_there_is_and_groups_that_do_not_fit(run):
    config, folder = run
    with pytest.raises(UserError, match=r"count=4: expected at most 3, the batches of 10 in .*\(27\)"):
        inspection.evaluation_batches(folder, 4)
    grouped = config.copy_and_resolve_references()
    grouped.model.ghost_batch = 8
    with pytest.raises(UserError, match="batch_size=12: expected a multiple of model.ghost_batch=8"):
        inspection.training_batches(grouped, 1, 12)
    assert [len(labels) for _, labels in itertools.islice(inspection.training_batches(grouped, 9), 1)] == [16]


def test_runs_and_configurations_that_cannot_be_opened(run, tmp_path):
    config, folder = run
    for ask in (inspection.opened, functools.partial(inspection.training_batches, count=1)):
        with pytest.raises(UserError, match="workdir=.*nowhere"):
            ask(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="checkpoint='7': expected one of 'last'"):
        inspection.opened(folder, "7")
    begun = config.copy_and_resolve_references()
    begun.train.init_from = folder
    with pytest.raises(UserError, match="train.init_from=.*: expected '' for fresh parameters"):
        inspection.fresh(begun)
    wrong = config.copy_and_resolve_references()
    wrong.model.name = "resnet_cifra"
    for ask in (inspection.fresh, functools.partial(inspection.evaluation_batches, count=1)):
        with pytest.raises(UserError, match="model.name='resnet_cifra'"):
            ask(wrong)
    unnamed = config.copy_and_resolve_references()
    unnamed.data.train_split = "trian"
    with pytest.raises(UserError, match="data.train_split='trian'"):
        inspection.training_batches(unnamed, 1)


def test_data_that_has_moved_is_read_where_it_is(run, shapes_npz, tmp_path):
    config, folder = run
    moved = shutil.copy(shapes_npz, tmp_path / "moved.npz")
    for batches in (inspection.training_batches, inspection.evaluation_batches):
        for source in (config, folder):
            ((images, labels),) = batches(source, 1, data_dir=str(moved))
            ((same, _),) = batches(source, 1)
            np.testing.assert_array_equal(images, same)
            with pytest.raises(UserError, match="nowhere.npz"):
                batches(source, 1, data_dir="nowhere.npz")
    assert config.data.data_dir == str(shapes_npz), "the caller's own is left as it is"
