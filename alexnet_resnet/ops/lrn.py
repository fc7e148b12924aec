"""Local response normalisation, AlexNet's section 3.3."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ALPHA_OVER = ("sum", "mean")


def local_response_norm(
    x: Float[Array, "... C"],
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    alpha_over: str = "sum",
) -> Float[Array, "... C"]:
    """Divides each activation by a power of the squares around it along the channel axis.

        y_i = x_i / (k + alpha * sum_{j in window(i)} x_j^2)^beta

    The window holds `size` channels, from i - size//2 to i + (size-1)//2, cut off at the borders. For odd sizes that is
    the paper's formula; for even ones, which the paper does not use, it is PyTorch's and cuda-convnet's choice.

    Args:
      x: activations, channels last. A net in columns calls this once a column: the sum runs over one GPU's own maps.
      size: the paper's n, the number of adjacent channels.
      k: the additive constant.
      alpha: the weight of the squares, by the convention of `alpha_over`.
      beta: the exponent.
      alpha_over: 'sum' multiplies alpha with the plain sum (the paper's text, TensorFlow); 'mean' divides it by `size`
        first (the code the paper's numbers came from, Caffe, PyTorch). At the borders too the divisor is `size`.

    Returns:
      The normalised activations in x's type. All arithmetic is in float32 at least, under bfloat16 too: k + 1e-4 * x^2
      has no digits left in 8 bits of mantissa.

    Raises:
      ValueError: `size` below 1 or an unknown `alpha_over`.

    Source: Krizhevsky et al. 2012, section 3.3.
    """
    if size < 1:
        raise ValueError(f"size={size}: expected at least 1")
    if alpha_over not in ALPHA_OVER:
        raise ValueError(f"alpha_over={alpha_over!r}: expected one of {', '.join(map(repr, ALPHA_OVER))}")
    return _lrn(x, size, k, alpha / size if alpha_over == "mean" else alpha, beta)


def _window_sum(x: Array, before: int, after: int) -> Array:
    """Sums x over channels [i - before, i + after].

    Shifted slices of one padded array: XLA fuses them with the arithmetic around them into one pass over memory,
    which it cannot do with a reduce-window or a matrix product, and there is no gather.
    """
    channels = x.shape[-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return functools.reduce(jnp.add, [padded[..., i : i + channels] for i in range(before + after + 1)])


def _scale(x: Array, size: int, k: float, alpha: float) -> Array:
    return k + alpha * _window_sum(jnp.square(x), size // 2, (size - 1) // 2)


def _power(scale: Array, beta: float) -> Array:
    """scale^-beta. The papers' three quarters are two square roots: a general power takes several times as long."""
    if beta == 0.75:
        root = jnp.sqrt(scale)
        return 1 / (root * jnp.sqrt(root))
    return scale**-beta


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _lrn(x, size, k, alpha, beta):
    wide = _wide(x)
    return (wide * _power(_scale(wide, size, k, alpha), beta)).astype(x.dtype)


def _lrn_forward(x, size, k, alpha, beta):
    # x alone is saved, which the layer before keeps anyway: recomputing the sum costs one pass, keeping it costs
    # as much memory as the activations themselves.
    return _lrn(x, size, k, alpha, beta), x


def _lrn_backward(size, k, alpha, beta, x, gradient):
    wide, g = _wide(x), _wide(gradient)
    scale = _scale(wide, size, k, alpha)
    power = _power(scale, beta)
    # Channel j's window holds i exactly when i's mirrored window holds j.
    spread = _window_sum(g * wide * power / scale, (size - 1) // 2, size // 2)
    return ((g * power - 2 * alpha * beta * wide * spread).astype(x.dtype),)


_lrn.defvjp(_lrn_forward, _lrn_backward)
