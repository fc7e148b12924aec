"""AlexNet's figure 3: the kernels of the first convolution, and how far its columns divide colour among themselves.

Section 6.1 finds the kernels of one GPU largely colour-agnostic and those of the other largely colour-specific, in
every run. Here the colour of a kernel is a number, and what is said of the columns a comparison of such numbers.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from alexnet_resnet.analysis import predictions
from alexnet_resnet.errors import UserError, check_at_least, check_choice, near_matches
from alexnet_resnet.evaluation.classifier import Classifier

RANGES = ("joint", "own")
# The chromatic share of kernels whose three channels are independent and equally strong: two axes of three.
INDEPENDENT = 2 / 3
# Kernels in a row, as in the author's plots (cuda-convnet, shownet.py).
PER_ROW = 16
PERMUTATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class Column:
    """The chromatic shares of one column's kernels.

    Attributes:
      number: of the column, from 1.
      kernels: how many there are.
      mean: of their shares.
      median: likewise.
    """

    number: int
    kernels: int
    mean: float
    median: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How two columns differ in colour.

    Attributes:
      first: the number of a column, from 1.
      second: the number of another.
      median_difference: the second column's median chromatic share less the first's.
      probability: that a kernel of the second column is more colourful than one of the first, ties counting half: the
        common-language effect size, Mann-Whitney's U / (n1 n2). 0.5 where the columns are alike, 0 or 1 where they
        are apart.
      p_value: the share of random divisions of these kernels into two such columns in which the probability is as far
        from 0.5, the division that was found counted among them. Both directions, as which column takes the colours
        is chance.
    """

    first: int
    second: int
    median_difference: float
    probability: float
    p_value: float


def of(classifier: Classifier, layer: str = "conv1") -> Float[np.ndarray, "h w C D"]:
    """The kernels of a convolution; of the one that sees the picture, the channels in the order RGB.

    Args:
      classifier: the network.
      layer: the convolution's name; VGG's first is 'conv1_1'.

    Raises:
      UserError: it has no such convolution.
    """
    params = classifier.params
    known = [name for name, part in params.items() if np.ndim(part.get("kernel")) == 4]
    if layer not in known:
        raise UserError(
            f"layer={layer!r}: expected a convolution of {classifier.network['name']}, "
            f"{', '.join(map(repr, known)) or 'which has none'}.{near_matches(layer, known)}"
        )
    kernel = np.asarray(params[layer]["kernel"])
    sees_picture = kernel.shape[2] == 3 == classifier.channels
    return kernel[:, :, ::-1] if sees_picture and classifier.input_order == "bgr" else kernel


def pictures(kernel: Float[np.ndarray, "h w C D"], scale: str = "joint") -> Float[np.ndarray, "D h w 3"]:
    """Kernels as RGB pictures in [0, 1].

    Args:
      kernel: of 3 channels, or of 1 that is drawn in grey.
      scale: 'joint' maps the least and the greatest weight of all kernels to 0 and 1, as the author's plots do, so
        that faint kernels look faint; 'own' those of each kernel. A constant kernel is grey under 'own'.

    Raises:
      UserError: another number of channels, or another scale.
    """
    check_choice("scale", scale, RANGES)
    if kernel.shape[2] not in (1, 3):
        raise UserError(f"kernel={kernel.shape}: expected 3 channels or 1 to be drawn, found {kernel.shape[2]}.")
    moved = np.moveaxis(kernel.astype(np.float64), -1, 0)
    axes = (1, 2, 3) if scale == "own" else None
    low, high = moved.min(axes, keepdims=True), moved.max(axes, keepdims=True)
    shown = np.divide(moved - low, high - low, out=np.full_like(moved, 0.5), where=high > low)
    return np.broadcast_to(shown, (*shown.shape[:3], 3))


