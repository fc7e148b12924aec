"""AlexNet's figure 4, right: the training images whose feature vectors are nearest to those of test images."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from alexnet_resnet.analysis import predictions
from alexnet_resnet.errors import UserError, check_at_least

# Rows that are compared together: 4 MB of differences for fc7's 4,096 units, which a processor's cache may hold.
CHUNK = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest rows of each query, the nearest first.

    Attributes:
      rows: their numbers.
      distances: Euclidean, float64.
    """

    rows: Int[np.ndarray, "M k"]
    distances: Float[np.ndarray, "M k"]


class Shown(NamedTuple):
    """A picture [H, W, C] in bytes and the name of its class."""

    picture: np.ndarray
    name: str


def nearest(
    queries: Num[np.ndarray, "M ..."], features: Num[np.ndarray, "N ..."], k: int = 6, chunk: int = CHUNK
) -> Neighbours:
    """The k rows of `features` nearest to each query by Euclidean distance (section 6.1); of equal ones the first.

    Exact: differences are taken and squared in float64, so the distance of a copy is 0 and those of equal rows are
    equal, which |q|^2 - 2qx + |x|^2 does not keep. The work is M N F, in memory of `chunk` rows.

    Args:
      queries: a feature vector for each test image; further axes, as of a map, are taken as one vector.
      features: one for each training image, of the same shape; a `np.memmap` is read a chunk at a time.
      k: how many; the paper shows 6.
      chunk: rows that are compared together; the result does not depend on it.

    Raises:
      UserError: vectors of differing shape or with numbers that are not finite, or fewer rows than k.
    """
    check_at_least("k", k, 1)
    check_at_least("chunk", chunk, 1)
    if queries.shape[1:] != features.shape[1:]:
        raise UserError(f"queries={queries.shape}: expected vectors of shape {features.shape[1:]}, as the features.")
    if len(features) < k:
        raise UserError(f"k={k}: expected at most the {len(features)} training images.")
    length = math.prod(features.shape[1:])
    exact = queries.reshape(len(queries), length).astype(np.float64)
    best = [(np.empty(0), np.empty(0, np.int64))] * len(queries)
    for start in range(0, len(features), chunk):
        part = np.asarray(features[start : start + chunk], np.float64)
        part = np.ascontiguousarray(part.reshape(len(part), length))
        difference = np.empty_like(part)
        for number, query in enumerate(exact):
            np.subtract(part, query, out=difference)
            squares = np.einsum("nf,nf->n", difference, difference)
            if not np.isfinite(squares).all():
                raise UserError(f"features: expected finite numbers in the queries and in rows from {start} on.")
            best[number] = _nearer(*best[number], squares, start, k)
    squares, rows = (np.reshape([pair[i] for pair in best], (-1, k)) for i in (0, 1))
    return Neighbours(rows.astype(np.int64), np.sqrt(squares))


def _nearer(
    best: np.ndarray, rows: np.ndarray, squares: np.ndarray, start: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of those found before and of a chunk's, in order."""
    # A later row of equal distance comes behind those there are.
    new = np.flatnonzero(squares < best[-1]) if len(best) == k else np.arange(len(squares))
    squares, rows = np.concatenate([best, squares[new]]), np.concatenate([rows, start + new])
    order = np.argsort(squares, kind="stable")[:k]
    return squares[order], rows[order]


def agreement(
    found: Neighbours, labels: Int[np.ndarray, "M"], training_labels: Int[np.ndarray, "N"]
) -> Float[np.ndarray, "M"]:
    """The share of each query's neighbours that are of its own class."""
    return np.mean(training_labels[found.rows] == labels[:, None], axis=1)


def draw(
    tests: Sequence[Shown], training: Callable[[int], Shown], found: Neighbours, path: str, title: str = ""
) -> None:
    """Draws each test image and, to its right, the training images nearest to it, the nearest first.

    Class names stand above the pictures, green where a neighbour has the test image's own, and distances below.

    Args:
      tests: the test images, one a row.
      training: the training image of a row of the features.
      found: the neighbours of the tests.
      path: the figure's file; its ending decides the format.
      title: such as the network and the layer.

    Raises:
      UserError: another number of tests than of rows of neighbours, none, or a file that cannot be.
    """
    predictions.check(path)
    if not tests or len(tests) != len(found.rows):
        raise UserError(f"tests: expected one or more, as many as have neighbours; {len(tests)}, {len(found.rows)}.")
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    across = found.rows.shape[1]
    figure = Figure(figsize=(1.5 * (1 + across) + 0.3, 1.95 * len(tests) + 0.5), layout="constrained")
    # An empty place between the test images and the others.
    axes = figure.subplots(len(tests), 2 + across, squeeze=False, width_ratios=[1, 0.12, *[1] * across])
    for panel in axes.flat:
        panel.axis("off")
    same = False
    for panels, test, rows, distances in zip(axes, tests, found.rows, found.distances, strict=True):
        _show(panels[0], test, "black", "test image")
        for panel, row, distance in zip(panels[2:], rows.tolist(), distances, strict=True):
            other = training(row)
            same |= other.name == test.name
            _show(panel, other, "green" if other.name == test.name else "black", f"distance {distance:.4g}")
    note = "green: of the test image's class" * same
    if title or note:
        figure.suptitle("\n".join(filter(None, (title, note))), fontsize=9, parse_math=False)
    figure.savefig(path, dpi=130)


def _show(panel, shown: Shown, colour: str, below: str) -> None:
    height, width = shown.picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = shown.picture[top : top + side, left : left + side]
    panel.imshow(square[..., 0] if square.shape[-1] == 1 else square, cmap="gray", vmin=0, vmax=255)
    name = shown.name if len(shown.name) <= 20 else shown.name[:19] + "…"
    panel.set_title(name, fontsize=8, color=colour, parse_math=False)
    panel.text(0.5, -0.03, below, transform=panel.transAxes, ha="center", va="top", fontsize=8)
