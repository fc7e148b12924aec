"""How strongly the layers of a network respond: figure 7 of ResNet (He et al. 2016, section 4.2).

"Analysis of Layer Responses" takes the outputs of 3x3 layers "after BN and before other nonlinearity (ReLU/addition)".
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet import models
from alexnet_resnet.analysis import by_layer
from alexnet_resnet.errors import UserError, near_matches
from alexnet_resnet.models.layers import BatchNorm

WINDOW = 3


@dataclasses.dataclass(frozen=True)
class Moments:
    """The count, the mean and the sum of squared deviations of some numbers; those of two sets add up to both's.

    Source: Chan, Golub and LeVeque 1979, equation 2.1.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        return Moments(count, mean, self.squares + other.squares + step**2 * self.count * other.count / count)

    @property
    def deviation(self) -> float:
        """The standard deviation, over the count."""
        return math.sqrt(self.squares / self.count)


def layers(network: nnx.Module, image_shape: Sequence[int]) -> list[str]:
    """The layers of figure 7, in the order of computation: the batch normalisation bnX of each 3x3 convolution convX.

    Args:
      network: a residual or a plain network, or VGG with batch normalisation.
      image_shape: height, width, channels.

    Raises:
      UserError: it has none.
    """
    parts = by_layer.modules(network)

    def belongs(name: str) -> bool:
        owner, _, own = name.rpartition("/")
        if not own.startswith("bn") or not isinstance(parts.get(name), BatchNorm):
            return False
        conv = parts.get(f"{owner}/conv{own[2:]}" if owner else f"conv{own[2:]}")
        return conv is not None and conv.kernel.shape[0] == WINDOW

    found = [name for name in by_layer.order(network, image_shape) if belongs(name)]
    if not found:
        raise UserError(
            "network: expected batch normalisation after its 3x3 convolutions, found none; names= asks for others."
        )
    return found


def standard_deviations(
    network: nnx.Module,
    batches: Iterable[Float[Array | np.ndarray, "_ H W C"]],
    names: Sequence[str] | None = None,
    batch_statistics: bool = False,
) -> dict[str, float]:
    """The standard deviation of each layer's response over all examples, places and channels together.

    The network is left as it is, and no units are dropped. The moments are taken for each example and channel on the
    device and put together in float64; batches may have any sizes, each of which compiles once.

    Args:
      network: a network, trained or not.
      batches: images as the network sees them.
      names: activations, such as 'stage2/0/bn1'; by default those of `layers`.
      batch_statistics: False normalises with the running moments, as an evaluation does. True normalises each batch
        with its own, as training does: for networks whose running moments have not been learnt, which at
        initialisation are 0 and 1 and normalise nothing. The paper does not say which it used.

    Returns:
      The standard deviations by name, in the order of computation.

    Raises:
      UserError: no batches, a name that the network does not have, or as `layers`.
    """
    graphdef, state = nnx.split(network)
    context = by_layer.evaluating(batch_statistics)
    asked: list[str] = []

    @jax.jit
    def of_batch(state, x):
        named = models.activations(nnx.merge(graphdef, state, copy=True), x, context)[1]
        return [_moments(named[name]) for name in asked]

    totals: dict[str, Moments] = {}
    for x in batches:
        if not totals:
            asked += _asked(network, x.shape[1:], names)
            totals = {name: Moments() for name in asked}
        # Float64 is the host's; the device need not have it.
        for name, found in zip(asked, jax.device_get(of_batch(state, x)), strict=True):
            totals[name] += _together(*found)
    if not totals:
        raise UserError("batches: expected at least one, found none.")
    return {name: total.deviation for name, total in totals.items()}


def _asked(network: nnx.Module, image_shape: Sequence[int], names: Sequence[str] | None) -> list[str]:
    if names is None:
        return layers(network, image_shape)
    known = by_layer.order(network, image_shape)
    for name in names:
        if name not in known:
            raise UserError(f"names={name!r}: expected an activation of the network.{near_matches(name, known)}")
    if not names:
        raise UserError("names: expected at least one activation, found none.")
    return [name for name in known if name in names]


def _moments(x: Float[Array, "N ... C"]) -> tuple[Array, Array, int]:
    """Of each example's channels: mean and sum of squared deviations over the places, and the number of places."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    mean = jnp.mean(x, 1)
    return mean, jnp.sum(jnp.square(x - mean[:, None]), 1), x.shape[1]


def _together(mean: np.ndarray, squares: np.ndarray, places: np.ndarray) -> Moments:
    mean, squares, places = np.float64(mean), np.float64(squares), int(places)
    overall = mean.mean()
    between = places * np.square(mean - overall).sum()
    return Moments(places * mean.size, float(overall), float(squares.sum() + between))


def draw(
    curves: Mapping[str, Mapping[str, float] | Sequence[float]],
    path: str,
    dashed: Collection[str] | None = None,
    note: str = "",
) -> None:
    """Draws figure 7: the standard deviations over the layers in their order (above) and in descending order (below).

    Args:
      curves: the standard deviations of each network by its name, such as 'plain-20' or 'ResNet-56'.
      path: the figure's file; its ending decides the format.
      dashed: the networks that are drawn dashed; by default those whose names begin with 'plain'.
      note: what is to be said of the networks, such as where in their training they stand.

    Raises:
      UserError: as `by_layer.styles`.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    styles = by_layer.styles(curves, dashed)
    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    panels = figure.subplots(2)
    series = {name: list(found.values() if isinstance(found, Mapping) else found) for name, found in curves.items()}
    top = 1.05 * max(max(values) for values in series.values())
    for name, values in series.items():
        for panel, ordered in zip(panels, (values, sorted(values, reverse=True)), strict=True):
            panel.plot(range(1, len(ordered) + 1), ordered, **styles[name])
    for panel, how in zip(panels, ("original order", "sorted by magnitude"), strict=True):
        panel.set(xlabel=f"layer index ({how})", ylabel="standard deviation", ylim=(0, top))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    figure.legend(handles=panels[0].lines, loc="outside right upper", fontsize=8)
    title = "responses of 3x3 layers, after batch normalisation and before ReLU or addition"
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=10, parse_math=False)
    figure.savefig(path, dpi=130)
