"""The audits of several strategies in one figure: what each device receives in a step, and what it holds."""

import os
from collections.abc import Sequence

from alexnet_resnet.analysis import audit, predictions
from alexnet_resnet.analysis.audit import GRADIENTS, MEASUREMENTS, Audit
from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel.strategies import STRATEGIES

MB = 1e6


def check(path: str) -> None:
    """Raises UserError unless a figure can be saved at `path`."""
    predictions.check(path)
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else os.path.dirname(path) or ".", os.W_OK):
        raise UserError(f"figure={path!r}: expected a file that may be written.")


def draw(audits: Sequence[Audit], path: str) -> None:
    """Draws a bar for each part of the network, direction and strategy, with a line across it at the least.

    A stage of blocks is one part. Single numbers, the loss and the norms, are left out.

    Args:
      audits: of one network on the same number of devices.
      path: the figure's file; its ending decides the format.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    parts = _parts(audits)
    figure = Figure(figsize=(14, max(4, 1.6 + 0.14 * len(audits) * len(parts))), layout="constrained")
    *ways, memory = figure.subplots(1, 3, width_ratios=[1, 1, 1.1])
    for axes, way in zip(ways, audit.DIRECTIONS, strict=True):
        _draw_received(axes, audits, parts, way)
    sizes = [bar.get_width() for axes in ways for bar in axes.patches]
    for axes in ways:
        # Room on the right for the last bar's label.
        axes.set_xlim(min(sizes, default=1) / 2, max(sizes, default=1) * 8)
    _draw_held(memory, audits)
    labels = [Patch(color=_colour(one), label=f"{one.strategy.name} {audit.mesh(one)}") for one in audits]
    labels.append(Line2D([], [], color="black", lw=2, label="the least"))
    figure.legend(handles=labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(audit.headline(audits[0]))
    figure.savefig(path, dpi=120)


def _part(layer: str) -> str:
    """What a layer is drawn as: 'stage1' for 'stage1/0/conv1'."""
    return layer.split("/")[0]


def _parts(audits: Sequence[Audit]) -> dict[str, list[str]]:
    """The layers of each part of the network that exchanges anything under any strategy, in the network's order."""
    used = {name for found in audits for name in found.exchanging()} - {MEASUREMENTS}
    parts = {}
    for name in audits[0].layers:
        if name in used:
            parts.setdefault(_part(name), []).append(name)
    return parts | {"total": [name for name in audits[0].layers if name != MEASUREMENTS]}


def _colour(found: Audit) -> str:
    """That of its strategy in every figure."""
    return f"C{STRATEGIES.index(found.strategy.name)}"


def _draw_received(axes, audits: Sequence[Audit], parts: dict[str, list[str]], way: str) -> None:
    height = 0.8 / len(audits)
    for row in range(0, len(parts), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    for number, found in enumerate(audits):
        for row, names in enumerate(parts.values()):
            size = sum(found.received(name, way) for name in names) / MB
            least = sum(found.least.get((name, way), 0) for name in names) / MB
            place = row + (number - (len(audits) - 1) / 2) * height
            if size:
                axes.barh(place, size, height * 0.9, color=_colour(found))
                axes.annotate(_number(size), (size, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
            if least:
                axes.plot([least] * 2, [place - height / 2, place + height / 2], color="black", lw=2)
    gradients = ", and gradients' sums" if way == "backward" and GRADIENTS in parts else ""
    axes.set(title=f"received {way}{gradients}", xlabel="MB a step and device, logarithmic", xscale="log")
    axes.set(yticks=range(len(parts)), yticklabels=list(parts), ylim=(len(parts) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_held(axes, audits: Sequence[Audit]) -> None:
    begin = [0.0] * len(audits)
    kinds = {
        "parameters": [found.parameter_bytes / MB for found in audits],
        "optimizer state": [found.optimizer_bytes / MB for found in audits],
        "activations (XLA's temporaries)": [found.temporary_bytes / MB for found in audits],
    }
    for (label, sizes), shade in zip(kinds.items(), ("0.25", "0.5", "0.78"), strict=True):
        bars = axes.barh(range(len(audits)), sizes, 0.6, left=begin, color=shade, label=label)
        begin = [left + size for left, size in zip(begin, sizes, strict=True)]
        # A label that is wider than its bar would run into the next.
        most = max(found.parameter_bytes + found.optimizer_bytes + found.temporary_bytes for found in audits) / MB
        texts = [text if size > most * len(text) / 60 else "" for size in sizes for text in [_number(size)]]
        axes.bar_label(bars, texts, label_type="center", color="white" if float(shade) < 0.6 else "black", fontsize=7)
    for row, size in enumerate(begin):
        axes.annotate(_number(size), (size, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    names = [f"{found.strategy.name}\n{audit.mesh(found)}" for found in audits]
    axes.set(title="held", xlabel="MB a device", yticks=range(len(audits)), yticklabels=names)
    # Room for the legend below and the sums on the right.
    axes.set(xlim=(0, 1.13 * max(begin)), ylim=(len(audits) + 0.2, -0.5))
    axes.legend(loc="lower left")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _number(size: float) -> str:
    """Megabytes with three digits that count."""
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"
