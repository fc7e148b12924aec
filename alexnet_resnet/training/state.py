"""Everything that a training run is at one moment."""

import copy
import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from alexnet_resnet import models
from alexnet_resnet.models import Context
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training.optimizer import Optimizer

# A network that is only looked at may have any of optax's optimizers.
AnyOptimizer = Optimizer | optax.GradientTransformation
LEVEL = "xla_backend_optimization_level"


class Average(NamedTuple):
    """A moving average of the parameters and of batch normalisation's moments, in the trees of both."""

    params: PyTree
    batch_stats: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The arrays that a step maps to the next step's; a checkpoint holds exactly these.

    Any field may stand for its array: a ShapeDtypeStruct, a sharding.

    Attributes:
      step: how many steps have been taken, int32 [].
      params: the network's parameters, nested dictionaries by attribute name.
      batch_stats: batch normalisation's running moments, likewise.
      opt_state: the optimizer's state.
      key: the data of the random key that every step folds its number into, uint32 [2].
      mean: the mean canvas [H, W, C] that is subtracted from images, in grey levels; with it a checkpoint can judge
        an image without the dataset.
      colours: what lighting shifts an image's colour by for a draw of one along each axis, [C, C] in grey levels.
      average: an `Average`, which evaluations judge; an empty dictionary with `optimizer.ema=0`.
    """

    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    key: PyTree
    mean: PyTree
    colours: PyTree
    average: PyTree = dataclasses.field(default_factory=dict)


class Network:
    """A network as a pure function of its parameters and statistics.

    The module is split once into its structure and its arrays; `apply` joins them again under a trace.

    Args:
      model: the configuration's `model` section.
      image_shape: height, width, channels of what the network sees.
      num_classes: logits.

    Attributes:
      shapes: the parameters and statistics as ShapeDtypeStructs, in the trees of `init`.

    Raises:
      UserError: as `models.create`.
    """

    def __init__(self, model, image_shape: tuple[int, int, int], num_classes: int):
        def draw(key: Array) -> tuple[PyTree, PyTree]:
            self.graphdef, params, stats = nnx.split(
                models.create(model, image_shape, num_classes, key), nnx.Param, nnx.BatchStat
            )
            return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

        # Jitted, so that the shapes here and the values later are of one trace: building a deep network takes a while.
        self._draw = jax.jit(draw)
        self.shapes = jax.eval_shape(self._draw, jax.eval_shape(jax.random.key, 0))
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self._strategy = None

    def over(self, strategy: Strategy | None) -> "Network":
        """The same network, spread over devices: its arrays lie as `strategy.shardings` says; for None it is not."""
        spread = copy.copy(self)
        spread._strategy = strategy
        return spread

    @property
    def parameter_count(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes[0]))

    def init(self, key: Array) -> tuple[PyTree, PyTree]:
        """Fresh parameters and statistics. To be called under `jit_once`."""
        return self._draw(key)

    def apply(
        self, params: PyTree, batch_stats: PyTree, images: Float[Array, "N H W C"], context: Context = Context()
    ) -> tuple[Float[Array, "N K"], PyTree]:
        """The logits, and the running moments after this pass (unchanged unless `context.train`)."""
        if self._strategy is not None:
            return self._strategy.apply(self._apply, params, batch_stats, images, context)
        return self._apply(params, batch_stats, images, context)

    def _apply(self, params: PyTree, batch_stats: PyTree, images: Array, context: Context) -> tuple[Array, PyTree]:
        network = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        logits = network(images, context)
        return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))


def jit_once(function: Callable, **given) -> Callable:
    """`jax.jit` for what draws initial parameters, which runs once: in less of the compiler's time.

    For a CPU the compiler spends about a second on the random numbers of each layer, which take milliseconds. At this
    level it spends a sixth of that, and they come out the same to the last bit; at its lowest they do not. A level
    that is named in XLA_FLAGS is kept.

    Args:
      function: as for `jax.jit`.
      given: likewise.
    """
    if jax.default_backend() != "cpu" or LEVEL in os.environ.get("XLA_FLAGS", ""):
        return jax.jit(function, **given)
    return jax.jit(function, compiler_options={LEVEL: 1}, **given)


def create(
    network: Network,
    optimizer: AnyOptimizer,
    seed: int,
    mean: Float[Array, "H W C"],
    colours: Float[Array, "C C"],
) -> TrainState:
    """The state before the first step. To be called under `jit_once`, so that every layout gets the same bits."""
    params, batch_stats = network.init(jax.random.key(seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Another stream than the one the parameters were drawn from.
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
        mean=jnp.asarray(mean, jnp.float32),
        colours=jnp.asarray(colours, jnp.float32),
        # Copies: a step is given the memory of both.
        average=jax.tree.map(jnp.copy, Average(params, batch_stats)) if _averages(optimizer) else {},
    )


def _averages(optimizer: AnyOptimizer) -> bool:
    return isinstance(optimizer, Optimizer) and optimizer.ema > 0


def to_judge(state: TrainState) -> TrainState:
    """The state whose parameters and statistics an evaluation judges: the moving averages, where there are any."""
    if not isinstance(state.average, Average):
        return state
    return dataclasses.replace(state, params=state.average.params, batch_stats=state.average.batch_stats)


def at_step(state: TrainState, step: int) -> TrainState:
    """The state with another number of steps behind it: the next one takes its rate, batch and draws by that."""
    place = jax.device_put(np.int32(step), state.step.sharding)
    return dataclasses.replace(state, step=place, opt_state=optimizer_lib.at_step(state.opt_state, step))


def from_config(config) -> Network:
    """The network that a configuration describes."""
    data = config.data
    return Network(config.model, (data.image_size, data.image_size, data.channels), data.num_classes)


def shardings(network: Network, optimizer: AnyOptimizer, strategy: Strategy) -> TrainState:
    """Where each array of the state lies: a TrainState of shardings."""
    params, batch_stats = network.shapes
    return TrainState(
        params=strategy.shardings(params),
        batch_stats=strategy.shardings(batch_stats),
        opt_state=strategy.shardings(jax.eval_shape(optimizer.init, params)),
        average=strategy.shardings(Average(params, batch_stats)) if _averages(optimizer) else {},
        **dict.fromkeys(("step", "key", "mean", "colours"), strategy.everywhere),
    )


def like(config, network: Network, optimizer: AnyOptimizer, sharding: jax.sharding.Sharding) -> TrainState:
    """The shapes and types of a configuration's state, as ShapeDtypeStructs with `sharding`."""
    side = 1 if config.data.mean == "none" else config.data.canvas_size
    channels = config.data.channels
    mean = jax.ShapeDtypeStruct((side, side, channels), jnp.float32)
    colours = jax.ShapeDtypeStruct((channels, channels), jnp.float32)
    shapes = jax.eval_shape(lambda *measured: create(network, optimizer, config.seed, *measured), mean, colours)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
