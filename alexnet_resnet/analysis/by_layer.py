"""What figures over the layers of several networks share: the order of the layers, and how each network is drawn."""

from collections.abc import Collection, Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_resnet import models
from alexnet_resnet.errors import UserError, near_matches
from alexnet_resnet.models import Context


def order(network: nnx.Module, image_shape: Sequence[int]) -> list[str]:
    """The names of a network's activations in the order of computation. Nothing is computed.

    Args:
      network: any of `models.NETWORKS`.
      image_shape: height, width, channels.
    """
    names = []
    graphdef, state = nnx.split(network)

    def note(state, x):
        # As they are traced: JAX sorts the dictionaries that it returns.
        names.extend(models.activations(nnx.merge(graphdef, state, copy=True), x)[1])

    jax.eval_shape(note, state, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return names


def modules(network: nnx.Module) -> dict[str, nnx.Module]:
    """A network's parts by the names that their activations have, such as 'stage2/0/conv1'."""
    return {"/".join(map(str, path)): part for path, part in nnx.iter_graph(network) if isinstance(part, nnx.Module)}


def evaluating(batch_statistics: bool) -> Context:
    """A forward pass without dropout, in which batch normalisation has a batch's own moments or the running ones.

    Without a key nothing is drawn.
    """
    return Context(train=batch_statistics)


def styles(names: Iterable[str], dashed: Collection[str] | None = None) -> dict[str, dict]:
    """The line of each network, as ResNet's figure 7 has them: plain nets dashed, residual nets full.

    Networks whose names end alike after their last '-', as 'plain-20' and 'ResNet-20' do, have one colour.

    Args:
      names: the networks.
      dashed: those that are drawn dashed; by default those whose names begin with 'plain'.

    Raises:
      UserError: no networks, or a dashed one that is not among them.
    """
    names = list(names)
    if not names:
        raise UserError("curves: expected at least one network, found none.")
    for name in dashed or ():
        if name not in names:
            known = ", ".join(map(repr, names))
            raise UserError(f"dashed={name!r}: expected one of {known}.{near_matches(name, names)}")
    if dashed is None:
        dashed = [name for name in names if name.lower().startswith("plain")]
    endings = list(dict.fromkeys(name.rpartition("-")[2] for name in names))
    return {
        name: dict(
            label=name,
            color=f"C{endings.index(name.rpartition('-')[2]) % 10}",
            linestyle="--" if name in dashed else "-",
            linewidth=1.4,
        )
        for name in names
    }
