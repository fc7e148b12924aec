"""Stochastic gradient descent as the papers do it, out of optax's parts."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from alexnet_resnet import config as config_lib


def schedule(optimizer, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The learning rate at each step (float32): a warm-up, then the rate, multiplied by `factor` at each boundary.

    Args:
      optimizer: the configuration's `optimizer` section; its boundaries are shares of `total_steps`, so a shorter run
        has the same schedule on a smaller scale.
      total_steps: the run's length.
      steps_per_epoch: for a warm-up given in epochs.
    """
    boundaries = [round(share * total_steps) for share in optimizer.boundaries]
    warmup = config_lib.steps("optimizer.warmup", optimizer.warmup, steps_per_epoch)

    def rate(step):
        passed = jnp.sum(jnp.asarray(step) >= jnp.asarray(boundaries, jnp.int32))
        full = optimizer.learning_rate * jnp.float32(optimizer.factor) ** passed
        start = optimizer.warmup_learning_rate
        share = step / max(warmup, 1) if optimizer.warmup_shape == "linear" else 0.0
        early = start + share * (optimizer.learning_rate - start)
        return jnp.where(step < warmup, early, full).astype(jnp.float32)

    return rate


def is_weight(path: tuple) -> bool:
    """Whether a parameter is a weight: not a bias, nor batch normalisation's scale."""
    return path[-1].key == "kernel"


def create(optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that `config.optimizer` describes, with the learning rate of `schedule`.

    'rate_inside' is the order of AlexNet's section 5 and of Caffe,
        v <- m v - rate (g + decay w),   w <- w + v,
    'rate_outside' that of PyTorch and most others,
        v <- m v + g + decay w,   w <- w - rate v.
    They differ from the moment the rate changes: inside, the velocity still carries the old rate.
    """

    def weights(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: optimizer.decay_all or is_weight(path), params)

    scale = optax.scale_by_learning_rate(rate)
    momentum = optax.trace(decay=optimizer.momentum)
    parts = (scale, momentum) if optimizer.momentum_order == "rate_inside" else (momentum, scale)
    return optax.chain(optax.add_decayed_weights(optimizer.weight_decay, mask=weights), *parts)
