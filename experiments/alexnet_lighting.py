"""PCA lighting is three different augmentations under one name: 12, 5.5 and 1483 grey levels on the first axis.

AlexNet's section 4.1 adds to each image strength * n_i * (something of the i-th eigenvalue) along the i-th principal
colour. The author's code takes the square root, re-implementations take the eigenvalue of pixels in [0, 1], and the
paper's text, with pixels in 0..255 as it has them, takes the eigenvalue. This draws one picture under the same eight
draws of all three (lighting_draws.png), and the principal colours of the two published ImageNet statistics
(lighting_axes.png), and measures the shifts over 100,000 draws:

    python -m experiments.alexnet_lighting --out=figures
    python -m experiments.alexnet_lighting --out=figures --image=photo.jpg --strength=0.1

The picture is scikit-learn's china.jpg unless --image names another.

Result (CPU, a few seconds; standard deviations in grey levels; "torch" are the numbers of fb.resnet.torch, "author"
those of the 2012 source, whose second and third axes are completed, see alexnet_resnet/ops/lighting.py):

    convention  statistics  axis 1: formula, measured     axis 2             axis 3             image after
    as_run      author                  12.18    12.19      3.71     3.69      1.97     1.96         x 0.909
    unit_range  torch                    5.55     5.55      0.48     0.48      0.11     0.11         x 1.000
    as_written  author                1483.04  1484.62    137.57   137.00     38.89    38.72         x 1.000

In the figure, as run and the re-implementations differ in more than size: the square root leaves the second and third
colours a third and a sixth of the first, the eigenvalue only a twelfth and a fiftieth, which is all but brightness.
As written, six of eight copies are black or white.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.analysis import colours
from alexnet_resnet.data import photos
from alexnet_resnet.errors import UserError, check_at_least
from alexnet_resnet.ops import lighting

IMAGE = flags.DEFINE_string("image", None, "A picture; scikit-learn's china.jpg if not given.")
OUT = flags.DEFINE_string("out", None, "The folder for the two figures; made if it is not there.")
STRENGTH = flags.DEFINE_float("strength", 0.1, "The standard deviation of the draws; the paper's is 0.1.")
SEED = flags.DEFINE_integer("seed", 0, "Decides the draws.")

SIDE, DRAWS, MEASURED = 224, 8, 100_000
AXES = {"author, 2012 (2 and 3 completed)": lighting.AUTHOR, "fb.resnet.torch": lighting.TORCH}


def picture() -> np.ndarray:
    """The central square of the picture, as large as AlexNet's crops."""
    if IMAGE.value is None:
        from sklearn.datasets import load_sample_image

        image = load_sample_image("china.jpg")
    else:
        try:
            image = photos.read(IMAGE.value)
        except photos.BrokenImage as error:
            raise UserError(f"image={error}") from error
    return photos.centre_square(image, SIDE)


def main() -> None:
    out = cli.require(OUT, "figures")
    check_at_least("strength", STRENGTH.value, 0)
    image = picture()
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out!r}: expected a folder that can be made ({error.strerror}).") from error

    key = jax.random.key(SEED.value)
    # The picture as the first eight epochs would see it, were it the first of the data set.
    draws = lighting.normal_draws(key, jnp.arange(DRAWS), jnp.zeros(DRAWS, jnp.int32))
    files = [os.path.join(out, name) for name in ("lighting_draws.png", "lighting_axes.png")]
    try:
        colours.draw_lighting(image, draws, files[0], STRENGTH.value)
        colours.draw_axes(AXES, files[1], STRENGTH.value)
    except OSError as error:
        raise UserError(f"out={out!r}: expected a folder that can be written to ({error.strerror}).") from error

    many = lighting.normal_draws(key, jnp.zeros(MEASURED, jnp.int32), jnp.arange(MEASURED))
    names = {id(value): name for name, value in lighting.STATISTICS.items()}
    print("convention  statistics  axis 1: formula, measured     axis 2             axis 3             image after")
    for convention, statistics in colours.STATISTICS.items():
        axes = lighting.shift_axes(convention, *statistics, STRENGTH.value)
        shifts = np.asarray(lighting.colour_shifts(many, axes), np.float64)
        deviations = zip(np.linalg.norm(axes, axis=1), (shifts @ statistics.eigenvectors.T).std(axis=0), strict=True)
        cells = "".join(f"{formula:9.2f}{measured:9.2f} " for formula, measured in deviations)
        scale = lighting.image_scale(convention, STRENGTH.value)
        print(f"{convention:<12}{names[id(statistics)]:<10}          {cells}        x {scale:.3f}")
    print(f"figures: {' '.join(files)}")


if __name__ == "__main__":
    cli.run(main)
