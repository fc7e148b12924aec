"""One training step and one evaluation step, as pure functions compiled over a mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from alexnet_resnet.models import Context
from alexnet_resnet.ops.losses import in_top_k, softmax_cross_entropy
from alexnet_resnet.ops.photometry import subtract_mean
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.training.state import Network, TrainState

Batch = dict[str, Array]


def _images(mean: Array, batch: Batch, divisor: float) -> Array:
    return subtract_mean(batch["image"], mean, batch["offset"], batch["flip"]) / divisor


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    network: Network,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    divisor: float = 1.0,
) -> tuple[TrainState, dict[str, Array]]:
    """Maps the state and a batch to the next state and the step's measurements.

    Args:
      state: where the training stands.
      batch: as `data.pipeline.training_batches` yields them.
      network: the network that is trained.
      optimizer: that of `optimizer.create`.
      rate: its learning rate at each step.
      divisor: what pixels are divided by after the mean is subtracted.

    Returns:
      The new state, and scalars: `loss` (mean over the batch), `error` (top-1, a share), `learning_rate`,
      `gradient_norm`, and `parameter_norm` of the new parameters and statistics.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    context = Context(train=True, key=key, examples=jnp.arange(batch["label"].shape[0]))
    images = _images(state.mean, batch, divisor)

    def loss_of(params):
        logits, batch_stats = network.apply(params, state.batch_stats, images, context)
        return jnp.mean(softmax_cross_entropy(logits, batch["label"])), (logits, batch_stats)

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    measured = {
        "loss": loss,
        "error": 1 - jnp.mean(in_top_k(logits, batch["label"], 1), dtype=jnp.float32),
        "learning_rate": rate(state.step),
        "gradient_norm": optax.tree.norm(gradients),
    }
    new = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        key=state.key,
        mean=state.mean,
    )
    # Of the result: a finite gradient can still throw the parameters out of their type's range.
    return new, measured | {"parameter_norm": optax.tree.norm((new.params, new.batch_stats))}


def evaluation_step(
    params: PyTree, batch_stats: PyTree, mean: Array, batch: Batch, *, network: Network, divisor: float = 1.0
) -> Batch:
    """Sums over the valid rows of a batch: `loss`, `top1_errors`, `top5_errors` and `examples`."""
    logits, _ = network.apply(params, batch_stats, _images(mean, batch, divisor))
    labels, valid = batch["label"], batch["valid"]
    wrong = {f"top{k}_errors": jnp.sum(valid & ~in_top_k(logits, labels, k), dtype=jnp.int32) for k in (1, 5)}
    losses = jnp.where(valid, softmax_cross_entropy(logits, labels), 0)
    return {"loss": jnp.sum(losses), "examples": jnp.sum(valid, dtype=jnp.int32), **wrong}


def compile_train_step(
    network: Network, optimizer: optax.GradientTransformation, rate: optax.Schedule, mesh: Mesh, divisor: float = 1.0
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`train_step` over a mesh: the state on every device, the batch split. The old state's memory is reused."""
    everywhere, split = mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh)
    return jax.jit(
        functools.partial(train_step, network=network, optimizer=optimizer, rate=rate, divisor=divisor),
        in_shardings=(everywhere, split),
        out_shardings=everywhere,
        donate_argnums=0,
    )


def compile_evaluation_step(
    network: Network, mesh: Mesh, divisor: float = 1.0
) -> Callable[[PyTree, PyTree, Array, Batch], Batch]:
    """`evaluation_step` over a mesh: everything on every device, but the batch split."""
    everywhere, split = mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh)
    return jax.jit(
        functools.partial(evaluation_step, network=network, divisor=divisor),
        in_shardings=(everywhere, everywhere, everywhere, split),
        out_shardings=everywhere,
    )
