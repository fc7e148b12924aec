"""Judging the checkpoint of a run."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import loaders, sources
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.evaluation import ensemble, records
from alexnet_resnet.evaluation.classification import Result
from alexnet_resnet.evaluation.ensemble import Member
from alexnet_resnet.models.statistics import average_statistics
from alexnet_resnet.parallel import hosts
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.checkpoints import Checkpoints, Damaged
from alexnet_resnet.training.step import training_images


def restore(workdir: str, checkpoint: str, sharding: jax.sharding.Sharding) -> tuple[ConfigDict, state_lib.TrainState]:
    """A run's configuration and the state of one of its checkpoints.

    Args:
      workdir: the run's folder.
      checkpoint: 'last', 'best' (the lowest validation error) or the number of a step.
      sharding: where every array goes.

    Raises:
      UserError: no such run, no such checkpoint, or a damaged one.
    """
    config = workdir_lib.read_config(workdir)
    checkpoints = _checkpoints(workdir)
    try:
        steps = _steps(workdir, checkpoints)
        step = _named(checkpoints, steps, checkpoint)
        network = state_lib.from_config(config)
        optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
        like = state_lib.like(config, network, optimizer, sharding)
        return config, checkpoints.restore(like, step)
    except Damaged as error:
        kind = UserError if error.alone else hosts.Refused
        raise kind(f"{error}; --checkpoint chooses another of the steps {steps}.") from error
    finally:
        checkpoints.close()


def check_checkpoint(workdir: str, checkpoint: str) -> None:
    """Makes sure that a run has a checkpoint, of which nothing is read.

    Raises:
      UserError: no such run or no such checkpoint, or which is the best one cannot be told.
    """
    workdir_lib.read_config(workdir)
    checkpoints = _checkpoints(workdir)
    try:
        _named(checkpoints, _steps(workdir, checkpoints), checkpoint)
    except Damaged as error:
        raise UserError(f"{error}; --checkpoint chooses another.") from error
    finally:
        checkpoints.close()


def _checkpoints(workdir: str) -> Checkpoints:
    return Checkpoints(os.path.join(workdir, workdir_lib.CHECKPOINTS), read_only=True)


def _steps(workdir: str, checkpoints: Checkpoints) -> list[int]:
    steps = hosts.gather(checkpoints.steps())[0]
    if not steps:
        raise hosts.Refused(f"workdir={workdir!r}: expected a finished checkpoint, found none yet.")
    return steps


def _named(checkpoints: Checkpoints, steps: list[int], checkpoint: str) -> int:
    """The step of the checkpoint of a name."""
    # Only then: another checkpoint can be judged though the best one's error is damaged.
    best = checkpoints.best_step() if checkpoint == "best" else None
    named = {"last": steps[-1], "best": steps[-1] if best is None else best, **{str(s): s for s in steps}}
    if checkpoint not in named:
        raise hosts.Refused(f"checkpoint={checkpoint!r}: expected one of {', '.join(map(repr, named))}.")
    return named[checkpoint]


def member(
    workdir: str,
    checkpoint: str = "last",
    split: str = "",
    dataset: str = "",
    data_dir: str = "",
    precise_bn: int = 0,
    view: str = "",
    batch_size: int = 0,
) -> Member:
    """A run's network that judges a split; its checkpoint is read when its state is asked for.

    Args:
      workdir: the run's folder.
      checkpoint: as `restore`.
      split: a split or a slice of one; by default the run's test split, or its validation split where it has none.
      dataset: as the configuration's `data.dataset`, if not the run's.
      data_dir: where the dataset is, if not where the run had it.
      precise_bn: training batches of the run, whatever is judged, over which the statistics of batch normalisation are
        taken anew, as plain averages; 0 keeps the running moments.
      view: what is judged of an image, if not what the run judges; one of `config.EVALUATION_VIEWS`.
      batch_size: images at a time; 0 for as many as the run judges.

    Raises:
      UserError: no such run, as `sources.load`, or no batch normalisation whose statistics could be taken anew.
    """
    config, trained = workdir_lib.read_config(workdir), workdir_lib.read_config(workdir)
    config.evaluation.views = view or config.evaluation.views
    config.evaluation.batch_size = batch_size or config.evaluation.batch_size
    check_choice("views", config.evaluation.views, config_lib.EVALUATION_VIEWS)
    if precise_bn and jax.process_count() > 1:
        raise UserError(f"precise_bn={precise_bn}: expected 0 with several processes.")
    config.data.dataset = dataset or config.data.dataset
    config.data.data_dir = data_dir or config.data.data_dir
    if config.data.dataset == trained.data.dataset:
        trained.data.data_dir = config.data.data_dir
    examples = sources.load(config.data, split or default_split(config.data))
    _check_classes(workdir, examples)
    network = state_lib.from_config(config)
    if precise_bn:
        if not jax.tree.leaves(network.shapes[1]):
            raise UserError(f"precise_bn={precise_bn}: expected 0 for {config.model.name} without batch normalisation.")
        sources.load(trained.data, trained.data.train_split, "data.train_split")

    def load(strategy: Strategy) -> state_lib.TrainState:
        _, state = restore(workdir, checkpoint, strategy.everywhere)
        # The optimizer's state is as large as the parameters.
        return dataclasses.replace(state, opt_state=None)

    origin = {"workdir": workdir, "config_hash": records.config_hash(workdir)}
    prepare = (lambda state: with_precise_statistics(trained, network, state, precise_bn)) if precise_bn else None
    return Member(f"workdir={workdir!r}", config, network, examples, load, origin, prepare)


def _check_classes(workdir: str, examples: Examples | EncodedExamples) -> None:
    """Refuses the classes that the run was trained on in another order, by which every answer would be wrong."""
    trained, found = tuple(workdir_lib.read_dataset(workdir)["label_names"]), tuple(examples.label_names)
    if trained != found and sorted(trained) == sorted(found):
        number, here, there = next((i, a, b) for i, (a, b) in enumerate(zip(found, trained, strict=True)) if a != b)
        raise UserError(
            f"{examples.name}: expected its classes in the order of the run in workdir={workdir!r}, but class {number} "
            f"is {here!r} here and {there!r} there."
        )


def default_split(data: ConfigDict) -> str:
    """The split that a run is judged on where none is named: its test split, or its validation split."""
    return data.test_split or data.validation_split


def evaluate_run(
    workdir: str,
    split: str = "",
    checkpoint: str = "last",
    data_dir: str = "",
    precise_bn: int = 0,
    views: str = "",
    batch_size: int = 0,
) -> tuple[int, Result, list[str]]:
    """The step of a run's checkpoint, its errors on a split, and lines about images that cannot be read.

    The arguments are those of `member`.

    Raises:
      UserError: as `member`, `restore` and `Evaluator`.
    """
    with hosts.agreed():
        one = member(workdir, checkpoint, split, "", data_dir, precise_bn, views, batch_size)
        strategy = over_all_devices()
    verdict = ensemble.judge([one], strategy)
    return verdict.steps[0], verdict.result, list(verdict.news)


def over_all_devices() -> Strategy:
    """Each network on every device, a batch split over them, whatever the run was trained on."""
    return Strategy("data", mesh_lib.create(-1, 1))


def with_precise_statistics(
    config: ConfigDict, network: state_lib.Network, state: state_lib.TrainState, batches: int
) -> state_lib.TrainState:
    """The state with batch statistics averaged over training batches, as the ResNet paper's released models have them.

    Args:
      config: the run's configuration.
      network: its network.
      state: a trained state; with moving averages of the parameters, these are what is judged.
      batches: how many batches of `train.batch_size`, with training's crops and flips, and its colours where the state
        stands.
    """
    images = (images for images, _ in as_trained(config, state, batches))
    judged = state_lib.to_judge(state)
    module = nnx.merge(network.graphdef, judged.params, judged.batch_stats, copy=True)
    statistics = nnx.to_pure_dict(average_statistics(module, images))
    # There is no other state to judge any more.
    return dataclasses.replace(judged, batch_stats=statistics, average={})


def as_trained(
    config: ConfigDict, state: state_lib.TrainState, count: int, batch_size: int = 0
) -> Iterator[tuple[Float[Array, "_ H W C"], Int[np.ndarray, "_"]]]:
    """The images of a run's first training batches as its network sees them, and their labels.

    They have training's crops and flips, and its colours where the state stands. Images that cannot be read are left
    out.

    Args:
      config: the run's configuration.
      state: its mean canvas, lighting's axes, its key and its step; the rest is not looked at.
      count: how many batches.
      batch_size: examples in each; 0 for the run's own number.

    Raises:
      UserError: as `sources.load`, before the first batch is asked for.
    """
    examples = sources.load(config.data, config.data.train_split, "data.train_split")
    loader = loaders.create(config.data, examples)
    total = config_lib.steps("train.duration", config.train.duration, len(examples) / config.train.batch_size)
    until = objective_lib.create(config, total).lighting_until
    seen = jax.jit(functools.partial(training_images, config.data, lighting_until=until))
    batches = loader.training_batches(batch_size or config.train.batch_size, config.seed, stop_step=count)
    return readable(functools.partial(seen, state), batches)


def readable(images_of: Callable, batches: Iterator[dict]) -> Iterator[tuple[Array, np.ndarray]]:
    """What the network sees of each batch and the labels, without the rows that are not valid."""
    for batch in batches:
        rows = np.flatnonzero(batch["valid"])
        if len(rows):
            yield images_of(batch)[rows], batch["label"][rows]
