"""Dropout whose masks do not depend on how the work is spread over devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def dropout(
    x: Float[Array, "N F"],
    rate: float,
    key: Key[Array, ""],
    examples: Int[Array, "N"],
    column: int | Int[Array, ""] = 0,
) -> Float[Array, "N F"]:
    """Sets each unit to zero with probability `rate` and divides the rest by 1 - rate.

    The mask of an example is a function of (key, example, column) alone, so one device that holds both columns and
    two that hold one each draw the same masks, and so do one device with the whole batch and eight with an eighth.

    Args:
      x: activations of one column.
      rate: the share to drop, in [0, 1).
      key: a key for this layer at this step.
      examples: the place of each row in the global batch.
      column: which column x belongs to.

    Source: Krizhevsky et al. 2012, section 4.2. There the outputs are halved at test time instead; dividing at training
    time gives the same expected activations.
    """

    def mask(example):
        own = jax.random.fold_in(jax.random.fold_in(key, example), column)
        return jax.random.bernoulli(own, 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(mask)(examples), x / (1 - rate), 0).astype(x.dtype)
