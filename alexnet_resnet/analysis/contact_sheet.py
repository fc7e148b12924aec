"""What the network sees: the views of one training batch, each under its label."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import labels, loaders, normalisation, sources
from alexnet_resnet.errors import UserError
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib

# For a look, the mean of so many encoded images will do; a run takes that of data.mean_examples.
MEAN_EXAMPLES = 200
STATISTICS_BATCH = 50

# In pixels of the sheet. Small views are enlarged by a whole number to about `VIEW`.
VIEW, GAP, LABEL, LINE, NARROWEST = 128, 8, 16, 18, 640
COLUMNS, DPI, FONT = 8, 100, 8.0


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
    """What is drawn.

    Attributes:
      images: [N, H, W, C], the views as the network sees them with their mean added back, cut off at 0..255.
      labels: N names.
      readable: [N], False where an image could not be read and nothing is shown.
      title: what was drawn, as one line.
    """

    images: UInt8[np.ndarray, "N H W C"]
    labels: tuple[str, ...]
    readable: Bool[np.ndarray, "N"]
    title: str


def check(path: str) -> None:
    """Raises UserError unless a sheet can be saved at `path`."""
    if not path.lower().endswith(".png"):
        raise UserError(f"out={path!r}: expected a name that ends in .png.")
    if not os.path.isdir(os.path.dirname(path) or ".") or os.path.isdir(path):
        raise UserError(f"out={path!r}: expected a file in a folder that exists.")


def look(config: ConfigDict, step: int, count: int, say: Callable[[str], None] = lambda text: None) -> Sheet:
    """The first views of the batch of one step of a run.

    Args:
      config: all fields of `config.default`.
      step: the step, from 0.
      count: so many views at most; a batch has train.batch_size.
      say: called with a line about what takes long, and about images that cannot be read.

    Raises:
      UserError: the configuration or the dataset cannot work, or the run has no such step.
    """
    config_lib.check(config)
    examples = sources.load(config.data, config.data.train_split, "data.train_split")
    size = config.train.batch_size
    total = config_lib.steps("train.duration", config.train.duration, len(examples) / size)
    if step >= total:
        raise UserError(f"step={step}: expected at most {total - 1}, as train.duration={config.train.duration!r} says.")
    data = config.data.copy_and_resolve_references()
    if examples.encoded:
        data.mean_examples = min(data.mean_examples or MEAN_EXAMPLES, MEAN_EXAMPLES)
    loader = loaders.create(data, examples)
    batch = next(loader.training_batches(size, config.seed, step, step + 1, slice(count)))

    told = []

    def note(line: str) -> None:
        told.append(line)
        say(line)

    canvases = functools.partial(loader.evaluation_batches, STATISTICS_BATCH, whole_canvas=True)
    colours = normalisation.measure(data, examples, lambda rows: canvases(rows=rows), note)
    if new := loader.faults.new():
        say(loader.faults.summary(new))
    few = f", of {min(data.mean_examples, len(examples))} images here" if told else ""
    shown = f"{len(batch['label'])} of the {size} examples of step {step}, epoch {batch['epoch'][0] + 1}"
    names = labels.readable(examples.label_names)
    return Sheet(
        _seen(config, batch, *colours),
        tuple(names[label] for label in batch["label"]),
        batch["valid"],
        f"{examples.name}, {shown}: {describe(data, few)}",
    )


def _seen(config: ConfigDict, batch: dict, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The training step's own images of a batch, with what it subtracted added back, as bytes."""
    network = state_lib.from_config(config)

    @jax.jit
    def images(batch, mean, axes):
        # Only the run's key is computed of the state: the compiler drops the parameters, which nothing here depends on.
        state = state_lib.create(network, optax.identity(), config.seed, mean, axes)
        seen = step_lib.training_images(config.data, state, batch) * config.data.divisor
        nothing = batch | {"image": jnp.zeros_like(batch["image"])}
        return seen - step_lib.evaluation_images(config.data, state.mean, nothing, divided=False)

    fields = {name: batch[name] for name in ("image", "offset", "flip", "epoch", "row")}
    return np.clip(np.rint(images(fields, mean, axes)), 0, 255).astype(np.uint8)


