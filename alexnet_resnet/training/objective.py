"""What a step minimises and how it takes the gradient: the loss, and the parts that a batch is taken in."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context
from alexnet_resnet.ops.losses import LOSSES, in_top_k
from alexnet_resnet.parallel.strategies import Strategy

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The choices of `config.train` that the gradient depends on, and of `config.data` what depends on the step.

    Attributes:
      loss: a key of `ops.losses.LOSSES`.
      label_smoothing: the share of each target that is spread over all classes.
      rubbish: as `ops.losses.softmax_cross_entropy`; 0 with other losses.
      accumulate: the parts that a batch is taken in, one after the other.
      lighting_until: the step from which there is no lighting; None for never.
    """

    loss: str = "softmax"
    label_smoothing: float = 0.0
    rubbish: float = 0.0
    accumulate: int = 1
    lighting_until: int | None = None


def create(config, total_steps: int) -> Objective:
    """The objective that a configuration describes, for a run of `total_steps`."""
    until = config.data.lighting_until
    return Objective(
        config.train.loss,
        config.train.label_smoothing,
        config.train.rubbish,
        config.train.accumulate,
        round(until * total_steps) if until < 1 else None,
    )


def check(config, strategy: Strategy) -> None:
    """Refuses parts that a batch cannot be taken in.

    Raises:
      UserError: the devices do not divide the parts, or ghost batches do not nest in a device's share of one.
    """
    parts, batch, shards = config.train.accumulate, config.train.batch_size, strategy.shards
    field = f"train.accumulate={parts}"
    if batch % (parts * shards):
        raise UserError(
            f"{field}: expected a divisor of {batch // shards}, the examples of train.batch_size={batch} on each of "
            f"{shards} device(s)."
        )
    ghost_batch, share = config.model.get("ghost_batch", 0), batch // (parts * shards)
    if parts > 1 and ghost_batch and share % ghost_batch:
        raise UserError(
            f"{field}: expected parts of whole ghost batches, but of a part each of {shards} device(s) has {share} "
            f"examples and model.ghost_batch={ghost_batch}."
        )


def gradient(
    objective: Objective,
    network,
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    images_of: Callable[[Batch], Array],
    key: Array,
    strategy: Strategy | None = None,
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """The gradient of the mean loss over the valid rows of a batch, the new statistics, and `loss` and `error`.

    A batch in parts has the same gradient to rounding, whatever its parts: units are dropped by an example's place in
    the whole batch, and the mean is over all of it. So are the new running moments, of ghost batches that nest in a
    part. Without ghost batches batch normalisation sees a part at a time, and the running moments get the mean of the
    parts' moments.

    Args:
      objective: what is minimised.
      network: a `state.Network`, over the strategy's devices.
      params: its parameters.
      batch_stats: its running moments.
      batch: as the loaders yield them.
      images_of: what the network sees of a batch or of a part of one.
      key: this step's, for dropout.
      strategy: how the batch lies on the devices; None for one device. Each device's share of a part comes from its own
        share of the batch, so that nothing is moved.
    """
    # Without a single image that can be read there is no loss, and no step but the weight decay's.
    count = jnp.maximum(jnp.sum(batch["valid"]), 1)

    def of(part: Batch, examples: Array):
        images, labels = images_of(part), part["label"]
        context = Context(train=True, key=key, examples=examples)

        def share(values):
            return jnp.sum(values, where=part["valid"]) / count

        def loss_of(params):
            logits, stats = network.apply(params, batch_stats, images, context)
            more = {"rubbish": objective.rubbish} if objective.rubbish else {}
            loss = share(LOSSES[objective.loss](logits, labels, objective.label_smoothing, **more))
            return loss, (stats, share(~in_top_k(logits, labels, 1)))

        (loss, (stats, error)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        return gradients, stats, {"loss": loss, "error": error}

    examples, parts = jnp.arange(batch["label"].shape[0]), objective.accumulate
    if parts == 1:
        return of(batch, examples)
    shards = 1 if strategy is None else strategy.shards

    def split(array):
        pieces = array.reshape(shards, parts, -1, *array.shape[1:])
        return jnp.swapaxes(pieces, 0, 1).reshape(parts, -1, *array.shape[1:])

    def add(total, part):
        part, examples = part
        if strategy is not None:
            part = jax.lax.with_sharding_constraint(part, strategy.batch)
        return jax.tree.map(jnp.add, total, of(part, examples)), None

    stacked = jax.tree.map(split, (batch, examples))
    shapes = jax.eval_shape(lambda stacked: of(*jax.tree.map(lambda array: array[0], stacked)), stacked)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (gradients, stats, measured), _ = jax.lax.scan(add, nothing, stacked)
    return gradients, jax.tree.map(lambda total: total / parts, stats), measured
