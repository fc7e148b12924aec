"""Losses and errors of a batch of logits, one value an example."""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Logarithms of probabilities end here, and their gradients at the reciprocal of that, so that 0 costs much and not
# infinitely much. Both are PyTorch's numbers (binary_cross_entropy).
LEAST_LOGARITHM = -100.0
LEAST_DIVISOR = 1e-12


def _widened(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def softmax_cross_entropy(
    logits: Float[Array, "N K"], labels: Int[Array, "N"], label_smoothing: float = 0.0, rubbish: float = 0.0
) -> Float[Array, "N"]:
    """-sum_k y_k log softmax(logits)_k in nats, in float32 at least: the objective of both papers.

    With `rubbish` j above 0 there is one more class, of which no example is and whose logit is -j. Where logits are
    minus distances z this is LeNet-5's criterion (LeCun et al. 1998, section II.C, equation 9),
        z_label + log(exp(-j) + sum_k exp(-z_k)):
    while no class is nearer than j, the right distance shrinks as under a squared error, however the others compare.

    Args:
      logits: any numbers.
      labels: the right classes.
      label_smoothing: the share s of the target that is spread evenly: y = (1 - s) one_hot(label) + s / K (Szegedy et
        al. 2016, arXiv 1512.00567, section 7). 0 is the papers'.
      rubbish: j; 0 for no such class.
    """
    wide, classes = _widened(logits), logits.shape[1]
    if rubbish:
        wide = jnp.pad(wide, ((0, 0), (0, 1)), constant_values=-rubbish)
    # The largest first: optax subtracts the logit from the logarithm of the sum, which cancels where both are large.
    wide = wide - lax.stop_gradient(jnp.max(wide, axis=1, keepdims=True))
    losses = optax.softmax_cross_entropy_with_integer_labels(wide, labels)
    if not label_smoothing:
        return losses
    even = jax.nn.logsumexp(wide, axis=1) - jnp.mean(wide[:, :classes], axis=1)
    return (1 - label_smoothing) * losses + label_smoothing * even


def _targets(labels: Array, like: Array, label_smoothing: float) -> Array:
    """One-vs-all targets [N, K], smoothed as for the softmax."""
    classes = like.shape[1]
    return jax.nn.one_hot(labels, classes, dtype=like.dtype) * (1 - label_smoothing) + label_smoothing / classes


def binary_cross_entropy_with_logits(
    logits: Float[Array, "N K"], labels: Int[Array, "N"], label_smoothing: float = 0.0
) -> Float[Array, "N"]:
    """-sum_k [y_k log s(z_k) + (1 - y_k) log s(-z_k)] in nats, s the sigmoid: each class against all others.

    The sum over the classes, not their mean, makes the gradient of a logit s(z) - y, of the size that softmax cross
    entropy's is; so one learning rate serves both. No logit over- or underflows: log s(z) is never taken of s(z).

    Args:
      logits: finite numbers.
      labels: the right classes.
      label_smoothing: as for `softmax_cross_entropy`.
    """
    wide = _widened(logits)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(wide, _targets(labels, wide, label_smoothing)), axis=1)


@jax.custom_jvp
def _bounded_log(p: Array) -> Array:
    return jnp.maximum(jnp.log(p), LEAST_LOGARITHM)


@_bounded_log.defjvp
def _bounded_log_jvp(primals, tangents):
    # The plain derivative is infinite at 0, and zero times infinity is what the gradient would be made of.
    (p,), (tangent,) = primals, tangents
    return _bounded_log(p), tangent / jnp.maximum(p, LEAST_DIVISOR)


def binary_cross_entropy(
    probabilities: Float[Array, "N K"], labels: Int[Array, "N"], label_smoothing: float = 0.0
) -> Float[Array, "N"]:
    """-sum_k [y_k log p_k + (1 - y_k) log(1 - p_k)] in nats: each class against all others.

    A certain and wrong answer costs 100 nats, and its gradient is 1e12 rather than infinite. Where there are logits,
    `binary_cross_entropy_with_logits` is more exact: a float32 probability cannot be nearer to 1 than 6e-8.

    Args:
      probabilities: from 0 to 1, of each class by itself.
      labels: the right classes.
      label_smoothing: as for `softmax_cross_entropy`.
    """
    wide = _widened(probabilities)
    targets = _targets(labels, wide, label_smoothing)
    return -jnp.sum(targets * _bounded_log(wide) + (1 - targets) * _bounded_log(1 - wide), axis=1)


def _binary_by_probabilities(logits: Array, labels: Array, label_smoothing: float) -> Array:
    return binary_cross_entropy(jax.nn.sigmoid(_widened(logits)), labels, label_smoothing)


# Functions of (logits, labels, label_smoothing), by the names of `config.train.loss`.
LOSSES = {
    "softmax": softmax_cross_entropy,
    "binary": binary_cross_entropy_with_logits,
    "binary_probabilities": _binary_by_probabilities,
}


def in_top_k(logits: Float[Array, "N K"], labels: Int[Array, "N"], k: int) -> Bool[Array, "N"]:
    """Whether the right label is among the k largest logits.

    Ties count against the model: a network that gives every class the same score has a top-1 error of 100%, not 0.
    So does not-a-number, be it the right label's score or another's.
    """
    right = jnp.take_along_axis(logits, labels[:, None], axis=1)
    # Not-a-number compares false with everything, so those above are counted as all that are not below.
    others_at_least = jnp.sum(~(logits < right), axis=1) - 1
    return (others_at_least < k) & ~jnp.isnan(right[:, 0])
