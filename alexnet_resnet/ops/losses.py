"""Losses and errors of a batch of logits, one value an example."""

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def softmax_cross_entropy(logits: Float[Array, "N K"], labels: Int[Array, "N"]) -> Float[Array, "N"]:
    """-log softmax(logits)[label] in nats, in float32 at least: the objective of both papers."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # The largest first: optax subtracts the logit from the logarithm of the sum, which cancels where both are large.
    wide = wide - lax.stop_gradient(jnp.max(wide, axis=1, keepdims=True))
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels)


def in_top_k(logits: Float[Array, "N K"], labels: Int[Array, "N"], k: int) -> Bool[Array, "N"]:
    """Whether the right label is among the k largest logits.

    Ties count against the model: a network that gives every class the same score has a top-1 error of 100%, not 0.
    So does not-a-number, be it the right label's score or another's.
    """
    right = jnp.take_along_axis(logits, labels[:, None], axis=1)
    # Not-a-number compares false with everything, so those above are counted as all that are not below.
    others_at_least = jnp.sum(~(logits < right), axis=1) - 1
    return (others_at_least < k) & ~jnp.isnan(right[:, 0])
