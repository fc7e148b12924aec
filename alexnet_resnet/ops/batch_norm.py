"""Batch normalisation as functions: statistics over groups of a fixed size, and the affine map."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def batch_moments(x: Float[Array, "N ... C"], group: int = 0) -> tuple[Float[Array, "G C"], Float[Array, "G C"]]:
    """Mean and (biased) variance of each channel over each group of `group` successive examples, in float32 at least.

    With a fixed group ("ghost batch") the result does not depend on how many devices share the batch: ResNet's 256
    images on 8 GPUs are groups of 32 on any hardware. The groups stay local to a device when they nest in the shards.

    Args:
      x: activations, batch first and channels last.
      group: examples a group; 0 takes the whole (global) batch as one.

    Raises:
      ValueError: `group` does not divide the batch.
    """
    n = x.shape[0]
    group = group or n
    if group < 1 or n % group:
        raise ValueError(f"group={group}: expected a divisor of the batch size {n}")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(n // group, group, *x.shape[1:])
    return two_passes(x) if jax.default_backend() == "cpu" else one_pass(x)


def two_passes(x: Float[Array, "G N ... C"]) -> tuple[Float[Array, "G C"], Float[Array, "G C"]]:
    """Mean and variance of each group: E[(x - E[x])^2], which waits for the mean and then reads x again."""
    axes = tuple(range(1, x.ndim - 1))
    mean = jnp.mean(x, axes)
    centre = mean.reshape(mean.shape[0], *(1,) * len(axes), -1)
    return mean, jnp.mean(jnp.square(x - centre), axes)


def one_pass(x: Float[Array, "G N ... C"]) -> tuple[Float[Array, "G C"], Float[Array, "G C"]]:
    """Mean and variance of each group, both sums in one pass over x: for accelerators, which memory binds here.

    E[x^2] - E[x]^2 alone cancels when the mean is large beside the spread. So all is taken of the distance from the
    mean of the group's first example, which is as near as the examples are to each other; the moments do not depend on
    it, and neither do their gradients.
    """
    axes = tuple(range(1, x.ndim - 1))
    near = lax.stop_gradient(jnp.mean(x[:, :1], axes, keepdims=True))
    distance = x - near
    mean = jnp.mean(distance, axes)
    variance = jnp.maximum(jnp.mean(jnp.square(distance), axes) - jnp.square(mean), 0)
    return near.reshape(mean.shape) + mean, variance


def split_batch_moments(
    x: Float[Array, "N ... C"], axes: tuple[str, ...], group: int = 0
) -> tuple[Float[Array, "G C"], Float[Array, "G C"]]:
    """`batch_moments` inside a `shard_map` whose batch is split along `axes`: those of the groups that x is part of.

    Groups that nest in a device's part are its own affair. Of a group that spans several devices each computes its
    part's moments, and these are exchanged, never activations.

    Args:
      x: this device's part of the batch; all parts have the same size.
      axes: the mesh axes that the batch is split along, the outermost first.
      group: examples a group, counted over the whole batch; 0 takes all of it as one.

    Raises:
      ValueError: neither does `group` divide the parts nor a part the group, or the group does not divide the batch.
    """
    n, parts = x.shape[0], lax.axis_size(axes)
    group = group or n * parts
    if group < 1 or n * parts % group or (n % group and group % n):
        raise ValueError(f"group={group}: expected groups that nest in parts of {n} examples, or parts in them")
    mean, variance = batch_moments(x, min(group, n))
    if group <= n:
        return mean, variance
    span = group // n
    means, variances = (lax.all_gather(moment[0], axes) for moment in (mean, variance))
    own = lax.axis_index(axes) // span * span
    means, variances = (lax.dynamic_slice_in_dim(moments, own, span) for moments in (means, variances))
    mean = jnp.mean(means, 0, keepdims=True)
    return mean, jnp.mean(variances + jnp.square(means - mean), 0, keepdims=True)


def batch_normalise(
    x: Float[Array, "N ... C"],
    mean: Float[Array, "G C"],
    variance: Float[Array, "G C"],
    scale: Float[Array, "C"],
    bias: Float[Array, "C"],
    epsilon: float,
) -> Float[Array, "N ... C"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, each group of examples with its own moments.

    The arithmetic is in the moments' type (float32 at least) and the result in x's; XLA fuses the two casts, so
    bfloat16 activations are read and written once as bfloat16. Source: Ioffe and Szegedy 2015, algorithm 1.
    """
    groups, n = mean.shape[0], x.shape[0]
    factor = lax.rsqrt(variance + epsilon) * scale
    offset = bias - mean * factor
    shape = (groups, *(1,) * (x.ndim - 1), x.shape[-1])
    grouped = x.reshape(groups, n // groups, *x.shape[1:])
    out = grouped * factor.reshape(shape) + offset.reshape(shape)
    return out.reshape(x.shape).astype(x.dtype)
