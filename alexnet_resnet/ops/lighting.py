"""PCA lighting, AlexNet's second form of augmentation: every image moves along the principal colours of the data.

One colour shift is drawn for an image each time it is used, and is added to all of its pixels:

    shift = sum_i  n_i * strength * s_i * p_i        n_i ~ N(0, 1)

where p_i are the unit eigenvectors of the covariance of the training pixels' RGB values and lambda_i its eigenvalues.
The world has three values of s_i, all of them called AlexNet's. In grey levels (0..255), with strength 0.1, the shift
along the first axis has, for the published ImageNet statistics named here, a standard deviation of

    convention    s_i                                                              on the first axis   image after
    as_run        sqrt(lambda_i), lambda in grey levels squared                    12.18 (`AUTHOR`)    / (1 + strength)
    unit_range    255 * lambda_i, lambda in units of [0, 1], = lambda_i / 255      5.55 (`TORCH`)      as it is
    as_written    lambda_i, lambda in grey levels squared                          1483 (`AUTHOR`)     as it is

- as_run is the code behind the paper's numbers: standard deviations, not variances, and the mean-subtracted image with
  the noise on it is divided by 1.1 for as long as the noise is on, which keeps the scale near that of the test images.
- unit_range is what re-implementations do that hold pixels in [0, 1] and take the paper by its word there.
- as_written is the paper by its word for pixels in 0..255, as the paper has them. It leaves most pictures black or
  white, and is here to be looked at.

Eigenvalues are in grey levels squared in all functions of this module, whatever the convention: it says the rest.

Source: Krizhevsky et al. 2012, section 4.1, and the author's 2012 source.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from alexnet_resnet.errors import UserError, check_at_least, check_choice

CONVENTIONS = ("as_run", "unit_range", "as_written")
LEVELS = 255


class PrincipalColours(NamedTuple):
    """The principal axes of the RGB values of a set's pixels."""

    # The variances along the axes in grey levels squared, the largest first.
    eigenvalues: Float[np.ndarray, "C"]
    # The axes, one a row, each of length 1.
    eigenvectors: Float[np.ndarray, "C C"]


def principal_axes(covariance: Float[np.ndarray, "C C"]) -> PrincipalColours:
    """The eigenvalues and eigenvectors of a covariance, in float64.

    An eigenvector's sign is free; here the component of the largest size is positive. An eigenvalue that rounding
    pushed below zero is zero.

    Args:
      covariance: the covariance of the pixels' channels in grey levels squared.

    >>> principal_axes(np.array([[5.0, 4.0], [4.0, 5.0]])).eigenvalues
    array([9., 1.])
    """
    values, columns = np.linalg.eigh(np.asarray(covariance, np.float64))
    rows = columns.T[::-1]
    largest = np.take_along_axis(rows, np.argmax(np.abs(rows), axis=1)[:, None], axis=1)
    return PrincipalColours(np.maximum(values[::-1], 0.0), rows * np.sign(largest))


def complete_axes(first: Float[np.ndarray, "C"], like: Float[np.ndarray, "C C"]) -> Float[np.ndarray, "C C"]:
    """The orthonormal axes nearest to those of `like` that begin with `first`.

    Nearest by the sum of squared differences of the other axes (orthogonal Procrustes): they are projected on the
    plane that `first` leaves, and the polar factor of that projection is the answer.

    Args:
      first: the direction of the first axis, of any length.
      like: axes, one a row; the first of them is not used.
    """
    first = first / np.linalg.norm(first)
    rest = like[1:] - np.outer(like[1:] @ first, first)
    left, _, right = np.linalg.svd(rest, full_matrices=False)
    return np.vstack([first, left @ right])


# Source: datasets/imagenet.lua of Facebook's fb.resnet.torch (2016), which says that they were computed from a random
# subset of ImageNet's training images. There the eigenvalues are of pixels in [0, 1] and the axes are columns. Most
# re-implementations have these numbers.
TORCH_UNIT_EIGENVALUES = (0.2175, 0.0188, 0.0045)
TORCH_AXES = (
    (-0.5675, -0.5808, -0.5836),
    (0.7192, -0.0045, -0.6948),
    (0.4009, -0.8140, 0.4203),
)
TORCH = PrincipalColours(LEVELS**2 * np.array(TORCH_UNIT_EIGENVALUES), np.array(TORCH_AXES))

