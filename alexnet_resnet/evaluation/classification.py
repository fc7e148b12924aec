"""Top-1 and top-5 error over a whole split, every example counted once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from ml_collections import ConfigDict

from alexnet_resnet.data import loaders, views
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.evaluation.views import Take, Views, check_views
from alexnet_resnet.parallel import hosts
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.prefetch import prefetch
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training.state import Network, TrainState, to_judge
from alexnet_resnet.training.step import Batch, compile_evaluation_step, evaluation_images, score


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
    def top1_errors(self) -> int:
        """How many examples' most probable class is wrong."""
        return round(self.top1_error * self.examples)

    @property
    def top5_errors(self) -> int:
        """How many examples' five most probable classes are all wrong."""
        return round(self.top5_error * self.examples)

    @property
    def counted(self) -> str:
        """How many examples the errors are of, for people."""
        return f"{self.examples:,} examples" + (f", {self.unreadable:,} unreadable" if self.unreadable else "")


def evaluate(
    step: Callable,
    batches: Iterator[dict[str, np.ndarray]],
    sharding: NamedSharding,
    batch_size: int,
    take: Take | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Adds up `step` over the batches.

    Args:
      step: maps a batch to the sums of `training.step.evaluation_step`; with `take` to these and the
        logarithms of the softmax outputs.
      batches: each example once, and rows that are not `valid`.
      sharding: how the examples of a batch are split over the devices.
      batch_size: examples a batch over all processes.
      take: called with the rows, labels and log-softmax outputs of the examples that this process holds.
      progress: called with the number of examples of each batch that have been judged.
    """
    totals, late = {}, None

    def note(batch, found):
        sums, logarithms = found if take else (found, None)
        if take:
            rows, labels, valid, outputs = map(
                mesh_lib.own_rows, (batch["row"], batch["label"], batch["valid"], logarithms)
            )
            take(rows[valid], labels[valid], outputs[valid])
        judged = _add(totals, sums)
        if progress:
            progress(judged)

    for batch in prefetch(batches, sharding, batch_size=batch_size):
        found = step(batch)
        # One batch late, so that the host never waits for the step it has just started.
        if late is not None:
            note(*late)
        late = batch, found
    if late is not None:
        note(*late)
    return result_of(totals)


def result_of(totals: dict) -> Result:
    """The result of sums as `training.step.score` gives them.

    Raises:
      UserError: they are of no example.
    """
    examples = int(totals["examples"])
    if not examples:
        raise hosts.Refused("expected at least one image that can be read, found none.")
    return Result(
        examples=examples,
        loss=float(totals["loss"]) / examples,
        top1_error=int(totals["top1_errors"]) / examples,
        top5_error=int(totals["top5_errors"]) / examples,
    )


def _add(totals: dict, sums: dict) -> int:
    """Adds a batch's sums; the number of its examples."""
    sums = {name: value.item() for name, value in jax.device_get(sums).items()}
    for name, value in sums.items():
        # In Python's numbers: a float32 running total of a large split would lose its last digits.
        totals[name] = totals.get(name, 0) + value
    return sums["examples"]


def _judge(
    params: PyTree, batch_stats: PyTree, mean: jax.Array, batch: Batch, *, network: Network, data
) -> tuple[Batch, jax.Array]:
    """`training.step.evaluation_step`, and the log-softmax outputs [N, K] besides."""
    logits, _ = network.apply(params, batch_stats, evaluation_images(data, mean, batch))
    return score(logits, batch["label"], batch["valid"]), jax.nn.log_softmax(logits.astype(jnp.float32))


class Evaluator:
    """Judges a state on a split, with one compiled step for all splits of one dataset.

    Args:
      config: the run's configuration; its `evaluation` section says which views are judged.
      network: the network to judge.
      strategy: how the state that it will be given is spread.
      open_loader: gives the loader of a split; by default the one that the configuration names.
    """

    def __init__(
        self, config: ConfigDict, network: Network, strategy: Strategy, open_loader: Callable[..., Any] | None = None
    ):
        self._config, self._network, self._sharding = config, network, strategy.batch
        self._open = open_loader or functools.partial(loaders.create, config.data)
        self._batch_size = mesh_lib.round_up(config.evaluation.batch_size, strategy.shards)
        self._step = compile_evaluation_step(network, strategy, config.data)
        self._with_outputs = jax.jit(
            functools.partial(_judge, network=network.over(strategy), data=config.data),
            in_shardings=(*map(strategy.shardings, network.shapes), strategy.everywhere, strategy.batch),
            out_shardings=(strategy.everywhere, strategy.batch),
        )
        self._views = Views(config, network, strategy, self._batch_size)
        # Kept with the images that they have read.
        self._loaders = {}

    def check(self, examples: Examples | EncodedExamples) -> None:
        """Raises UserError where the views cannot be had of these images or with this network."""
        check_views(self._config, self._network, [examples])

    def passes(self, examples: Examples | EncodedExamples) -> int:
        """How many images `progress` will be told of."""
        evaluation = self._config.evaluation
        return len(examples) * (len(evaluation.scales) if evaluation.views == "multi_scale" else 1)

    def __call__(
        self,
        state: TrainState,
        examples: Examples | EncodedExamples,
        take: Take | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Result:
        """Judges the state on a split.

        Args:
          state: the network's parameters and statistics, and the mean that images lose.
          examples: the split.
          take: called with the rows [N], labels [N] and log-softmax outputs [N, K] of the examples that this process
            has judged, a batch at a time.
          progress: called with the number of images that have been judged since the last call.

        Raises:
          UserError: as `check`.
        """
        if examples not in self._loaders:
            self._loaders[examples] = self._open(examples)
            self._loaders[examples].faults.patient = hosts.several()
        loader, size, state = self._loaders[examples], self._batch_size, to_judge(state)
        if self._config.evaluation.views == "multi_scale":
            more = {"progress": progress} if progress else {}
            result = result_of(self._views.multi_scale(state, loader, examples, take, **more))
        else:
            crops = self._config.evaluation.views in views.CROPS
            step = self._crops_step(state, bool(take)) if crops else self._centre_step(state, bool(take))
            batches = loader.evaluation_batches(size, mesh_lib.share(size, self._sharding), whole_canvas=crops)
            result = evaluate(step, batches, self._sharding, size, take, progress)
        return dataclasses.replace(result, unreadable=len(examples) - result.examples)

    def _centre_step(self, state: TrainState, outputs: bool) -> Callable:
        # Two programs: training's evaluations do without the outputs.
        return functools.partial(
            self._with_outputs if outputs else self._step, state.params, state.batch_stats, state.mean
        )

    def _crops_step(self, state: TrainState, outputs: bool) -> Callable:
        def step(batch):
            sums, logarithms = self._views.crops(state, batch)
            return (sums, logarithms) if outputs else sums

        return step

    def news(self) -> list[str]:
        """A line for each split of which more images turned out to be unreadable since the last call."""
        with hosts.common():
            told = [(loader.faults, loader.faults.new(hosts.gather)) for loader in self._loaders.values()]
        return [faults.summary(new) for faults, new in told if new]
