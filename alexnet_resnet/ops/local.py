"""Locally connected layers: convolutions whose kernel differs from place to place."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def locally_connect(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "i j h w C D"],
    bias: Float[Array, "i j D"] | None = None,
    padding: int = 0,
) -> Float[Array, "N i j D"]:
    """Each output place has a kernel and a bias of its own; the windows are one pixel apart.

    The windows are stacked once and multiplied by their kernels in one product batched over places: a kernel is read
    once for the whole batch of images.

    Args:
      x: activations.
      kernel: for each of the i x j places one of h x w pixels, C channels in and D out.
      bias: for each place and output channel.
      padding: zeros on all four sides.

    Returns:
      The outputs in x's type.

    Raises:
      ValueError: the kernel's places are not those of x.

    Source: the `local` layers of cuda-convnet.
    """
    rows, columns, height, width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = (x.shape[1] - height + 1, x.shape[2] - width + 1)
    if places != (rows, columns):
        raise ValueError(f"kernel of {rows}x{columns} places: expected {places[0]}x{places[1]}")
    windows = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    flat = kernel.astype(x.dtype).reshape(rows, columns, height * width * channels, features)
    y = lax.dot_general(jnp.concatenate(windows, -1), flat, (((3,), (2,)), ((1, 2), (0, 1))))
    y = y.transpose(2, 0, 1, 3)
    return y if bias is None else y + bias.astype(x.dtype)
