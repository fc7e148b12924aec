"""Convolution and matrix product with a bias, in a given compute type."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_resnet.ops import space_to_depth
from alexnet_resnet.ops.conv_gradient import convolve_cpu


def convolve(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "h w C D"],
    bias: Float[Array, "D"] | None = None,
    stride: int = 1,
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, "N i j D"]:
    """A two-dimensional convolution (a correlation, as networks mean it), in x's type.

    On processors the gradient of the kernel is taken in another way than XLA's, equal but for the order of summation
    and faster (`conv_gradient`); elsewhere XLA's own is used, and a strided convolution of images is taken over blocks
    of pixels (`space_to_depth`), equal to rounding too.
    """
    kernel = kernel.astype(x.dtype)
    if jax.default_backend() == "cpu":
        y = convolve_cpu(x, kernel, stride, padding)
    elif space_to_depth.applies(kernel.shape, stride, padding):
        y = space_to_depth.convolve_blocks(x, kernel, stride, padding)
    else:
        y = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y if bias is None else y + bias.astype(x.dtype)


def dense(
    x: Float[Array, "N F"], kernel: Float[Array, "F G"], bias: Float[Array, "G"] | None = None
) -> Float[Array, "N G"]:
    """x @ kernel + bias, in x's type."""
    y = jnp.matmul(x, kernel.astype(x.dtype))
    return y if bias is None else y + bias.astype(x.dtype)
