"""What PCA lighting does to a picture, and the colours that it moves pictures along."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from alexnet_resnet.ops import lighting

# The statistics that each convention is used with.
STATISTICS = {"as_run": lighting.AUTHOR, "unit_range": lighting.TORCH, "as_written": lighting.AUTHOR}
TITLES = {
    "as_run": "as run: sqrt(eigenvalue), then / (1 + strength)",
    "unit_range": "re-implementations: eigenvalue of pixels in [0, 1]",
    "as_written": "as written: eigenvalue of pixels in 0..255",
}
# Red, green, blue: the mean of ImageNet's training images that the Caffe models subtract.
MEAN = (123.68, 116.779, 103.939)
GREY, REACH, STEPS = 127.5, 3.0, 301


def lit(
    picture: UInt8[np.ndarray, "H W C"],
    draws: Float[Array, "N C"],
    convention: str,
    colours: lighting.PrincipalColours,
    strength: float = 0.1,
    mean: tuple[float, ...] = MEAN,
) -> UInt8[np.ndarray, "N H W C"]:
    """The picture under each draw as the network sees it, the mean added back; what leaves 0..255 is cut off.

    Args:
      picture: the picture.
      draws: one for each copy, from `lighting.normal_draws`.
      convention: one of `lighting.CONVENTIONS`.
      colours: the statistics.
      strength: the paper's 0.1.
      mean: subtracted before, one number a channel.
    """
    shifts = lighting.colour_shifts(draws, lighting.shift_axes(convention, *colours, strength))
    images = jnp.broadcast_to(picture - jnp.float32(mean), (len(draws), *picture.shape))
    images = lighting.light(images, shifts, lighting.image_scale(convention, strength)) + jnp.float32(mean)
    return np.clip(np.rint(np.asarray(images)), 0, lighting.LEVELS).astype(np.uint8)


def draw_lighting(
    picture: UInt8[np.ndarray, "H W C"],
    draws: Float[Array, "N C"],
    path: str,
    strength: float = 0.1,
    statistics: Mapping[str, lighting.PrincipalColours] = STATISTICS,
    mean: tuple[float, ...] = MEAN,
) -> None:
    """Draws the picture and, to its right, the same picture under each draw; a row for each convention.

    Args:
      picture: the picture.
      draws: one a column, the same for all rows.
      path: the figure's file; its ending decides the format.
      strength: the paper's 0.1.
      statistics: of each convention that is to be drawn, in the order of the rows.
      mean: subtracted before the lighting and added after it.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * (1 + len(draws)), 2.0 * len(statistics)), layout="constrained")
    rows = figure.subfigures(len(statistics), 1, squeeze=False)[:, 0]
    for row, (convention, colours) in zip(rows, statistics.items(), strict=True):
        first = np.linalg.norm(lighting.shift_axes(convention, *colours, strength)[0])
        row.suptitle(f"{TITLES[convention]}: {first:.4g} grey levels on the first axis", fontsize=9)
        panels = row.subplots(1, 1 + len(draws), squeeze=False)[0]
        pictures = [picture, *lit(picture, draws, convention, colours, strength, mean)]
        names = ["the picture", *(f"draw {number}" for number in range(1, 1 + len(draws)))]
        for panel, shown, name in zip(panels, pictures, names, strict=True):
            panel.imshow(shown)
            panel.set_title(name, fontsize=7)
            panel.axis("off")
    figure.savefig(path, dpi=130)


def strip(variance: float, axis: Float[np.ndarray, "C"]) -> UInt8[np.ndarray, "1 S C"]:
    """Mean grey moved along an axis, from `REACH` standard deviations below to as many above, cut off at 0..255."""
    steps = np.linspace(-REACH, REACH, STEPS)[:, None] * np.sqrt(variance) * axis
    return np.clip(np.rint(GREY + steps), 0, lighting.LEVELS).astype(np.uint8)[None]


def draw_axes(statistics: Mapping[str, lighting.PrincipalColours], path: str, strength: float = 0.1) -> None:
    """Draws each principal axis as a strip of colour from -3 to +3 standard deviations around mean grey.

    Dashed lines mark what lighting as run moves by: `strength` standard deviations to either side.

    Args:
      statistics: of RGB images, by name; a column for each.
      path: the figure's file; its ending decides the format.
      strength: the paper's 0.1.
    """
    from matplotlib.figure import Figure

    channels = len(next(iter(statistics.values())).eigenvalues)
    figure = Figure(figsize=(5.6 * len(statistics), 1.3 * channels + 0.5), layout="constrained")
    panels = figure.subplots(channels, len(statistics), squeeze=False)
    for column, (name, colours) in zip(panels.T, statistics.items(), strict=True):
        for number, (panel, variance, axis) in enumerate(zip(column, *colours, strict=True), 1):
            panel.imshow(strip(variance, axis), extent=(-REACH, REACH, 0, 1), aspect="auto")
            for place in (-strength, strength):
                panel.axvline(place, color="black", lw=0.8, ls="--")
            direction = ", ".join(f"{component:+.3f}" for component in axis)
            panel.set_title(
                f"{name}, axis {number} ({direction})\n"
                f"standard deviation {np.sqrt(variance):.2f} grey levels, eigenvalue {variance:.1f}",
                fontsize=8,
            )
            panel.set_yticks([])
        column[-1].set_xlabel("standard deviations from mean grey", fontsize=8)
    figure.savefig(path, dpi=130)
