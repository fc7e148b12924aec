"""AlexNet's figure 4, left: pictures, each above the five labels that a network finds most probable."""

import math
import os
from collections.abc import Sequence

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.prediction import Prediction

COLUMNS, MOST = 4, 16


def check(path: str, field: str = "figure") -> None:
    """Raises UserError unless a figure can be saved at `path`; `field` is what it calls the path."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if os.path.splitext(path)[1].lstrip(".").lower() not in known:
        raise UserError(f"{field}={path!r}: expected a name that ends in one of {', '.join(known)}.")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UserError(f"{field}={path!r}: expected a file in a folder that exists.")


def draw(predictions: Sequence[Prediction], path: str, classes: Sequence[int] = (), title: str = "") -> None:
    """Draws a panel of pictures with a bar for each label and saves it.

    Args:
      predictions: what to draw; the first `MOST` are shown.
      path: the figure's file; its ending decides the format.
      classes: the true class of each, whose bar is red as in the paper; empty where they are not known.
      title: such as the network.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    shown = predictions[:MOST]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.6 * columns, 4.2 * rows), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    axes = figure.subplots(2 * rows, columns, height_ratios=[3, 2] * rows, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, prediction in enumerate(shown):
        picture, bars = axes[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        grey = prediction.picture.shape[-1] == 1
        picture.imshow(prediction.picture[..., 0] if grey else prediction.picture, cmap="gray", vmin=0, vmax=255)
        picture.set_title(os.path.basename(prediction.file)[:32], fontsize=8, parse_math=False)
        probabilities = [probability for _, _, probability in prediction.top]
        places = range(len(probabilities))
        true = classes[number] if len(classes) else None
        colours = ["C3" if index == true else "C0" for index, _, _ in prediction.top]
        bars.barh(places, probabilities, color=colours, alpha=0.5)
        for place, (_, name, probability) in enumerate(prediction.top):
            bars.text(0.02, place, f"{name[:28]}  {100 * probability:.1f}%", va="center", fontsize=7, parse_math=False)
        bars.set(xlim=(0, 1), ylim=(len(probabilities) - 0.4, -0.6))
    figure.savefig(path, dpi=130)
