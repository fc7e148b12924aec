"""Max pooling whose gradient is a few comparisons of whole arrays, for processors and GPUs.

XLA looks through each window again for the place of its largest value (select-and-scatter): on processors a slow loop,
one cell at a time, and on GPUs a scatter, with which AlexNet's step plans twice the memory. Here all windows are looked
through together, cell by cell, and then each place in a window takes the gradients of the windows whose largest value
it had.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]


def largest(x: Float[Array, "N H W C"], window: int, stride: int, padding: Sequence[tuple[int, int]]) -> Array:
    """The largest value in each window; padding never wins. The gradient is XLA's own."""
    return lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *padding, (0, 0)),
    )


def max_pool_compared(
    x: Float[Array, "N H W C"], window: int, stride: int, padding: Sequence[tuple[int, int]]
) -> Float[Array, "N h w C"]:
    """`largest`, with a gradient that is fast on processors and GPUs.

    Of equal values the first in the window, by rows, takes the gradient, as XLA has it. Reverse mode only.

    Args:
      x: the images, or activations.
      window: side of the windows.
      stride: pixels between them.
      padding: (above, below) and (left, right), none of it negative.
    """
    return _with_gradient(x, window, stride, tuple((int(low), int(high)) for low, high in padding))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _with_gradient(x: Array, window: int, stride: int, padding: Padding) -> Array:
    return largest(x, window, stride, padding)


def _forward(x: Array, window: int, stride: int, padding: Padding) -> tuple[Array, Array]:
    return largest(x, window, stride, padding), x


def _backward(window: int, stride: int, padding: Padding, x: Array, g) -> tuple[Array]:
    (top, bottom), (left, right) = padding
    padded = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=-np.inf)
    (height, width), (rows, columns) = padded.shape[1:3], g.shape[1:3]
    # The pixels from the first window's to the last window's cell of one place.
    tall, wide = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    places = [(i, j) for i in range(window) for j in range(window)]
    # Not by comparing with the pool's output: XLA may compute x anew here, and round it otherwise.
    best, where = None, jnp.zeros(g.shape, jnp.int8 if len(places) < 128 else jnp.int32)
    for number, (i, j) in enumerate(places):
        cells = padded[:, i : i + tall : stride, j : j + wide : stride]
        if best is None:
            best = cells
            continue
        where = jnp.where(cells > best, number, where)
        best = jnp.maximum(best, cells)
    dx = jnp.zeros(padded.shape, g.dtype)
    for number, (i, j) in enumerate(places):
        spread = ((i, height - tall - i, stride - 1), (j, width - wide - j, stride - 1))
        taken = jnp.where(where == number, g, 0)
        dx += lax.pad(taken, np.zeros((), g.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    return (dx[:, top : height - bottom, left : width - right],)


_with_gradient.defvjp(_forward, _backward)
