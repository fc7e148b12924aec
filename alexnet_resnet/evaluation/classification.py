"""Top-1 and top-5 error over a whole split, every example counted once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_resnet.data.sources import Examples
from alexnet_resnet.parallel.prefetch import prefetch
from alexnet_resnet.training.state import Network, TrainState
from alexnet_resnet.training.step import compile_evaluation_step


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      examples: how many were judged.
      loss: mean cross entropy in nats.
      top1_error: the share whose most probable class is wrong.
      top5_error: the share whose five most probable classes are all wrong.
    """

    examples: int
    loss: float
    top1_error: float
    top5_error: float


def padded_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The batch size rounded up to what the mesh's data axis divides."""
    shards = mesh.shape["data"]
    return -(-batch_size // shards) * shards


def evaluate(step: Callable, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Result:
    """Adds up `step` over the batches.

    Args:
      step: maps a batch to the sums of `training.step.evaluation_step`.
      batches: each example once, and rows that are not `valid`.
      mesh: where the batches go.
    """
    totals, late = {}, None
    for batch in prefetch(batches, mesh):
        sums = step(batch)
        # One batch late, so that the host never waits for the step it has just started.
        _add(totals, late)
        late = sums
    _add(totals, late)
    examples = int(totals["examples"])
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
      config: the run's configuration.
      network: the network to judge.
      mesh: where it runs.
    """

    def __init__(self, config: ConfigDict, network: Network, mesh: Mesh):
        self._data, self._mesh = config.data, mesh
        self._batch_size = padded_batch_size(config.evaluation.batch_size, mesh)
        self._step = compile_evaluation_step(network, mesh, config.data.divisor)

    def __call__(self, state: TrainState, examples: Examples) -> Result:
        from alexnet_resnet.data import pipeline

        step = functools.partial(self._step, state.params, state.batch_stats, state.mean)
        return evaluate(step, pipeline.evaluation_batches(self._data, examples, self._batch_size), self._mesh)
