"""Batch statistics recomputed after training as plain averages ("precise" batch normalisation)."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import BatchNorm


def average_statistics(network: nnx.Module, batches: Iterable[Float[Array, "_ H W C"]]) -> nnx.State:
    """The means and variances of every batch normalisation over all batches together, with the parameters as they are.

    During training the running moments weigh the latest batches most, and these saw other parameters. Here each batch
    passes once in training mode, normalised as a whole, and each example counts the same: the means are averages, the
    variances those around them, that within the batches and that between. Write the result with
    `nnx.update(network, statistics)`; `network` itself is left as it is.

    Args:
      network: a trained network.
      batches: images as the network takes them. Each compiles once for its size.

    Raises:
      ValueError: no batches.

    Source: the release notes of the ResNet paper's models, whose moments are such averages over a large batch.
    """
    own = nnx.clone(network)
    for _, module in nnx.iter_graph(own):
        if isinstance(module, BatchNorm):
            module.momentum = 0.0  # keep nothing: after a batch the moments are that batch's
            module.group = 0
    graphdef, state = nnx.split(own)

    @jax.jit
    def moments(state, x):
        """The means, and the mean squares in place of the variances."""
        network = nnx.merge(graphdef, state, copy=True)
        network(x, Context(train=True))
        for _, module in nnx.iter_graph(network):
            if isinstance(module, BatchNorm):
                module.variance[...] += jnp.square(module.mean[...])
        return nnx.state(network, nnx.BatchStat)

    total, examples = None, 0
    for x in batches:
        weighted = jax.tree.map(lambda leaf, n=x.shape[0]: n * leaf, moments(state, x))
        total = weighted if total is None else jax.tree.map(jnp.add, total, weighted)
        examples += x.shape[0]
    if total is None:
        raise ValueError("batches: expected at least one")
    nnx.update(own, jax.tree.map(lambda leaf: leaf / examples, total))
    for _, module in nnx.iter_graph(own):
        if isinstance(module, BatchNorm):
            module.variance[...] -= jnp.square(module.mean[...])
    return nnx.state(own, nnx.BatchStat)