# Source: the author's 2012 source, whose color_pca holds standard deviations in grey levels.
IMAGENET_STANDARD_DEVIATIONS = (121.78, 37.09, 19.72)
IMAGENET_FIRST_AXIS = (0.5635, 0.5762, 0.5920)
# The standard deviations and the first axis are the author's. For his other two axes this project has no source, and
# those here are NOT his: they are TORCH's, turned as little as the first axis demands (less than 0.5 degrees each).
AUTHOR = PrincipalColours(
    np.square(IMAGENET_STANDARD_DEVIATIONS), complete_axes(np.array(IMAGENET_FIRST_AXIS), np.array(TORCH_AXES))
)

# What a config can name; each belongs with its convention, though any pair can be had.
STATISTICS = {"author": AUTHOR, "torch": TORCH}


def shift_axes(
    convention: str, eigenvalues: Float[np.ndarray, "C"], eigenvectors: Float[np.ndarray, "C C"], strength: float
) -> Float[np.ndarray, "C C"]:
    """Row i is the colour shift in grey levels for n_i = 1, in float64; rows are strength * s_i * p_i.

    Args:
      convention: one of `CONVENTIONS`; see the module's text for the s_i of each.
      eigenvalues: the variances along the axes in grey levels squared.
      eigenvectors: the axes, one a row.
      strength: the paper's standard deviation of alpha_i, 0.1; 0 for no lighting.

    Raises:
      UserError: an unknown convention, a negative strength or eigenvalue, or as many axes as no image has.

    >>> np.linalg.norm(shift_axes("as_run", *AUTHOR, strength=0.1), axis=1).round(2)
    array([12.18,  3.71,  1.97])
    >>> np.linalg.norm(shift_axes("unit_range", *TORCH, strength=0.1), axis=1).round(2)
    array([5.55, 0.48, 0.11])
    """
    _check(convention, strength)
    values, axes = np.asarray(eigenvalues, np.float64), np.asarray(eigenvectors, np.float64)
    if not np.all((values >= 0) & (values < np.inf)):
        raise UserError(f"eigenvalues={values.tolist()}: expected variances of at least 0, in grey levels squared.")
    if values.ndim != 1 or axes.shape != (len(values), len(values)):
        raise UserError(f"eigenvectors of shape {axes.shape}: expected a row for each of {values.size} eigenvalues.")
    size = {"as_run": np.sqrt(values), "unit_range": values / LEVELS, "as_written": values}[convention]
    return strength * size[:, None] * axes


def image_scale(convention: str, strength: float) -> float:
    """What the mean-subtracted image is multiplied with once the shift is on it: 1 / (1 + strength) as run, else 1.

    Raises:
      UserError: an unknown convention or a negative strength.
    """
    _check(convention, strength)
    return 1 / (1 + strength) if convention == "as_run" else 1.0


def normal_draws(
    key: Key[Array, ""], epochs: Int[Array, "N"], examples: Int[Array, "N"], channels: int = 3
) -> Float[Array, "N C"]:
    """Standard normal draws, one for each axis and each use of an image.

    They are a function of (key, epoch, example) alone: the batch around an example, its order and its spread over
    devices do not matter.

    Args:
      key: a key for the lighting of this run and for nothing else.
      epochs: which pass over the data each image is drawn in.
      examples: the place of each image in the data set.
      channels: how many axes there are.
    """

    def draw(epoch, example):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, epoch), example), (channels,), jnp.float32)

    return jax.vmap(draw)(epochs, examples)


def colour_shifts(draws: Float[Array, "N C"], axes: Float[Array | np.ndarray, "C C"]) -> Float[Array, "N C"]:
    """The colour shift of each image in grey levels.

    Args:
      draws: from `normal_draws`.
      axes: from `shift_axes`.
    """
    # No matrix product: accelerators would round its factors to 8 bits of mantissa.
    return jnp.sum(draws[:, :, None] * jnp.asarray(axes, draws.dtype), axis=1)


def light(images: Float[Array, "N H W C"], shifts: Float[Array, "N C"], scale: float = 1.0) -> Float[Array, "N H W C"]:
    """Adds to all pixels of each image that image's colour shift, then multiplies with `scale`.

    Args:
      images: images in grey levels, the mean subtracted.
      shifts: one colour an image, in grey levels, from `colour_shifts`.
      scale: from `image_scale`.

    Returns:
      The images in their own type.

    Raises:
      UserError: the shifts have not the images' channels: three colours on a grey image would make it a colour one.
    """
    if shifts.shape != (images.shape[0], images.shape[-1]):
        raise UserError(
            f"data.lighting: colour shifts of shape {shifts.shape} for images of shape {images.shape}: expected "
            "statistics with as many channels as the images have."
        )
    return ((images + shifts[:, None, None, :]) * scale).astype(images.dtype)


def _check(convention: str, strength: float) -> None:
    check_choice("data.lighting", convention, CONVENTIONS)
    check_at_least("data.lighting_strength", strength, 0)