def describe(data, mean_note: str = "") -> str:
    """What is done to the images of a configuration's `data` section before the network sees them, as one line."""
    side, canvas = data.image_size, data.canvas_size
    low, high = data.area_range
    view = {
        "canvas": f"{'random' if data.random_crop else 'central'} {side}x{side} of {canvas}x{canvas}",
        "scale": f"random {side}x{side} of the image at shorter side {' to '.join(map(str, data.scale_range))}",
        "area": f"a random {100 * low:g}% to {100 * high:g}% of the image's area as {side}x{side}",
    }[data.view]
    parts = [f"view {data.view!r}: {view}", "mirrored at random" if data.random_flip else "never mirrored"]
    place = (
        f", the {'crop' if data.mean_position == 'own' else 'canvas'}'s {data.mean_position}"
        if (data.mean == "per_pixel")
        else ""
    )
    parts.append("no mean" if data.mean == "none" else f"mean {data.mean!r}{place}{mean_note}, added back")
    if data.lighting == "none":
        parts.append("no lighting")
    else:
        parts.append(f"lighting {data.lighting!r} of {data.lighting_strength:g}, colours {data.lighting_statistics!r}")
    if data.divisor != 1:
        parts.append(f"divisor {data.divisor:g} taken back")
    return "; ".join(parts)


def draw(sheet: Sheet, path: str) -> None:
    """Draws the views in rows, every pixel of them as one or as a square of whole pixels, and saves the sheet.

    Args:
      sheet: what to draw.
      path: a .png file.

    Raises:
      UserError: the file cannot be written.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    factor = max(1, VIEW // max(sheet.images.shape[1:3]))
    images = sheet.images.repeat(factor, 1).repeat(factor, 2)
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    height, width = images.shape[1:3]
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    across = max(NARROWEST, GAP + columns * (width + GAP))

    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    title = _wrapped(figure, renderer, sheet.title, across - 2 * GAP)
    above = 2 * GAP + LINE * len(title)
    paper = np.full((above + rows * (LABEL + height + GAP), across, 3), 255, np.uint8)
    figure.set_size_inches(across / DPI, len(paper) / DPI)

    def write(text, left, top, **options):
        place = dict(x=left / across, y=1 - top / len(paper), transform=figure.transFigure)
        return figure.text(s=text, va="top", fontsize=FONT, parse_math=False, **place, **options)

    for number, line in enumerate(title):
        write(line, GAP, GAP + number * LINE)
    for number, (image, label, readable) in enumerate(zip(images, sheet.labels, sheet.readable, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (width + GAP), above + row * (LABEL + height + GAP)
        name = label if readable else "unreadable"
        write(_shortened(figure, renderer, name, width), left, top, color="black" if readable else "red")
        top += LABEL
        paper[top : top + height, left : left + width] = image if readable else _crossed(height, width)
    figure.figimage(paper, origin="upper")
    try:
        figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise UserError(f"out={path!r}: expected a file that can be written ({error.strerror}).") from error


def _crossed(height: int, width: int) -> np.ndarray:
    """What stands for an image that cannot be read: its diagonals on grey."""
    down, across = np.mgrid[:height, :width] / np.reshape([height, width], (2, 1, 1))
    near = np.minimum(abs(down - across), abs(down + across - 1)) < 0.02
    return np.where(near[..., None], np.uint8([200, 0, 0]), np.uint8(230))


def _width(figure, renderer, text: str) -> float:
    """Of a line of text, in pixels."""
    drawn = figure.text(0, 0, text, fontsize=FONT, parse_math=False)
    width = drawn.get_window_extent(renderer).width
    drawn.remove()
    return width


def _shortened(figure, renderer, text: str, room: int) -> str:
    """As much of a text as fits, and an ellipsis if that is not all."""
    shown = text
    while len(shown) > 1 and _width(figure, renderer, shown) > room:
        shown = shown.removesuffix("…")[:-1] + "…"
    return shown


def _wrapped(figure, renderer, text: str, room: int) -> list[str]:
    """Lines that fit; a word that does not is shortened."""
    lines = []
    for word in text.split():
        if lines and _width(figure, renderer, f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(_shortened(figure, renderer, word, room))
    return lines
