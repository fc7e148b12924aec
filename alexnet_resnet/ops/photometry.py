"""What happens to pixel values on the device: the geometry is the data pipeline's, as uint8."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from alexnet_resnet.errors import check_choice

POSITIONS = ("own", "centre")


def subtract_mean(
    images: UInt8[Array, "N H W C"],
    mean: Float[Array, "h w C"],
    offsets: Int[Array, "N 2"] | None = None,
    flips: Bool[Array, "N"] | None = None,
    position: str = "own",
) -> Float[Array, "N H W C"]:
    """Subtracts the mean image and mirrors the images that are to be mirrored.

    With position 'own' the result is that of the papers' order, subtract first and crop and mirror after: a crop at
    offset (y, x) loses the pixels of the mean at (y, x), and both are mirrored together. Where crops come from a
    zero-padded image, `mean` is padded with zeros likewise, and the padding stays zero. With 'centre' every crop,
    mirrored already, loses the mean's centre: AlexNet as its author ran it, and the released residual networks.

    Args:
      images: the crops as bytes, not mirrored.
      mean: the mean over the training set of the canvas that crops are taken from, in grey levels (0..255);
        [1, 1, C] subtracts one value a channel.
      offsets: the top left corner of each crop on the canvas; None where the canvas is the crop.
      flips: which crops are mirrored left to right; None for none.
      position: one of `POSITIONS`.

    Raises:
      UserError: another position.
    """
    check_choice("data.mean_position", position, POSITIONS)
    size = (*images.shape[1:3], mean.shape[-1])
    constant = mean.shape[:2] == (1, 1)
    if position == "centre" and not constant:
        room = [(whole - part) // 2 for whole, part in zip(mean.shape, size, strict=True)]
        return mirror(images, flips).astype(jnp.float32) - lax.dynamic_slice(mean, room, size)
    if constant or offsets is None:
        return mirror(images.astype(jnp.float32) - mean, flips)
    parts = jax.vmap(lambda offset: lax.dynamic_slice(mean, (*offset, jnp.zeros_like(offset[0])), size))(offsets)
    return mirror(images.astype(jnp.float32) - parts, flips)


def mirror(images: Array, flips: Bool[Array, "N"] | None) -> Array:
    """The images [N, H, W, C], mirrored left to right where `flips` says so."""
    return images if flips is None else jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
