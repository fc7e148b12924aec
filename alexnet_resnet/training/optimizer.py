"""Stochastic gradient descent as the papers do it, out of optax's parts."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from alexnet_resnet import config as config_lib
from alexnet_resnet import config_training
from alexnet_resnet.config_training import Group

# Of the training error that ends a warm-up: what its moving average keeps of itself each step. "Until the training
# error is below 80%" (He et al. 2016, section 4.2) does not say over how many batches; this is about ten of them.
ERROR_MEMORY = 0.9


class Control(NamedTuple):
    """What happens to the learning rate because of how the training goes. Scalars on every device, in checkpoints.

    Attributes:
      warming: whether a warm-up that ends by the training error still lasts, bool.
      error: the moving average of the training error, a share, float32.
      best: the lowest validation error so far, a share, float32; infinite before the first.
      waited: evaluations since then, or since the last cut, int32.
      cuts: how many times the rate has been cut, int32.
    """

    warming: Any
    error: Any
    best: Any
    waited: Any
    cuts: Any


class Controlled(NamedTuple):
    """The state of an optimizer whose rate depends on how the training goes."""

    inner: PyTree
    control: Control


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What `create` makes: optax's two functions, and the one thing of the recipe that is done after the update.

    Attributes:
      init: maps parameters to the optimizer's state.
      update: maps (gradients, state, parameters) to updates and the next state; a last argument `error` is the step's
        training error, a share, for warm-ups that end by it.
      ema: what the moving average of the parameters keeps of itself each step; 0 for no average.
    """

    init: Callable
    update: Callable
    ema: float = 0.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate at each step, float32.

    Attributes:
      optimizer: the configuration's `optimizer` section; its boundaries are shares of the run, so a shorter run has
        the same schedule on a smaller scale.
      total_steps: the run's length.
      warmup: the warm-up's length in steps.
      peak: the full rate.
    """

    optimizer: Any
    total_steps: int
    warmup: int
    peak: float

    def __call__(self, step, control: Control | None = None) -> Array:
        """A warm-up, then the full rate, multiplied by `factor` at each boundary or along half a cosine."""
        optimizer, step = self.optimizer, jnp.asarray(step)
        if optimizer.schedule == "cosine":
            share = (step - self.warmup) / max(self.total_steps - self.warmup, 1)
            full = self.peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))
        else:
            cuts = self._passed(optimizer.boundaries, step)
            cuts = cuts if control is None else jnp.maximum(cuts, control.cuts)
            full = self.peak * jnp.float32(optimizer.factor) ** cuts
        start = optimizer.warmup_learning_rate
        share = step / max(self.warmup, 1) if optimizer.warmup_shape == "linear" else 0.0
        early = start + share * (self.peak - start)
        by_error = control is not None and optimizer.warmup_until_error
        warming = control.warming if by_error else step < self.warmup
        return jnp.where(warming, early, full).astype(jnp.float32)

    def of_group(self, group: Group, step, control: Control | None = None) -> Array:
        """The learning rate of the parameters of one group."""
        factors = jnp.asarray((group.rate, *group.rate_after), jnp.float32)
        factor = factors[self._passed(group.boundaries, step)]
        return factor * (self(step, control) if group.scheduled else jnp.float32(self.peak))

    def boundaries_passed(self, step: int) -> int:
        """How many boundaries the rate of step number `step` has behind it."""
        return int(self._passed(self.optimizer.boundaries, step))

    def _passed(self, boundaries, step):
        steps = [round(share * self.total_steps) for share in boundaries]
        return jnp.sum(jnp.asarray(step) >= jnp.asarray(steps, jnp.int32))


def schedule(optimizer, total_steps: int, steps_per_epoch: float, batch_size: int = 0) -> Schedule:
    """The learning rate at each step: a `Schedule`.

    Args:
      optimizer: the configuration's `optimizer` section.
      total_steps: the run's length.
      steps_per_epoch: for a warm-up given in epochs.
      batch_size: examples a step, where the rate is to follow them (`optimizer.reference_batch`).
    """
    warmup = config_lib.steps("optimizer.warmup", optimizer.warmup, steps_per_epoch, total_steps)
    scale = batch_size / optimizer.reference_batch if optimizer.reference_batch and batch_size else 1.0
    return Schedule(optimizer, total_steps, warmup, optimizer.learning_rate * scale)


def is_weight(path: tuple) -> bool:
    """Whether a parameter is a weight: not a bias, nor batch normalisation's scale."""
    return path[-1].key == "kernel"


def name_of(path: tuple) -> str:
    """A parameter's name, such as 'conv1/kernel'."""
    return "/".join(str(key.key) for key in path)


def check_groups(optimizer, params: PyTree) -> None:
    """`config_training.check_groups` for parameters, or their shapes, in a tree."""
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    config_training.check_groups(optimizer, names)


