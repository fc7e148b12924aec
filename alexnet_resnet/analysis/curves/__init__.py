"""Curves of runs, in the style of ResNet's figures: training dashed and thin, validation or test in full and bold."""

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from alexnet_resnet.errors import UserError, check_at_least, near_matches
from alexnet_resnet.training import workdir as workdir_lib

# How measurements are called on the y axis, where their names do not say all.
LABELS = {
    "error": "error (%)",
    "top5_error": "top-5 error (%)",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "images_per_second": "images/s",
    "input_wait_share": "share of time waiting for input",
    "device_memory_gib": "device memory (GiB)",
}
# What a figure of everything has, in its order.
OVERVIEW = (
    *("error", "top5_error", "loss", "learning_rate"),
    *("gradient_norm", "images_per_second", "input_wait_share", "device_memory_gib"),
)
IN_PERCENT = ("error", "top5_error")
LOGARITHMIC = ("learning_rate", "gradient_norm")
# In inches: what the width of a panel has besides a label of its legend, and a line of the figure's legend.
BESIDES, LINE = 1.2, 0.19


def check(workdirs: Sequence[str], metrics: Sequence[str], smooth: int) -> None:
    """Makes sure that there is something to draw.

    Raises:
      UserError: a folder has no measurements, or none of this kind; or not a number of reports to average.
    """
    check_at_least("--smooth", smooth, 1)
    if not workdirs:
        raise UserError("no runs: expected their folders, such as runs/plain56 runs/resnet56.")
    for workdir in workdirs:
        measured = {name.split("/", 1)[1] for row in workdir_lib.read_metrics(workdir) for name in row if "/" in name}
        if not measured:
            raise UserError(f"workdir={workdir!r}: expected a run with measurements, found none yet.")
        for metric in metrics:
            if metric not in measured:
                known = ", ".join(map(repr, sorted(measured)))
                raise UserError(
                    f"--metric={metric!r}: expected one of {known}, which workdir={workdir!r} has, or 'all'."
                    f"{near_matches(metric, measured)}"
                )


def draw(workdirs: Sequence[str], path: str, metrics: str | Sequence[str] = "error", smooth: int = 1) -> None:
    """Draws measurements of each run over its iterations, each in a panel of its own, and saves the figure.

    Runs are named in the panels' legends, or above all panels where a name is too long for that.

    Args:
      workdirs: the runs' folders.
      path: the figure's file; its ending decides the format.
      metrics: what was measured, such as 'error', 'loss' or 'learning_rate', or several; errors are drawn in percent.
        Of several, those that no run has measured are left out.
      smooth: what was measured in training is averaged over so many reports, the last of which it is drawn at.

    Raises:
      UserError: a folder has no measurements.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    runs = {
        name: list(workdir_lib.read_metrics(workdir)) for name, workdir in zip(_names(workdirs), workdirs, strict=True)
    }
    if isinstance(metrics, str):
        metrics = [metrics]
    else:
        measured = {name.split("/")[-1] for rows in runs.values() for row in rows for name in row}
        metrics = [metric for metric in metrics if metric in measured] or ["error"]
    across = min(len(metrics), 4)
    down = -(-len(metrics) // across)
    width, height = (6.4, 4) if across == 1 else (3.6 * across, 3 * down)
    # A legend that is wider than its panel would take the panel's place.
    above = any(_inches(f"{name}: validation (100.00%)") > width / across - BESIDES for name in runs)
    names = [_wrapped(name, width - BESIDES) if above else name for name in runs]
    height += LINE * sum(1 + name.count("\n") for name in names) if above else 0
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    for metric, panel in zip(metrics, axes, strict=False):
        _draw_metric(panel, runs, metric, smooth, named=not above)
    for panel in list(axes)[len(metrics) :]:
        panel.set_axis_off()
    if above:
        _name_above(figure, names)
    figure.savefig(path, dpi=120)


def _inches(text: str) -> float:
    """How wide a text is in a legend."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(size="small")
    return TextPath((0, 0), text, font.get_size_in_points(), prop=font).get_extents().width / 72


def _wrapped(name: str, inches: float) -> str:
    """A name in as many lines as it needs to be no wider than that."""
    return textwrap.fill(name, max(1, int(len(name) * min(1, inches / _inches(name)))))


def _name_above(figure, names: Sequence[str]) -> None:
    """A legend of the runs above all panels."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=f"C{number}", lw=2, label=name) for number, name in enumerate(names)]
    figure.legend(handles=lines, loc="outside upper left", fontsize="small", frameon=False)


def _draw_metric(axes, runs: Mapping[str, Sequence[Mapping]], metric: str, smooth: int, named: bool = True) -> None:
    scale, sign = (100, "%") if metric in IN_PERCENT else (1, "")
    highest, lowest = 0.0, float("inf")
    for number, (name, rows) in enumerate(runs.items()):
        judged = "validation" if any(f"validation/{metric}" in row for row in rows) else "test"
        alone = not any(f"{judged}/{metric}" in row for row in rows)
        for split, style in (("train", dict(ls="--", lw=1)), (judged, dict(ls="-", lw=2))):
            points = [(row["step"], scale * row[f"{split}/{metric}"]) for row in rows if f"{split}/{metric}" in row]
            if points:
                steps, values = zip(*points, strict=True)
                if split == "train":
                    values = _running_mean(values, smooth)
                in_percent = f" ({values[-1]:.2f}{sign})" if sign else f" ({values[-1]:.4g})"
                final = in_percent if split == judged or alone else ""
                marker = "o" if len(points) == 1 else None
                # Where only training is measured there is nothing to tell it from.
                style = style | dict(ls="-") if alone and metric not in IN_PERCENT else style
                label = f"{name}: {split}{final}" if named else f"{split}{final}"
                axes.plot(steps, values, color=f"C{number}", label=label, marker=marker, **style)
                finite = [value for value in values if np.isfinite(value)]
                highest, lowest = max(highest, *finite, 0.0), min(lowest, *finite, float("inf"))
    axes.set(xlabel="iterations", ylabel=LABELS.get(metric, metric.replace("_", " ")))
    if metric in LOGARITHMIC and lowest > 0 and highest:
        axes.set_yscale("log")
    elif lowest >= 0:
        most = 1.05 * highest or 1
        axes.set_ylim(0, min(100.0, most) if sign else most)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")


def _names(workdirs: Sequence[str]) -> list[str]:
    """What the runs are called: the names of their folders, with the folders around these where two have one name."""
    places = [os.path.abspath(workdir) for workdir in workdirs]
    short = [os.path.basename(place) for place in places]
    if len(set(short)) == len(short):
        return short
    common = os.path.commonpath([os.path.dirname(place) for place in places])
    return [os.path.relpath(place, common) for place in places]


def _running_mean(values: Sequence[float], count: int) -> Sequence[float]:
    """Each value averaged with the `count` - 1 before it, or with as many as there are."""
    if count == 1:
        return values
    return tuple(float(np.mean(values[max(0, end - count) : end])) for end in range(1, len(values) + 1))
