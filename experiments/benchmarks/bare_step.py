"""The compiled training step alone, as the loop has it, on data that is on the device already."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_resnet.data import loaders, sources
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib
from experiments.benchmarks import training_steps


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
    step, _, batch, start = training_steps.lowerable(config, devices)
    return BareStep(step, start, (batch,))


def resident(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> BareStep:
    """The step, or several in a call, on batches that the device makes of the training split.

    Args:
      config: of a training by the resident loader.
      devices: by default all.
    """
    of = training_steps.parts(config, devices)
    function = step_lib.compile_resident_steps(of.network, of.optimizer, of.rate, of.strategy, config, of.objective)
    examples = sources.load(config.data, config.data.train_split)
    arrays = loaders.create(config.data, examples).on_device(of.strategy.everywhere)
    steps = config.train.steps_per_call
    return BareStep(function, of.start, (arrays, np.int32(0), np.int32(0), np.int32(steps)), steps)