def create(optimizer, rate: Callable) -> Optimizer:
    """The optimizer that `config.optimizer` describes, with the learning rate of `schedule`.

    'rate_inside' is the order of AlexNet's section 5 and of Caffe,
        v <- m v - rate (g + decay w),   w <- w + v,
    'rate_outside' that of PyTorch and most others,
        v <- m v + g + decay w,   w <- w - rate v.
    They differ from the moment the rate changes: inside, the velocity still carries the old rate. In both, each group
    of `optimizer.groups` has its own rate and decay in these equations.

    Args:
      optimizer: the configuration's `optimizer` section.
      rate: a `Schedule`; where nothing of it depends on groups or on how the training goes, any function of the step.
    """
    groups = config_training.groups(optimizer)

    def group_of(path: tuple) -> Group | None:
        return next((group for group in groups if group.holds(name_of(path))), None) if groups else None

    def chosen(choose: Callable) -> Callable:
        return lambda params: jax.tree_util.tree_map_with_path(lambda path, _: bool(choose(path)), params)

    def decays(path: tuple) -> bool:
        group = group_of(path)
        own = group is not None and group.weight_decay is not None
        return not own and (optimizer.decay_all or is_weight(path))

    decay = [optax.add_decayed_weights(optimizer.weight_decay, mask=chosen(decays))]
    for group in groups:
        if group.weight_decay:
            inside = chosen(lambda path, group=group: group_of(path) == group)
            decay.append(optax.add_decayed_weights(group.weight_decay, mask=inside))
    scale, momentum = _scale_by_rates(rate, group_of), optax.trace(decay=optimizer.momentum)
    parts = (scale, momentum) if optimizer.momentum_order == "rate_inside" else (momentum, scale)
    chain = optax.chain(*decay, *parts)
    if optimizer.plateau.times or optimizer.warmup_until_error:
        return _controlled(optimizer, chain)

    def update(gradients, state, params=None, error=None):
        return chain.update(gradients, state, params)

    return Optimizer(chain.init, update, optimizer.ema)


def _scale_by_rates(rate: Callable, group_of: Callable) -> optax.GradientTransformationExtraArgs:
    """Minus the learning rate times the updates, each group with its own rate."""

    def update(updates, state, params=None, *, control=None, **_):
        step = state.count
        common = rate(step) if control is None else rate(step, control)

        def scaled(path, leaf):
            group = group_of(path)
            own = common if group is None else rate.of_group(group, step, control)
            return jnp.asarray(-1 * own, leaf.dtype) * leaf

        updates = jax.tree_util.tree_map_with_path(scaled, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(step))

    init = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))  # noqa: E731
    return optax.GradientTransformationExtraArgs(init, update)


def _controlled(optimizer, chain: optax.GradientTransformationExtraArgs) -> Optimizer:
    def init(params):
        control = Control(
            warming=jnp.asarray(optimizer.warmup_until_error > 0),
            # From above, so that no lucky first batch ends the warm-up.
            error=jnp.ones((), jnp.float32),
            best=jnp.full((), jnp.inf, jnp.float32),
            waited=jnp.zeros((), jnp.int32),
            cuts=jnp.zeros((), jnp.int32),
        )
        return Controlled(chain.init(params), control)

    def update(gradients, state, params=None, error=None):
        control = state.control
        updates, inner = chain.update(gradients, state.inner, params, control=control)
        if optimizer.warmup_until_error:
            if error is None:
                raise ValueError("error: expected the step's training error with optimizer.warmup_until_error")
            average = ERROR_MEMORY * control.error + (1 - ERROR_MEMORY) * jnp.asarray(error, jnp.float32)
            warming = control.warming & (average >= optimizer.warmup_until_error)
            control = control._replace(error=average, warming=warming)
        return updates, Controlled(inner, control)

    return Optimizer(init, update, optimizer.ema)


def at_step(opt_state: PyTree, step: int) -> PyTree:
    """The optimizer's state with another number of steps behind it, on which its rates depend."""
    old = optax.tree.get(opt_state, "count")
    return optax.tree.set(opt_state, count=_like(old, np.int32(step)))


def rate_now(rate: Callable, step: Array, opt_state: PyTree) -> Array:
    """The learning rate that the next update takes."""
    return rate(step, opt_state.control) if isinstance(opt_state, Controlled) else rate(step)


def after_evaluation(rate: Schedule, opt_state: PyTree, step: int, error: float) -> tuple[PyTree, bool]:
    """The optimizer's state once it knows of a validation error, and whether the rate has been cut for it.

    The error improves if it is below the best so far by more than `plateau.least`. After `plateau.patience` evaluations
    that do not improve the rate is cut, and the patience begins anew; so it does when a boundary cuts the rate.

    Args:
      rate: the run's schedule.
      opt_state: the optimizer's state, as it is between two steps. Its shapes and places do not change, so that no step
        is compiled anew.
      step: how many steps have been taken.
      error: a share.
    """
    plateau = rate.optimizer.plateau
    if not plateau.times:
        return opt_state, False
    control = opt_state.control
    best, waited, cuts = (jax.device_get(value) for value in (control.best, control.waited, control.cuts))
    error, waited, cuts, cut = np.float32(error), int(waited), int(cuts), False
    passed = rate.boundaries_passed(step)
    if passed > cuts:
        cuts, waited = passed, 0
    if error < best - np.float32(plateau.least):
        best, waited = error, 0
    else:
        waited += 1
    if waited >= plateau.patience and cuts < plateau.times:
        cuts, waited, cut = cuts + 1, 0, True
    new = {"best": np.float32(best), "waited": np.int32(waited), "cuts": np.int32(cuts)}
    placed = {name: _like(getattr(control, name), value) for name, value in new.items()}
    return opt_state._replace(control=control._replace(**placed)), cut


def _like(old: Array, value: np.number) -> Array:
    """A scalar where and as another one is, which every process holds a copy of."""
    return jax.make_array_from_callback((), old.sharding, lambda _: np.asarray(value, old.dtype))


def average(keep: float, old: PyTree, new: PyTree, step: Array) -> PyTree:
    """The next moving average, keep * old + (1 - keep) * new.

    As in TensorFlow's ExponentialMovingAverage, `keep` starts from (1 + step) / (10 + step) where that is less: the
    average of a short run is not one of its initial parameters.
    """
    keep = jnp.minimum(keep, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: (a - (1 - keep) * (a - b)).astype(a.dtype), old, new)
