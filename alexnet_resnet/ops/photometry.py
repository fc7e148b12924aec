"""What happens to pixel values on the device: the geometry is the data pipeline's, as uint8."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8


def subtract_mean(
    images: UInt8[Array, "N H W C"],
    mean: Float[Array, "h w C"],
    offsets: Int[Array, "N 2"] | None = None,
    flips: Bool[Array, "N"] | None = None,
) -> Float[Array, "N H W C"]:
    """Subtracts the mean image, each crop by the part of it that the crop was taken from.

    The result is that of the papers' order, subtract first and crop after: a crop at offset (y, x), mirrored or not,
    loses the same pixels of the mean, mirrored or not. Where crops come from a zero-padded image, `mean` is padded
    with zeros likewise, and the padding stays zero.

    Args:
      images: the crops as bytes.
      mean: the mean over the training set of the canvas that crops are taken from, in grey levels (0..255);
        [1, 1, C] subtracts one value a channel.
      offsets: the top left corner of each crop on the canvas; None where the canvas is the crop.
      flips: which crops were mirrored left to right after cropping; None for none.
    """
    images = images.astype(jnp.float32)
    if mean.shape[:2] == (1, 1):
        return images - mean
    if offsets is None:
        return images - (mean if flips is None else jnp.where(flips[:, None, None, None], mean[:, ::-1], mean))
    size = (*images.shape[1:3], mean.shape[-1])

    def own_mean(offset, flip):
        part = lax.dynamic_slice(mean, (*offset, jnp.zeros_like(offset[0])), size)
        return jnp.where(flip, part[:, ::-1], part)

    if flips is None:
        flips = jnp.zeros(images.shape[0], bool)
    return images - jax.vmap(own_mean)(offsets, flips)
