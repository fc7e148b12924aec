"""What a training split says of its colours: the mean canvas, and the axes along which lighting shifts them."""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from alexnet_resnet.data import statistics
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.ops import lighting


@dataclasses.dataclass(frozen=True)
class Helpers:
    """The processes that measure together; by default there is only this one.

    Attributes:
      number: which of them this is.
      count: how many they are.
      gather: every process's value, on all of them.
    """

    number: int = 0
    count: int = 1
    gather: Callable[[Any], list] = lambda value: [value]


def measure(
    data,
    examples: Examples | EncodedExamples,
    canvases: Callable,
    say: Callable[[str], None] = lambda text: None,
    helpers: Helpers = Helpers(),
) -> tuple[np.ndarray, np.ndarray]:
    """The mean canvas and the lighting's axes that a configuration asks for.

    Args:
      data: the configuration's `data` section.
      examples: the training split.
      canvases: from the numbers of some examples to batches of their whole canvases (see `loaders`).
      say: called with a line before and during what takes long.
      helpers: encoded images, which have to be decoded for this, are shared out among them; all get the same result,
        whatever their number.

    Returns:
      The mean, float32 in grey levels: [canvas, canvas, C], one value a channel everywhere for 'per_channel'; [1, 1, C]
      zeros for 'none'. The frame that arrays get on their canvas is zero in the mean as in the images. And float32
      [C, C]: row i is the shift along axis i for a draw of one, zeros without lighting.
    """
    found = None
    if data.lighting != "none" and data.lighting_statistics == "dataset":
        found = colours = _statistics(data, examples, canvases, say, helpers)
    elif data.lighting != "none":
        colours = lighting.STATISTICS[data.lighting_statistics]
    axes = np.zeros((examples.channels, examples.channels))
    if data.lighting != "none":
        axes = lighting.shift_axes(data.lighting, colours.eigenvalues, colours.eigenvectors, data.lighting_strength)
    if data.mean == "none":
        mean = np.zeros((1, 1, examples.channels))
    elif examples.encoded or found:
        mean = (found or _statistics(data, examples, canvases, say, helpers)).mean_image
    else:
        mean = statistics.mean_of_arrays(_chosen(data, examples))
    if data.mean == "per_channel":
        mean = np.broadcast_to(mean.mean((0, 1)), mean.shape)
    if data.mean != "none":
        room = [data.canvas_size - side for side in mean.shape[:2]]
        mean = np.pad(mean, [*((r // 2, r - r // 2) for r in room), (0, 0)])
    return mean.astype(np.float32), np.asarray(axes, np.float32)


def _rows(data, examples) -> np.ndarray:
    """The examples that the statistics are taken over."""
    count = min(data.mean_examples or len(examples), len(examples))
    return np.linspace(0, len(examples) - 1, count).astype(np.int64)


def _chosen(data, examples: Examples) -> np.ndarray:
    rows = _rows(data, examples)
    return examples.images if len(rows) == len(examples) else examples.images[rows]


def _statistics(data, examples, canvases, say, helpers: Helpers) -> statistics.Statistics:
    if not examples.encoded:
        return statistics.of_arrays(_chosen(data, examples))
    if examples.statistics:
        return _prepared(data, examples)
    rows = _rows(data, examples)
    say(f"{examples.name}: taking the mean over {len(rows):,} images")
    sums, told = statistics.Sums(data.canvas_size, examples.channels), 0
    for batch in canvases(rows[helpers.number :: helpers.count]):
        for image in batch["image"][batch["valid"]]:
            sums.add(image)
        if sums.images * helpers.count - told >= 5000:
            told = sums.images * helpers.count
            say(f"{examples.name}: {told:,} of {len(rows):,} images")
    # Sums of whole numbers: the same in any order.
    sums = functools.reduce(operator.add, helpers.gather(sums))
    if not sums.images:
        raise UserError(f"{examples.name}: expected an image that can be read for the mean, found none.")
    return sums.statistics()


def _prepared(data, examples) -> statistics.Statistics:
    """The statistics that were prepared with the images, the mean image at the canvas's size.

    The mean of images that are resized is the mean image resized: both are sums.
    """
    from PIL import Image

    found = statistics.read(examples.statistics)
    if found.images != len(examples):
        raise UserError(
            f"data.data_dir={data.data_dir!r}: {os.path.basename(examples.statistics)} is of {found.images:,} images, "
            f"expected those of {examples.name}, {len(examples):,}."
        )
    side = data.canvas_size
    if len(found.mean_image) == side:
        return found
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(found.mean_image, -1, 0)]
    resized = [np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR), np.float64) for plane in planes]
    return dataclasses.replace(found, mean_image=np.stack(resized, -1))
