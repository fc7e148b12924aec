"""A convolution whose kernel gradient is matrix products, for processors: XLA's own is slow there.

XLA computes the gradient with respect to the kernel as a convolution with the batch as its channels and the output as
its window. On a processor that means transposed copies of both operands, and tiles as narrow as the kernel. The same
sum is a product of matrices over the pixels of all images: with K pixels, of [shifts C x K] by [K x shifts D].
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

# Products of fewer entries than this run over about PIXELS at a time. A batch of such products was faster than one long
# one (48 x 48 and 96 x 96), and slower with more entries (192 x 192), whose partial sums are as large as the operands.
SMALL = 128 * 128
PIXELS = 1536

# Larger windows than of so many cells are left to XLA. By processor time of JAX 0.10.2 its own gradient took 0.2 to 0.5
# of the products' at 5 x 5, 7 x 7 and 11 x 11, and the whole step of AlexNet 0.91 of what it took with products there;
# that of ResNet-20, all 3 x 3, took 1.09 to 1.13 times as long without products.
CELLS = 9


def convolve_cpu(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w C D"], stride: int, padding: Sequence[tuple[int, int]]
) -> Float[Array, "N i j D"]:
    """`lax.conv_general_dilated` in NHWC and HWIO, with a kernel gradient that is fast on processors.

    The values and the gradients are the same but for the order of summation. The result is differentiable in reverse
    mode, any number of times; forward mode (`jax.jvp`) needs the convolution of `lax`.

    Args:
      x: the images, or activations.
      kernel: of x's type.
      stride: pixels between outputs, in both directions.
      padding: rows of zeros (above, below) and columns (left, right).
    """
    padding = tuple((int(low), int(high)) for low, high in padding)
    if not applies(x.shape, kernel.shape, stride, padding):
        return _convolve(x, kernel, stride, padding)
    # Inside shard_map the kernel's gradient is a sum over the devices, which a custom gradient may not add itself.
    x, kernel = _vary_alike(x, kernel)
    return _with_gradient(x, kernel, stride, padding)


def applies(x: Sequence[int], kernel: Sequence[int], stride: int, padding: Padding) -> bool:
    """Whether the kernel's gradient is taken by products: from the shapes alone.

    Products take all windows of up to `CELLS`: with them the whole step of the CIFAR network was faster at a batch of
    128; with one of 8 they can be slower. XLA keeps larger windows, negative padding, which crops, and outputs without
    pixels.
    """
    small = kernel[0] * kernel[1] <= CELLS
    return (
        small
        and all(low >= 0 and high >= 0 for low, high in padding)
        and 0 not in output_sides(x, kernel, stride, padding)
    )


def output_sides(x: Sequence[int], kernel: Sequence[int], stride: int, padding: Padding) -> tuple[int, int]:
    """Height and width of a convolution's result, from the shapes of x [N, H, W, C] and the kernel [h, w, C, D]."""
    sizes = zip(x[1:3], kernel[:2], padding, strict=True)
    return tuple(max(0, (size + sum(pad) - window) // stride + 1) for size, window, pad in sizes)


def _convolve(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _vary_alike(*arrays: Array) -> list[Array]:
    axes = frozenset().union(*(jax.typeof(a).mat.varying for a in arrays))
    missing = [tuple(axes - jax.typeof(a).mat.varying) for a in arrays]
    return [lax.pcast(a, m, to="varying") if m else a for a, m in zip(arrays, missing, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_gradient(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return _convolve(x, kernel, stride, padding)


def _forward(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Padding, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(g)
    return dx, kernel_gradient(x, g, kernel.shape[:2], stride, padding)


_with_gradient.defvjp(_forward, _backward)


def kernel_gradient(
    x: Float[Array, "N H W C"], g: Float[Array, "N i j D"], window: Sequence[int], stride: int, padding: Padding
) -> Float[Array, "h w C D"]:
    """The sum over images and pixels of x[n, i stride + a, j stride + b, c] g[n, i, j, d], for x padded.

    Args:
      x: what the convolution saw.
      g: the gradient of its output.
      window: height and width of the kernel.
      stride: as of the convolution.
      padding: as of the convolution, none of it negative.
    """
    (h, w), (i, j), c, d = window, g.shape[1:3], x.shape[-1], g.shape[-1]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = [x[:, a : a + (i - 1) * stride + 1 : stride] for a in range(h)]
    if stride == 1:
        # x shifted by rows and g by columns: h + w copies, where h w shifts of x alone would make as many of x.
        width = x.shape[2]
        columns = [jnp.pad(g, ((0, 0), (0, 0), (b, width - j - b), (0, 0))) for b in range(w)]
        product = _sum_over_pixels(_side_by_side(rows), _side_by_side(columns))
        return product.reshape(h, c, w, d).transpose(0, 2, 1, 3)
    shifted = [row[:, :, b : b + (j - 1) * stride + 1 : stride] for row in rows for b in range(w)]
    return _sum_over_pixels(_side_by_side(shifted), g).reshape(h, w, c, d)


def _side_by_side(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, -1)


def _sum_over_pixels(a: Float[Array, "N i j C"], b: Float[Array, "N i j D"]) -> Float[Array, "C D"]:
    """The transpose of a times b, all pixels of all images being rows."""
    n, pixels, small = a.shape[0], prod(a.shape[1:3]), a.shape[-1] * b.shape[-1] < SMALL
    images = max(m for m in range(1, n + 1) if n % m == 0 and (m == 1 or m * pixels <= PIXELS)) if small else n
    a, b = (t.reshape(n // images, images * pixels, t.shape[-1]) for t in (a, b))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    products = lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))), preferred_element_type=wide)
    return jnp.sum(products, 0).astype(a.dtype)
