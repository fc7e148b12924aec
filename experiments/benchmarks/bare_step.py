"""The compiled training step alone, as the loop has it, on data that is on the device already."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_resnet.data import loaders, sources
from alexnet_resnet.parallel import mesh, strategies
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib

# Of the schedule; nothing of a step's cost depends on it.
STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class BareStep:
    """A jitted function of a state and `arguments`, which gives the next state and measurements.

    Attributes:
      function: takes the memory of the state that it is given.
      create: gives a fresh state.
      arguments: on the device.
      steps: that one call takes.
    """

    function: Callable
    create: Callable[[], state_lib.TrainState]
    arguments: tuple[Any, ...]
    steps: int = 1


def streamed(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> BareStep:
    """The step on batches from the host, here always the same random one.

    Args:
      config: of a training; its dataset is not looked at.
      devices: by default all.
    """
    size, side, channels = config.train.batch_size, config.data.image_size, config.data.channels
    network, optimizer, rate, strategy, create = _parts(config, devices)
    random = np.random.default_rng(0)
    batch = dict(
        image=random.integers(0, 256, (size, side, side, channels), np.uint8),
        label=random.integers(0, config.data.num_classes, size, np.int32),
        valid=np.ones(size, bool),
        row=np.arange(size, dtype=np.int32),
        epoch=np.zeros(size, np.int32),
        offset=np.zeros((size, 2), np.int32),
        flip=random.integers(0, 2, size).astype(bool) & config.data.random_flip,
    )
    objective = objective_lib.create(config, STEPS)
    function = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data, objective)
    return BareStep(function, create, (mesh.put_batch(batch, strategy.batch),))


def resident(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> BareStep:
    """The step, or several in a call, on batches that the device makes of the training split.

    Args:
      config: of a training by the resident loader.
      devices: by default all.
    """
    network, optimizer, rate, strategy, create = _parts(config, devices)
    objective = objective_lib.create(config, STEPS)
    function = step_lib.compile_resident_steps(network, optimizer, rate, strategy, config, objective)
    examples = sources.load(config.data, config.data.train_split)
    arrays = loaders.create(config.data, examples).on_device(strategy.everywhere)
    steps = config.train.steps_per_call
    return BareStep(function, create, (arrays, np.int32(0), np.int32(0), np.int32(steps)), steps)


def _parts(config: ConfigDict, devices):
    strategy = strategies.create(config, devices)
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, STEPS, float(STEPS), config.train.batch_size)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    side, channels = config.data.canvas_size, config.data.channels

    def state():
        mean, colours = jnp.full((side, side, channels), 127.5), jnp.eye(channels)
        return state_lib.create(network, optimizer, config.seed, mean, colours)

    create = jax.jit(state, out_shardings=state_lib.shardings(network, optimizer, strategy))
    return network, optimizer, rate, strategy, create
