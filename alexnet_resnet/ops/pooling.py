"""Spatial pooling on NHWC arrays."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alexnet_resnet.ops.pool_gradient import largest, max_pool_compared

Padding = Sequence[tuple[int, int]]


def ceil_padding(size: int, window: int, stride: int, pad: int = 0) -> tuple[int, int]:
    """The (before, after) padding that makes a window's output size round up.

    cuda-convnet and Caffe compute 1 + ceil((size + 2*pad - window) / stride) outputs, so the last window may hang over
    the edge; everything else today rounds down. The padding is at the end, where those programs read nothing.

    >>> ceil_padding(32, window=3, stride=2)   # 16 outputs, not 15
    (0, 1)
    >>> ceil_padding(224, window=11, stride=4)   # AlexNet's 55 from 224
    (0, 3)
    """
    outputs = 1 + -(-(size + 2 * pad - window) // stride)
    return pad, max(pad, (outputs - 1) * stride + window - size - pad)


def _sum(x: Array, window: int, stride: int, padding: Padding) -> Array:
    sides, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, sides, strides, ((0, 0), *padding, (0, 0)))


def max_pool(
    x: Float[Array, "N H W C"], window: int, stride: int, padding: Padding = ((0, 0), (0, 0))
) -> Float[Array, "N h w C"]:
    """The largest value in each window of `window` x `window`, every `stride` pixels; padding never wins.

    With stride below window the windows overlap: AlexNet's section 3.4 uses 3 and 2. On processors and GPUs the
    gradient is taken in another way than XLA's, equal but for the order of summation and faster (`pool_gradient`), in
    reverse mode only; on TPUs it is XLA's own.
    """
    pool = largest if jax.default_backend() == "tpu" else max_pool_compared
    return pool(x, window, stride, padding)


def avg_pool(
    x: Float[Array, "N H W C"], window: int, stride: int, padding: Padding = ((0, 0), (0, 0))
) -> Float[Array, "N h w C"]:
    """The mean of the cells of each window that lie inside the image, as cuda-convnet divides.

    Summed in float32 at least: in bfloat16 a sum of ones stops at 256.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = _sum(wide, window, stride, padding)
    cells = window * window
    if any(side for pair in padding for side in pair):
        cells = _sum(jnp.ones((1, *x.shape[1:3], 1), wide.dtype), window, stride, padding)
    return (total / cells).astype(x.dtype)


def global_avg_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N C"]:
    """The mean over all positions, summed in float32 at least."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)
