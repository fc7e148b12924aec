"""A strided convolution of images as one without stride over blocks of pixels, for accelerators.

Their matrix units want many channels, and images have three. A block of stride x stride pixels becomes one pixel with
stride^2 times the channels, and the kernel likewise, with zeros where it does not fill its last block: AlexNet's first
kernel, 11 x 11 on 3 channels, is 3 x 3 on 48, ResNet's 7 x 7 on 3 is 4 x 4 on 12. The products and sums are the same
but for added zeros and the order of summation.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alexnet_resnet.ops.conv_gradient import output_sides

# Images have up to so many channels; activations have more, and are convolved as they are.
CHANNELS = 4


def applies(kernel: Sequence[int], stride: int, padding: Sequence[tuple[int, int]]) -> bool:
    """Whether a convolution is taken so: few channels, a stride, and no negative padding, which crops."""
    return stride > 1 and kernel[2] <= CHANNELS and all(min(pair) >= 0 for pair in padding)


def convolve_blocks(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w C D"], stride: int, padding: Sequence[tuple[int, int]]
) -> Float[Array, "N i j D"]:
    """`lax.conv_general_dilated` in NHWC and HWIO, over blocks of stride x stride pixels.

    Args:
      x: the images.
      kernel: of x's type.
      stride: pixels between outputs, in both directions, and the side of a block.
      padding: rows of zeros (above, below) and columns (left, right), none of it negative.
    """
    sides, windows = x.shape[1:3], kernel.shape[:2]
    outputs = output_sides(x.shape, kernel.shape, stride, padding)
    spans = [-(-window // stride) for window in windows]
    # What the outputs see, in blocks; pixels that none sees are cropped by negative padding.
    blocks = [max(0, output - 1 + span) for output, span in zip(outputs, spans, strict=True)]
    config = [
        (low, block * stride - side - low, 0) for side, block, (low, _) in zip(sides, blocks, padding, strict=True)
    ]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    n, channels, features = x.shape[0], *kernel.shape[2:]
    x = x.reshape(n, blocks[0], stride, blocks[1], stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, *blocks, stride * stride * channels)
    rest = [(0, span * stride - window) for span, window in zip(spans, windows, strict=True)]
    kernel = jnp.pad(kernel, (*rest, (0, 0), (0, 0))).reshape(spans[0], stride, spans[1], stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*spans, stride * stride * channels, features)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