def chromatic_share(kernel: Float[np.ndarray, "h w C D"]) -> Float[np.ndarray, "D"]:
    """The share of each kernel's energy that is colour: 0 for grey, 1 for one that grey pictures leave unmoved.

    The energy is the sum of the squared weights, from which nothing is removed. What is colour of it lies, pixel by
    pixel, at right angles to the grey axis (1, 1, 1) / sqrt(3). A kernel of zeros counts as grey. The weights are those
    that meet the network's input: where each channel is divided by its own standard deviation, grey is what is grey
    after that.

    Raises:
      UserError: kernels of another number of channels than 3.
    """
    if kernel.shape[2] != 3:
        raise UserError(f"kernel={kernel.shape}: expected 3 channels (RGB), found {kernel.shape[2]}.")
    exact = kernel.astype(np.float64)
    # The difference from the mean of the channels: exactly zero where they are equal, and never more than the whole.
    colour = exact - exact.mean(2, keepdims=True)
    energy, chromatic = (np.square(part).sum((0, 1, 2)) for part in (exact, colour))
    return np.clip(np.divide(chromatic, energy, out=np.zeros_like(energy), where=energy > 0), 0, 1)


def by_column(shares: Float[np.ndarray, "D"], columns: int) -> Float[np.ndarray, "columns d"]:
    """What is known of each kernel, a row a column of the network: the first D / columns belong to the first.

    Raises:
      UserError: the columns do not divide the kernels.
    """
    check_at_least("columns", columns, 1)
    if len(shares) % columns:
        raise UserError(f"columns={columns}: expected a number that divides the {len(shares)} kernels.")
    return shares.reshape(columns, -1)


def describe(shares: Float[np.ndarray, "D"], columns: int) -> tuple[Column, ...]:
    """Mean and median of each column's chromatic shares.

    Raises:
      UserError: the columns do not divide the kernels.
    """
    return tuple(
        Column(number, len(part), float(part.mean()), float(np.median(part)))
        for number, part in enumerate(by_column(shares, columns), 1)
    )


