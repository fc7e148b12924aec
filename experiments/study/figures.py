"""What the figures of several studies share: learning curves in the papers' style, and bars beside the paper's."""

import os
from collections.abc import Sequence

import numpy as np

from experiments.study.training import Trained


def new(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure and its panels [rows, columns]."""
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure, folder: str, name: str) -> str:
    """Saves a figure in the report's folder; gives its name."""
    figure.savefig(os.path.join(folder, name), dpi=130)
    return name


def slim(folder: str, name: str, width: int = 0) -> str:
    """Makes a saved PNG of photographs several times smaller, by a palette of its own; gives its name.

    Args:
      folder: of the report.
      name: the figure's.
      width: pixels that it is brought to where it is wider; 0 leaves its size.
    """
    from PIL import Image

    path = os.path.join(folder, name)
    with Image.open(path) as image:
        reduced = image.convert("RGB")
    if 0 < width < reduced.width:
        height = round(reduced.height * width / reduced.width)
        reduced = reduced.resize((width, height), Image.Resampling.LANCZOS)
    reduced.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    return name


def series(one: Trained, metric: str, smooth: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of a measurement such as 'train/error', averaged over the last `smooth` reports."""
    found = [(row["step"], row[metric]) for row in one.rows() if metric in row]
    steps, values = np.array([step for step, _ in found]), np.array([value for _, value in found], np.float64)
    if smooth > 1 and len(values):
        sums = np.concatenate([[0.0], np.cumsum(values)])
        first = np.maximum(np.arange(1, len(values) + 1) - smooth, 0)
        values = (sums[1:] - sums[first]) / (np.arange(1, len(values) + 1) - first)
    return steps, values


def draw_errors(axes, trained: Sequence[Trained], colours: Sequence[str] | None = None, smooth: int = 4) -> None:
    """Training error dashed and thin, test (or validation) error in full and bold, in percent over the iterations."""
    for number, one in enumerate(trained):
        colour = colours[number] if colours else f"C{number}"
        split = "test" if "test/error" in one.final and not one.config.data.validation_split else "validation"
        steps, values = series(one, "train/error", smooth)
        axes.plot(steps, 100 * values, "--", color=colour, lw=1)
        steps, values = series(one, f"{split}/error")
        label = one.run.label + (f" ({100 * values[-1]:.2f}%)" if len(values) else "")
        axes.plot(steps, 100 * values, "-", color=colour, lw=2, label=label, marker="o" if len(values) < 3 else None)
    axes.set(xlabel="iterations", ylabel="error (%)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")


def draw_bars(axes, labels: Sequence[str], paper: Sequence[float | None], ours: Sequence[float | None]) -> None:
    """Beside each other the paper's value and ours; what was not run has no bar."""
    places = np.arange(len(labels))
    for shift, values, colour, name in ((-0.2, paper, "0.75", "paper"), (0.2, ours, "C0", "ours")):
        heights = [np.nan if value is None else value for value in values]
        bars = axes.bar(places + shift, heights, 0.38, color=colour, label=name)
        axes.bar_label(bars, ["" if value is None else f"{value:.1f}" for value in values], fontsize="x-small")
    axes.set_xticks(places, labels, rotation=30, ha="right", fontsize="small")
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    # Above the axes, where no bar is.
    axes.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
