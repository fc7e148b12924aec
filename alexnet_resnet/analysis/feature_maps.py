"""What the layers of a network make of one picture: the maps of its convolutions, the units of its last layers."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from alexnet_resnet.analysis import predictions
from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.evaluation.classifier import Classifier

ORDERS = ("active", "number")
# AlexNet's only layer whose units belong to no column.
NO_COLUMNS = ("fc8",)
# Maps in a line, of all columns together.
PER_LINE = 16
# In inches: the width of what is drawn, the room for names at its left, what is left free around the maps of a layer,
# the side of the input's picture, and the height of a curve.
ACROSS, NAMES, FREE, PICTURE, CURVE = 11.0, 1.7, 0.25, 2.0, 0.9
# Pixels that a map is enlarged to at least, and that lie between two of them.
SIDE, GAP = 48, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """What one layer made of a picture.

    Attributes:
      name: such as 'conv1' or 'stage2/0/bn1'.
      values: maps [H, W, C] or units [C], those of all columns side by side.
      columns: that they fall into.
    """

    name: str
    values: Float[np.ndarray, "..."]
    columns: int = 1

    def __post_init__(self):
        check_at_least("columns", self.columns, 1)
        shape = self.values.shape
        if len(shape) not in (1, 3):
            raise UserError(f"layer {self.name!r}: expected maps [H, W, C] or units [C], found {list(shape)}.")
        if shape[-1] % self.columns:
            raise UserError(
                f"columns={self.columns}: expected a number that divides the {shape[-1]} maps or units of {self.name}."
            )

    @property
    def size(self) -> str:
        """Such as '55x55x96', or '4096' for units."""
        return "x".join(map(str, self.values.shape))


def layers(classifier: Classifier, picture: np.ndarray, names: Sequence[str]) -> tuple[Layer, ...]:
    """What named layers of a network make of a picture.

    Args:
      classifier: the network.
      picture: [H, W, C], bytes.
      names: keys of `classifier.activation_shapes`.

    Raises:
      UserError: a name that the network does not have, or a layer without maps or units.
    """
    named = classifier.activations([picture], names)
    return tuple(
        Layer(name, values[0], 1 if name in NO_COLUMNS else classifier.columns) for name, values in named.items()
    )


def choose(layer: Layer, count: int, order: str = "active") -> Int[np.ndarray, "columns n"]:
    """The numbers of the maps or units to look at: as many of each column, `count` in all or every one there is.

    Args:
      layer: the layer.
      count: how many at most, of all columns together; at least one of each.
      order: 'active' for those with the largest mean magnitude first (of equal ones the first), or 'number'.

    Raises:
      UserError: less than one, or another order.
    """
    check_choice("order", order, ORDERS)
    check_at_least("count", count, 1)
    activity = np.abs(layer.values.astype(np.float64))
    if activity.ndim == 3:
        activity = activity.mean((0, 1))
    parts = activity.reshape(layer.columns, -1)
    ordered = np.argsort(-parts, axis=1, kind="stable") if order == "active" else np.indices(parts.shape)[1]
    first = np.arange(layer.columns)[:, None] * parts.shape[1]
    return (first + ordered)[:, : max(1, count // layer.columns)]


def draw(
    shown: Sequence[Layer],
    path: str,
    view: np.ndarray | None = None,
    count: int = 16,
    order: str = "active",
    title: str = "",
) -> None:
    """Draws a row for each layer: its name and size, and the maps of each column, or all of its units as a curve.

    All maps of a layer share one range of grey, from 0 to the largest value drawn; where some are negative, blue is
    below and red above 0. The range stands below the layer's size.

    Args:
      shown: the layers, from `layers`.
      path: the figure's file; its ending decides the format.
      view: the picture as the network sees it (`classifier.view`), drawn above.
      count: maps of a layer at most, of all columns together.
      order: as `choose`.
      title: such as the network and what the picture is of.

    Raises:
      UserError: no layers, as `choose`, or a file that cannot be.
    """
    predictions.check(path)
    if not shown:
        raise UserError("layers: expected at least one, found none.")
    chosen = [choose(layer, count, order) for layer in shown]
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    sheets = [
        [_sheet(layer, part) for part in numbers] if layer.values.ndim == 3 else None
        for layer, numbers in zip(shown, chosen, strict=True)
    ]
    breadths = [ACROSS / layer.columns - 0.15 for layer in shown]
    heights = [
        CURVE if sheet is None else breadth * sheet[0].shape[0] / sheet[0].shape[1]
        for sheet, breadth in zip(sheets, breadths, strict=True)
    ]
    wide, top = (
        NAMES + ACROSS,
        sum(heights) + FREE * (1 + len(shown) + sheets.count(None)) + (PICTURE + FREE) * (view is not None),
    )
    tall = top + FREE * bool(title)
    figure = Figure(figsize=(wide, tall))
    if title:
        figure.text(0.5, 1 - 0.08 / tall, title, ha="center", va="top", fontsize=10, parse_math=False)

    def panel(left: float, width: float, height: float):
        """Axes whose upper left corner is so many inches right of the names, at `top`."""
        return figure.add_axes(((NAMES + left) / wide, (top - height) / tall, width / wide, height / tall))

    def write(name: str, shape: str, height: float):
        text, place = f"{name}\n{shape}", (top - height / 2) / tall
        figure.text((NAMES - 0.35) / wide, place, text, ha="right", va="center", fontsize=8, parse_math=False)

    top -= FREE
    if view is not None:
        write("input", "x".join(map(str, view.shape)), PICTURE)
        axes = panel(0, PICTURE, PICTURE)
        axes.imshow(view[..., 0] if view.shape[-1] == 1 else view, cmap="gray", vmin=0, vmax=255)
        axes.set_anchor("W")
        axes.axis("off")
        top -= PICTURE + FREE
    for layer, numbers, sheet, breadth, height in zip(shown, chosen, sheets, breadths, heights, strict=True):
        shades = {} if sheet is None else _shades(layer.values[..., numbers.ravel()])
        span = f"\n{shades['vmin']:.3g} to {shades['vmax']:.3g}" if shades else ""
        write(layer.name, layer.size + span, height)
        for column in range(layer.columns):
            axes = panel(column * ACROSS / layer.columns, breadth, height)
            if sheet is None:
                _draw_units(axes, layer, column)
            else:
                axes.imshow(sheet[column], interpolation="nearest", aspect="auto", **shades)
                axes.axis("off")
            if layer.columns > 1:
                axes.set_title(f"column {column + 1}", fontsize=7, pad=2, loc="left", color=f"C{column}")
        top -= height + FREE * (1 + (sheet is None))
    figure.savefig(path, dpi=130)


def _sheet(layer: Layer, numbers: Int[np.ndarray, "n"]) -> Float[np.ndarray, "H W"]:
    """Some maps of a layer in lines, enlarged by a whole number; not-a-number between and behind them."""
    factor = max(1, -(-SIDE // max(layer.values.shape[:2])))
    maps = np.moveaxis(layer.values[..., numbers], -1, 0).repeat(factor, 1).repeat(factor, 2)
    _, height, width = maps.shape
    across = max(1, PER_LINE // layer.columns)
    lines = -(-len(maps) // across)
    sheet = np.full((lines * (height + GAP) - GAP, across * (width + GAP) - GAP), np.nan)
    for place, one in enumerate(maps):
        top, left = (height + GAP) * (place // across), (width + GAP) * (place % across)
        sheet[top : top + height, left : left + width] = one
    return sheet


def _shades(drawn: np.ndarray) -> dict:
    """How values become shades."""
    most = float(np.abs(drawn).max()) or 1.0
    return dict(cmap="gray", vmin=0, vmax=most) if drawn.min() >= 0 else dict(cmap="RdBu_r", vmin=-most, vmax=most)


def _draw_units(axes, layer: Layer, column: int) -> None:
    """The units of one column by their numbers, all columns to one scale."""
    units = layer.values.reshape(layer.columns, -1)[column]
    first = column * len(units)
    axes.vlines(first + np.arange(len(units)), 0, units, color=f"C{column}", lw=0.6)
    low, high = min(0.0, float(layer.values.min())), max(0.0, float(layer.values.max()))
    axes.set(xlim=(first - 1, first + len(units)), ylim=(low, high + 0.05 * (high - low) or 1))
    axes.set_xlabel("unit", fontsize=6, labelpad=1)
    axes.tick_params(labelsize=6, pad=1, labelleft=column == 0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
