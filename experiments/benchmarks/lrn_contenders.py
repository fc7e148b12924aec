"""Ways to compute AlexNet's normalisation, what each of them keeps, and NumPy's float64 to compare them with."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alexnet_resnet.ops import lrn

# Section 3.3.
SIZE, K, ALPHA, BETA = 5, 2.0, 1e-4, 0.75


def shifted_slices(squares: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Adds up shifted slices of one padded array."""
    channels = squares.shape[-1]
    padded = jnp.pad(squares, [(0, 0)] * (squares.ndim - 1) + [(SIZE // 2, SIZE // 2)])
    return functools.reduce(jnp.add, [padded[..., i : i + channels] for i in range(SIZE)])


def reduce_window(squares: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """XLA's sum over windows."""
    ones = (1,) * (squares.ndim - 1)
    return jax.lax.reduce_window(squares, np.float32(0), jax.lax.add, (*ones, SIZE), (*ones, 1), "SAME")


def banded_matrix(squares: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """A product with a matrix of zeros and ones."""
    places = np.arange(squares.shape[-1])
    band = np.abs(places[:, None] - places) <= SIZE // 2
    return jnp.matmul(squares, band.astype(np.float32), precision="highest")


def cumulative_sum(squares: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Differences of the running sum."""
    channels, before = squares.shape[-1], SIZE // 2
    total = jnp.cumsum(squares, -1)
    last = total[..., -1:]
    upper = jnp.concatenate([total[..., before:], *[last] * before], -1)
    lower = jnp.pad(total[..., : channels - before - 1], [(0, 0)] * (squares.ndim - 1) + [(before + 1, 0)])
    return upper - lower


@jax.custom_jvp
def roots(scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """The power -3/4 by square roots, with a derivative that keeps no more than that of `**` does."""
    root = jnp.sqrt(scale)
    return 1 / (root * jnp.sqrt(root))


@roots.defjvp
def _roots_derivative(primals, tangents):
    (scale,), (change,) = primals, tangents
    power = roots(scale)
    return power, -BETA * power / scale * change


def general(scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """The power -3/4 as any other."""
    return scale**-BETA


def plainly(x: Float[Array, "... C"], window_sum: Callable, power: Callable = roots) -> Float[Array, "... C"]:
    """The formula of section 3.3 with one of these sums, for JAX to differentiate."""
    wide = x.astype(jnp.float32)
    return (wide * power(K + ALPHA * window_sum(jnp.square(wide)))).astype(x.dtype)


CONTENDERS = {
    "ours": functools.partial(lrn.local_response_norm, size=SIZE, k=K, alpha=ALPHA, beta=BETA),
    "shifted slices": functools.partial(plainly, window_sum=shifted_slices),
    "reduce_window": functools.partial(plainly, window_sum=reduce_window),
    "banded matrix": functools.partial(plainly, window_sum=banded_matrix),
    "cumulative sum": functools.partial(plainly, window_sum=cumulative_sum),
    "general power": functools.partial(plainly, window_sum=shifted_slices, power=general),
}


def reference(x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output and the gradient by x of the sum of g times the output, in float64, channels last."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)

    def window_sum(values):
        found = np.zeros_like(values)
        for shift in range(-(SIZE // 2), SIZE // 2 + 1):
            there, here = slice(max(shift, 0), values.shape[-1] + min(shift, 0)), slice(max(-shift, 0), None)
            part = values[..., there]
            found[..., here][..., : part.shape[-1]] += part
        return found

    scale = K + ALPHA * window_sum(x**2)
    # Output i depends on x_j through its scale wherever i and j are neighbours.
    gradient = g * scale**-BETA - 2 * ALPHA * BETA * x * window_sum(g * x * scale ** (-BETA - 1))
    return x * scale**-BETA, gradient


def both(function: Callable) -> Callable:
    """A function of x and its output's gradient that gives the output and x's gradient."""

    def output_and_gradient(x, g):
        y, pull = jax.vjp(function, x)
        return y, pull(g)[0]

    return output_and_gradient


def kept_bytes(function: Callable, x: jax.ShapeDtypeStruct) -> int:
    """What the forward pass of a function leaves for the backward pass, each array once."""
    saved = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(function, x)[1], x))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in saved)


def difference(found: Array, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest value, over as many images as `wanted` has."""
    found = np.asarray(found[: len(wanted)], np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
