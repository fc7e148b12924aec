"""Batch statistics recomputed after training as plain averages ("precise" batch normalisation)."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import BatchNorm


def average_statistics(network: nnx.Module, batches: Iterable[Float[Array, "_ H W C"]]) -> nnx.State:
    """The means and variances of every batch normalisation, averaged over batches with the parameters as they are.

    During training the running moments weigh the latest batches most, and these saw other parameters. Here each batch
    passes once in training mode, and each example counts the same. Write the result with
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
    graphdef, state = nnx.split(own)

    @jax.jit
    def moments(state, x):
        network = nnx.merge(graphdef, state, copy=True)
        network(x, Context(train=True))
        return nnx.state(network, nnx.BatchStat)

    total, examples = None, 0
    for x in batches:
        weighted = jax.tree.map(lambda leaf, n=x.shape[0]: n * leaf, moments(state, x))
        total = weighted if total is None else jax.tree.map(jnp.add, total, weighted)
        examples += x.shape[0]
    if total is None:
        raise ValueError("batches: expected at least one")
    return jax.tree.map(lambda leaf: leaf / examples, total)