def compare(
    shares: Float[np.ndarray, "D"], columns: int, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[Comparison, ...]:
    """How specialised the columns are: every two of them compared; empty for a single column.

    Args:
      shares: the chromatic share of each kernel.
      columns: of the network.
      permutations: random divisions that the p-value rests on; it cannot be less than 1 / (1 + permutations).
      seed: of the divisions. Each comparison draws its own; the p-values are not corrected for their number.

    Raises:
      UserError: the columns do not divide the kernels, or less than one division.
    """
    check_at_least("permutations", permutations, 1)
    parts = by_column(shares, columns)
    return tuple(
        Comparison(
            i + 1,
            j + 1,
            float(np.median(parts[j]) - np.median(parts[i])),
            *_more_colourful(parts[i], parts[j], permutations, np.random.default_rng((seed, i, j))),
        )
        for i, j in itertools.combinations(range(columns), 2)
    )


def _more_colourful(first: np.ndarray, second: np.ndarray, permutations: int, random) -> tuple[float, float]:
    """The probability that a value of the second is above one of the first, and its p-value."""
    both = np.concatenate([first, second])
    # Mid-ranks: they and their sums are exact in floating point, so that equal divisions compare as equal.
    ranks = (np.sum(both[:, None] > both, 1) + np.sum(both[:, None] >= both, 1) + 1) / 2
    least, pairs = len(second) * (len(second) + 1) / 2, len(first) * len(second)

    def u(ranks_of_second):
        return ranks_of_second.sum(-1) - least

    found = u(ranks[len(first) :])
    drawn = np.array([u(random.permutation(ranks)[len(first) :]) for _ in range(permutations)])
    as_far = np.count_nonzero(abs(drawn - pairs / 2) >= abs(found - pairs / 2))
    return float(found / pairs), float((1 + as_far) / (1 + permutations))


def sentence(comparisons: Sequence[Comparison]) -> str:
    """What `compare` found of the two columns that are furthest apart; nothing for a single column."""
    if not comparisons:
        return ""
    far = max(comparisons, key=lambda pair: abs(pair.probability - 0.5))
    more, less, probability = far.second, far.first, far.probability
    if probability < 0.5:
        more, less, probability = less, more, 1 - probability
    return (
        f"a kernel of column {more} is more colourful than one of column {less} with probability {probability:.3g} "
        f"(permutation p = {far.p_value:.2g}{f', the furthest of {len(comparisons)} pairs' * (len(comparisons) > 1)})"
    )


def draw(
    kernel: Float[np.ndarray, "h w C D"],
    columns: int,
    path: str,
    title: str = "",
    scale: str = "joint",
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> None:
    """Draws the kernels of each column, the first column above, and beside them how colourful they are.

    Args:
      kernel: the kernels of the convolution that sees the RGB picture.
      columns: of the network.
      path: the figure's file; its ending decides the format.
      title: of what network; a line on the columns follows it.
      scale: as `pictures`.
      permutations: as `compare`.
      seed: likewise.

    Raises:
      UserError: kernels that are not of RGB, columns that do not divide them, or a file that cannot be.
    """
    predictions.check(path)
    by_column(chromatic_share(kernel), columns)
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size(kernel, columns), layout="constrained")
    draw_in(figure, kernel, columns, title, scale, permutations, seed)
    figure.savefig(path, dpi=130)


def size(kernel: Float[np.ndarray, "h w C D"], columns: int) -> tuple[float, float]:
    """The width and the height in inches that `draw_in` asks for."""
    count = kernel.shape[-1] // columns
    lines = -(-count // PER_ROW)
    return _breadth(count) + 3.6, max(1.6, 0.45 * lines + 0.5) * columns + 0.9


def _breadth(count: int) -> float:
    """Of a column's kernels, in inches."""
    return max(4.6, 0.45 * min(PER_ROW, count))


def draw_in(
    figure,
    kernel: Float[np.ndarray, "h w C D"],
    columns: int,
    title: str = "",
    scale: str = "joint",
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> None:
    """As `draw`, in a figure of Matplotlib or a part of one, where another network's may stand beside it."""
    shares = chromatic_share(kernel)
    parts, described = by_column(shares, columns), describe(shares, columns)
    told = sentence(compare(shares, columns, permutations, seed))
    height, width = kernel.shape[:2]
    sheets = [_sheet(group) for group in np.split(pictures(kernel, scale), columns)]
    figure.suptitle("\n".join(filter(None, (title, told))), fontsize=9, parse_math=False)
    axes = figure.subplots(columns, 2, squeeze=False, width_ratios=[_breadth(len(parts[0])), 3.2])
    bins = np.linspace(0, 1, 21)
    most = max(np.histogram(part, bins)[0].max() for part in parts)
    for (left, right), sheet, part, column in zip(axes, sheets, parts, described, strict=True):
        name = f"column {column.number}: " if columns > 1 else ""
        left.imshow(sheet, interpolation="nearest")
        left.set_title(f"{name}{column.kernels} kernels of {height}x{width}x{kernel.shape[2]}", fontsize=9)
        left.set_anchor("N")
        left.axis("off")
        right.hist(part, bins, color="C0", alpha=0.5)
        right.axvline(column.median, color="C0")
        right.axvline(INDEPENDENT, color="black", ls="--", lw=0.8)
        right.set_title(f"{name}median {column.median:.2f}, mean {column.mean:.2f}", fontsize=9)
        right.set(xlim=(0, 1), ylim=(0, 1.05 * most))
        right.set_ylabel("kernels", fontsize=8)
        right.yaxis.get_major_locator().set_params(integer=True)
        right.tick_params(labelsize=8)
    axes[-1, 1].set_xlabel("chromatic share of a kernel's energy\ndashed: channels independent, 2/3", fontsize=8)


def _sheet(shown: Float[np.ndarray, "D h w 3"]) -> Float[np.ndarray, "H W 3"]:
    """Pictures in rows on white, a pixel apart."""
    count, height, width, _ = shown.shape
    across = min(PER_ROW, count)
    sheet = np.ones((-(-count // across) * (height + 1) - 1, across * (width + 1) - 1, 3))
    for number, picture in enumerate(shown):
        top, left = (height + 1) * (number // across), (width + 1) * (number % across)
        sheet[top : top + height, left : left + width] = picture
    return sheet
