"""How much of the loss's gradient reaches each layer: why a shortcut helps (He et al. 2016, sections 3.1 and 4.1).

The paper holds that vanishing gradients are not what plain networks suffer from, since batch normalisation keeps the
gradients' norms healthy (section 4.1); these are the norms to judge it by.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from alexnet_resnet.analysis import by_layer
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context
from alexnet_resnet.models.resnet import Block
from alexnet_resnet.models.stages import ScannedStage
from alexnet_resnet.ops.losses import softmax_cross_entropy


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Norms of the gradient of a network's loss, averaged over batches; names stand in the order of computation.

    Attributes:
      kernels: the Frobenius norm of the gradient of each kernel, by its layer's name, such as 'stage2/0/conv1'.
      relative: the same over the norm of the kernel itself.
      outputs: of the gradient of each residual or plain block's output, by the block's name, such as 'stage2/0': the
        root mean square over the examples of the norm of an example's part, for the sum of the examples' losses. So it
        does not depend on the batch size. Empty for a network without blocks.
      loss: the mean loss in nats.
    """

    kernels: dict[str, float]
    relative: dict[str, float]
    outputs: dict[str, float]
    loss: float


@dataclasses.dataclass(frozen=True)
class _Shifted(Context):
    """Adds something to named activations; the gradient of what is added is the activation's."""

    shifts: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def observes(self) -> bool:
        return True

    def keep(self, name: str, x):
        x = super().keep(name, x)
        path = f"{self.path}/{name}" if self.path else name
        return x + self.shifts[path] if path in self.shifts else x


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_batch(graphdef, kernels, blocks, params, rest, images, labels):
    """The norms of some kernels' gradients, these over the kernels', of some blocks' outputs, and the loss."""

    def loss_of(params, shifts):
        # The copy takes the new running moments with it.
        own = nnx.merge(graphdef, params, rest, copy=True)
        logits = own(images, _Shifted(**vars(by_layer.evaluating(True)), shifts=shifts))
        return jnp.mean(softmax_cross_entropy(logits, labels))

    def block_outputs(params):
        named = {}
        context = dataclasses.replace(by_layer.evaluating(True), activations=named)
        nnx.merge(graphdef, params, rest, copy=True)(images, context)
        return {name: named[name] for name in blocks}

    shapes = jax.eval_shape(block_outputs, params)
    shifts = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    loss, (of_params, of_outputs) = jax.value_and_grad(loss_of, argnums=(0, 1))(params, shifts)
    weights, slopes = _kernels(params), _kernels(of_params)
    # The mean over N examples gives each 1/N of its loss: sqrt(mean |N g|^2) = sqrt(N) |g|.
    return (
        [_norm(slopes[name]) for name in kernels],
        [_norm(slopes[name]) / _norm(weights[name]) for name in kernels],
        [_norm(of_outputs[name]) * np.sqrt(images.shape[0]) for name in blocks],
        loss,
    )


def norms(
    network: nnx.Module, batches: Iterable[tuple[Float[Array | np.ndarray, "_ H W C"], Int[Array | np.ndarray, "_"]]]
) -> Gradients:
    """The norms of the gradient of the mean softmax cross entropy, in training mode: with each batch's own statistics.

    No units are dropped, there is no weight decay, and the network is left as it is. What is averaged is the norm of
    each batch's gradient, not the gradient. Networks of one structure compile once for each size of batches.

    Args:
      network: at its initialisation or trained.
      batches: images as the network sees them in training, and their labels.

    Raises:
      UserError: no batches, or a network whose blocks are scanned or rematerialised.
    """
    scanned = any(isinstance(module, ScannedStage) for _, module in nnx.iter_graph(network))
    if scanned or getattr(network, "remat", "none") != "none":
        raise UserError("network: expected model.scan=False and model.remat='none', to tell the blocks apart.")
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    parts, found = by_layer.modules(network), []
    kernels: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    for images, labels in batches:
        if not found:
            names, known = by_layer.order(network, images.shape[1:]), _kernels(params)
            kernels = tuple(name for name in names if name in known)
            blocks = tuple(name for name in names if isinstance(parts.get(name), Block))
        found.append(jax.device_get(_of_batch(graphdef, kernels, blocks, params, rest, images, labels)))
    if not found:
        raise UserError("batches: expected at least one, found none.")
    of_kernels, relative, outputs, loss = (np.mean(np.float64(each), axis=0) for each in zip(*found, strict=True))
    return Gradients(
        dict(zip(kernels, of_kernels.tolist(), strict=True)),
        dict(zip(kernels, relative.tolist(), strict=True)),
        dict(zip(blocks, outputs.tolist(), strict=True)),
        float(loss),
    )


def _kernels(params: nnx.State) -> dict[str, Array]:
    """The kernels among some parameters, by their layers' names."""
    flat = nnx.to_flat_state(params)
    return {"/".join(map(str, path[:-1])): leaf[...] for path, leaf in flat if path[-1] == "kernel"}


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))))


PANELS = (
    ("kernels", "norm of a kernel's gradient (nats per unit)", "layer index"),
    ("relative", "the same over the kernel's own norm", "layer index"),
    ("outputs", "norm of the gradient at a block's output", "block index"),
)


def draw(found: Mapping[str, Gradients], path: str, dashed: Collection[str] | None = None, note: str = "") -> None:
    """Draws the norms over the layers on a logarithmic axis: of kernels, relative to them, and of blocks' outputs.

    Norms of 0 cannot be drawn there and are left out. Without blocks there is no third panel.

    Args:
      found: the norms of each network by its name, such as 'plain-20' or 'ResNet-56'.
      path: the figure's file; its ending decides the format.
      dashed: the networks that are drawn dashed; by default those whose names begin with 'plain'.
      note: what is to be said of the networks, such as where in their training they stand.

    Raises:
      UserError: as `by_layer.styles`.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    styles = by_layer.styles(found, dashed)
    shown = [panel for panel in PANELS if any(getattr(one, panel[0]) for one in found.values())]
    figure = Figure(figsize=(1.2 + 4.0 * len(shown), 4.0), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (field, label, index) in zip(panels, shown, strict=True):
        for name, one in found.items():
            values = np.float64(list(getattr(one, field).values()))
            places = np.arange(1, len(values) + 1)
            panel.plot(places, np.where(values > 0, values, np.nan), **styles[name])
        panel.set(yscale="log", xlabel=index, ylabel=label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    figure.legend(handles=panels[0].lines, loc="outside right upper", fontsize=8)
    title = "gradient of the softmax cross entropy by layer, in training mode"
    figure.suptitle(f"{title}; {note}" if note else title, fontsize=10, parse_math=False)
    figure.savefig(path, dpi=130)
