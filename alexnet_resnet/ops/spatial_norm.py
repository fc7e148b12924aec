"""Local response normalisation within each map: over neighbouring pixels, not over channels."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_resnet.ops.lrn import ALPHA_OVER


def within_map_norm(
    x: Float[Array, "N H W C"],
    size: int = 3,
    k: float = 1.0,
    alpha: float = 5e-5,
    beta: float = 0.75,
    alpha_over: str = "mean",
) -> Float[Array, "N H W C"]:
    """Divides each activation by a power of the squares around it in its own map.

        y_ij = x_ij / (k + alpha / size^2 * sum_{window(i, j)} x^2)^beta

    The window is `size` x `size` pixels, from i - size//2 to i + (size-1)//2 both ways, cut off at the borders.

    Args:
      x: activations.
      size: the side of the window.
      k: the additive constant.
      alpha: the weight of the squares, by the convention of `alpha_over`; the defaults are the "18pct" net's.
      beta: the exponent.
      alpha_over: 'mean' divides alpha by size^2 (the author's code), at the borders too; 'sum' takes it as it is.

    Returns:
      The normalised activations in x's type; the arithmetic is in float32 at least.

    Raises:
      ValueError: `size` below 1 or an unknown `alpha_over`.

    Source: the `rnorm` layers of cuda-convnet. AlexNet's net 145 has one too, with size 5 and alpha 0.001.
    """
    if size < 1:
        raise ValueError(f"size={size}: expected at least 1")
    if alpha_over not in ALPHA_OVER:
        raise ValueError(f"alpha_over={alpha_over!r}: expected one of {', '.join(map(repr, ALPHA_OVER))}")
    return _norm(x, size, k, alpha / size**2 if alpha_over == "mean" else alpha, beta)


def _window_sum(x: Array, before: int, after: int) -> Array:
    """Sums over [i - before, i + after] along the rows, then along the columns: 2 * size additions, not size^2."""
    for axis in (1, 2):
        pad = [(before, after) if a == axis else (0, 0) for a in range(x.ndim)]
        padded, size = jnp.pad(x, pad), x.shape[axis]
        shifted = [lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(before + after + 1)]
        x = functools.reduce(jnp.add, shifted)
    return x


def _scale(x: Array, size: int, k: float, alpha: float) -> Array:
    return k + alpha * _window_sum(jnp.square(x), size // 2, (size - 1) // 2)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _norm(x, size, k, alpha, beta):
    wide = _wide(x)
    return (wide * _scale(wide, size, k, alpha) ** -beta).astype(x.dtype)


def _forward(x, size, k, alpha, beta):
    # Only x is saved, as in LRN across channels: the sums are cheap to make again.
    return _norm(x, size, k, alpha, beta), x


def _backward(size, k, alpha, beta, x, gradient):
    wide, g = _wide(x), _wide(gradient)
    scale = _scale(wide, size, k, alpha)
    power = scale**-beta
    # Pixel j's window holds i exactly when i's mirrored window holds j.
    spread = _window_sum(g * wide * power / scale, (size - 1) // 2, size // 2)
    return ((g * power - 2 * alpha * beta * wide * spread).astype(x.dtype),)


_norm.defvjp(_forward, _backward)
