"""Top-1 and top-5 error over a whole split, every example counted once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from alexnet_resnet.data import loaders
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.views import Views
from alexnet_resnet.parallel import hosts
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.prefetch import prefetch
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training.state import Network, TrainState, to_judge
from alexnet_resnet.training.step import compile_evaluation_step


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      examples: how many were judged.
      unreadable: how many could not be, because their images cannot be read.
      loss: mean cross entropy in nats.
      top1_error: the share whose most probable class is wrong.
      top5_error: the share whose five most probable classes are all wrong.
    """

    examples: int
    loss: float
    top1_error: float
    top5_error: float
    unreadable: int = 0

    @property
    def counted(self) -> str:
        """How many examples the errors are of, for people."""
        return f"{self.examples:,} examples" + (f", {self.unreadable:,} unreadable" if self.unreadable else "")


def evaluate(
    step: Callable, batches: Iterator[dict[str, np.ndarray]], sharding: NamedSharding, batch_size: int
) -> Result:
    """Adds up `step` over the batches.

    Args:
      step: maps a batch to the sums of `training.step.evaluation_step`.
      batches: each example once, and rows that are not `valid`.
      sharding: how the examples of a batch are split over the devices.
      batch_size: examples a batch over all processes.
    """
    totals, late = {}, None
    for batch in prefetch(batches, sharding, batch_size=batch_size):
        sums = step(batch)
        # One batch late, so that the host never waits for the step it has just started.
        _add(totals, late)
        late = sums
    _add(totals, late)
    return _result(totals)


def _result(totals: dict) -> Result:
    examples = int(totals["examples"])
    if not examples:
        raise UserError("expected at least one image that can be read, found none.")
    return Result(
        examples=examples,
        loss=float(totals["loss"]) / examples,
        top1_error=int(totals["top1_errors"]) / examples,
        top5_error=int(totals["top5_errors"]) / examples,
    )


def _add(totals: dict, sums: dict | None) -> None:
    for name, value in jax.device_get(sums or {}).items():
        # In Python's numbers: a float32 running total of a large split would lose its last digits.
        totals[name] = totals.get(name, 0) + value.item()


class Evaluator:
    """Judges a state on a split, with one compiled step for all splits of one dataset.

    Args:
      config: the run's configuration; its `evaluation` section says which views are judged.
      network: the network to judge.
      strategy: how the state that it will be given is spread.
    """

    def __init__(self, config: ConfigDict, network: Network, strategy: Strategy):
        self._config, self._sharding = config, strategy.batch
        self._batch_size = mesh_lib.round_up(config.evaluation.batch_size, strategy.shards)
        self._step = compile_evaluation_step(network, strategy, config.data)
        self._views = Views(config, network, strategy, self._batch_size)
        # Kept with the images that they have read.
        self._loaders = {}

    def __call__(self, state: TrainState, examples: Examples | EncodedExamples) -> Result:
        """Judges the state on a split.

        Raises:
          UserError: the views cannot be had of these images or with this network.
        """
        if examples not in self._loaders:
            self._loaders[examples] = loaders.create(self._config.data, examples)
        loader, size, state = self._loaders[examples], self._batch_size, to_judge(state)
        if self._config.evaluation.views == "multi_scale":
            result = _result(self._views.multi_scale(state, loader, examples))
        else:
            ten = self._config.evaluation.views == "ten_crop"
            step = functools.partial(self._step, state.params, state.batch_stats, state.mean)
            if ten:
                step = functools.partial(self._views.ten_crop, state)
            batches = loader.evaluation_batches(size, mesh_lib.share(size, self._sharding), whole_canvas=ten)
            result = evaluate(step, batches, self._sharding, size)
        return dataclasses.replace(result, unreadable=len(examples) - result.examples)

    def news(self) -> list[str]:
        """A line for each split of which more images turned out to be unreadable since the last call."""
        told = [(loader.faults, loader.faults.new(hosts.gather)) for loader in self._loaders.values()]
        return [faults.summary(new) for faults, new in told if new]
