"""What an analysis looks at: the network of a run or of a configuration, and batches of images as it sees them."""

import dataclasses
import functools
import os
from collections.abc import Iterator

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import loaders, normalisation, sources
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import runs
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.state import TrainState
from alexnet_resnet.training.step import evaluation_images

Batches = Iterator[tuple[Float[Array, "_ H W C"], Int[np.ndarray, "_"]]]

# Images at a time while the mean is taken.
AT_ONCE = 256


def opened(workdir: str, checkpoint: str = "last") -> tuple[ConfigDict, nnx.Module]:
    """A run's configuration and its network at a checkpoint, on one device.

    With moving averages of the parameters it has these, as evaluations do.

    Args:
      workdir: the run's folder.
      checkpoint: 'last', 'best' or the number of a step.

    Raises:
      UserError: as `runs.restore`.
    """
    config, state = runs.restore(workdir, checkpoint, _one_device())
    judged = state_lib.to_judge(state)
    graphdef = state_lib.from_config(config).graphdef
    return config, nnx.merge(graphdef, judged.params, judged.batch_stats, copy=True)


def fresh(config: ConfigDict) -> nnx.Module:
    """The network that a configuration's run starts from: the parameters of its seed, to the last bit.

    Raises:
      UserError: as `config.check`, or the run starts from another one's parameters.
    """
    config_lib.check(config)
    if config.train.init_from:
        raise UserError(
            f"train.init_from={config.train.init_from!r}: expected '' for fresh parameters; these are that run's last, "
            "which `opened` gives."
        )
    network = state_lib.from_config(config)
    params, batch_stats = state_lib.jit_once(network.init)(jax.random.key(config.seed))
    return nnx.merge(network.graphdef, params, batch_stats, copy=True)


def training_batches(source: ConfigDict | str, count: int, batch_size: int = 0, data_dir: str = "") -> Batches:
    """The first batches of a training: images as the network sees them, and labels.

    They have training's crops, flips and colours, in the order of the seed. Images that cannot be read are left out.

    Args:
      source: a run's folder, or the configuration of a run that need not exist. Of a folder the mean is that of its
        last checkpoint, and colours are as they are at that step; with a configuration they are measured as the run
        would do it, which takes long on large sets of encoded images.
      count: how many batches.
      batch_size: images in each; 0 for `train.batch_size`.
      data_dir: where the dataset is, if not where the run had it.

    Raises:
      UserError: numbers out of range, no such run or dataset; before the first batch is asked for.
    """
    _check_whole("count", count, 1)
    _check_whole("batch_size", batch_size, 0)
    config = _config(source, data_dir)
    ghost_batch = config.model.get("ghost_batch", 0)
    if ghost_batch and batch_size % ghost_batch:
        raise UserError(f"batch_size={batch_size}: expected a multiple of model.ghost_batch={ghost_batch}.")
    return runs.as_trained(config, _seeing(source, config), count, batch_size)


def evaluation_batches(
    source: ConfigDict | str, count: int | None = None, split: str = "", batch_size: int = 0, data_dir: str = ""
) -> Batches:
    """The first batches of a split in its order, each image's centre as an evaluation's network sees it, and labels.

    Images that cannot be read are left out; the last batch of a split may be smaller.

    Args:
      source: as for `training_batches`.
      count: how many batches; None for all of the split.
      split: a split or a slice of one; by default the test split, or the validation split where there is none.
      batch_size: images in each; 0 for `evaluation.batch_size`.
      data_dir: where the dataset is, if not where the run had it.

    Raises:
      UserError: numbers out of range or more batches than the split has, no such run, dataset or split; before the
        first batch is asked for.
    """
    if count is not None:
        _check_whole("count", count, 1)
    _check_whole("batch_size", batch_size, 0)
    config = _config(source, data_dir)
    size = batch_size or config.evaluation.batch_size
    examples = sources.load(config.data, split or runs.default_split(config.data))
    most = -(-len(examples) // size)
    if count is not None and count > most:
        raise UserError(
            f"count={count}: expected at most {most}, the batches of {size} in {examples.name} ({len(examples):,})."
        )
    loader = loaders.create(config.data, examples)
    rows = np.arange(min(len(examples), size * (count or most)))
    seen = jax.jit(functools.partial(evaluation_images, config.data))
    mean = _seeing(source, config).mean
    return runs.readable(functools.partial(seen, mean), loader.evaluation_batches(size, rows=rows))


def _one_device() -> jax.sharding.Sharding:
    return SingleDeviceSharding(jax.devices()[0])


def _config(source: ConfigDict | str, data_dir: str) -> ConfigDict:
    if isinstance(source, ConfigDict):
        config_lib.check(source)
        config = source.copy_and_resolve_references()
    else:
        config = workdir_lib.read_config(os.fspath(source))
    config.data.data_dir = data_dir or config.data.data_dir
    return config


def _seeing(source: ConfigDict | str, config: ConfigDict) -> TrainState:
    """A state's mean, colours, key and step, which decide what a network sees; nothing of the network itself."""
    if isinstance(source, ConfigDict):
        examples = sources.load(config.data, config.data.train_split, "data.train_split")
        loader = loaders.create(config.data, examples)
        canvases = functools.partial(loader.evaluation_batches, AT_ONCE, whole_canvas=True)
        measured = normalisation.measure(config.data, examples, lambda rows: canvases(rows=rows))
        network = state_lib.from_config(config)
        return jax.jit(lambda *measured: _bare(state_lib.create(network, optax.identity(), config.seed, *measured)))(
            *measured
        )
    return _bare(runs.restore(os.fspath(source), "last", _one_device())[1])


def _bare(state: TrainState) -> TrainState:
    return dataclasses.replace(state, params={}, batch_stats={}, opt_state={}, average={})


def _check_whole(field: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{field}={value!r}: expected a whole number of at least {least}.")
