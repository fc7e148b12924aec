"""One training step and one evaluation step, as pure functions compiled over a mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from alexnet_resnet.data import arrays as resident
from alexnet_resnet.models import Context
from alexnet_resnet.ops import lighting
from alexnet_resnet.ops.losses import in_top_k, softmax_cross_entropy
from alexnet_resnet.ops.photometry import subtract_mean
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training.state import Network, TrainState

Batch = dict[str, Array]

# The stream of the run's key that lighting draws from; steps take the numbers from 0.
LIGHTING = 2**31 - 1


def training_images(data, state: TrainState, batch: Batch) -> Array:
    """What the network sees in training: the views mirrored, without their mean, their colours shifted, divided.

    Args:
      data: the configuration's `data` section.
      state: has the mean canvas, lighting's axes and the run's key.
      batch: as the loaders yield them.
    """
    images = evaluation_images(data, state.mean, batch, divided=False)
    if data.lighting != "none":
        # A stream of its own, in which an image has the same draw whatever step and batch it stands in.
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), LIGHTING)
        normals = lighting.normal_draws(key, batch["epoch"], batch["row"], images.shape[-1])
        scale = lighting.image_scale(data.lighting, data.lighting_strength)
        images = lighting.light(images, lighting.colour_shifts(normals, state.colours), scale)
    return images / data.divisor


def evaluation_images(data, mean: Array, batch: Batch, divided: bool = True) -> Array:
    """What the network sees in an evaluation: the views mirrored where asked, without their mean, divided."""
    images = subtract_mean(batch["image"], mean, batch["offset"], batch["flip"], data.mean_position)
    return images / data.divisor if divided else images


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    network: Network,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    data,
) -> tuple[TrainState, dict[str, Array]]:
    """Maps the state and a batch to the next state and the step's measurements.

    Args:
      state: where the training stands.
      batch: as the loaders yield them. Rows that are not valid take no part in the loss.
      network: the network that is trained.
      optimizer: that of `optimizer.create`.
      rate: its learning rate at each step.
      data: the configuration's `data` section.

    Returns:
      The new state, and scalars: `loss` (mean over the batch), `error` (top-1, a share), `learning_rate`,
      `gradient_norm`, and `parameter_norm` of the new parameters and statistics.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    context = Context(train=True, key=key, examples=jnp.arange(batch["label"].shape[0]))
    images, valid = training_images(data, state, batch), batch["valid"]

    def mean_of_valid(values):
        # Without a single image that can be read there is no loss, and no step but the weight decay's.
        return jnp.sum(values, where=valid) / jnp.maximum(jnp.sum(valid), 1)

    def loss_of(params):
        logits, batch_stats = network.apply(params, state.batch_stats, images, context)
        return mean_of_valid(softmax_cross_entropy(logits, batch["label"])), (logits, batch_stats)

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    measured = {
        "loss": loss,
        "error": mean_of_valid(~in_top_k(logits, batch["label"], 1)),
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
        colours=state.colours,
    )
    # Of the result: a finite gradient can still throw the parameters out of their type's range.
    return new, measured | {"parameter_norm": optax.tree.norm((new.params, new.batch_stats))}


def evaluation_step(params: PyTree, batch_stats: PyTree, mean: Array, batch: Batch, *, network: Network, data) -> Batch:
    """Sums over the valid rows of a batch: `loss`, `top1_errors`, `top5_errors` and `examples`."""
    logits, _ = network.apply(params, batch_stats, evaluation_images(data, mean, batch))
    return score(logits, batch["label"], batch["valid"])


def score(logits: Float[Array, "N K"], labels: Int[Array, "N"], valid: Bool[Array, "N"]) -> Batch:
    """Sums over the valid rows: `loss`, `top1_errors`, `top5_errors` and `examples`.

    Logarithms of probabilities are logits too.
    """
    wrong = {f"top{k}_errors": jnp.sum(valid & ~in_top_k(logits, labels, k), dtype=jnp.int32) for k in (1, 5)}
    losses = jnp.where(valid, softmax_cross_entropy(logits, labels), 0)
    return {"loss": jnp.sum(losses), "examples": jnp.sum(valid, dtype=jnp.int32), **wrong}


def compile_train_step(
    network: Network, optimizer: optax.GradientTransformation, rate: optax.Schedule, strategy: Strategy, data
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`train_step` over a mesh: the state and the batch lie as the strategy says. The old state's memory is reused."""
    state = state_lib.shardings(network, optimizer, strategy)
    network = network.over(strategy)
    return jax.jit(
        functools.partial(train_step, network=network, optimizer=optimizer, rate=rate, data=data),
        in_shardings=(state, strategy.batch),
        out_shardings=(state, strategy.everywhere),
        donate_argnums=0,
    )


def compile_resident_steps(
    network: Network, optimizer: optax.GradientTransformation, rate: optax.Schedule, strategy: Strategy, config
) -> Callable[[TrainState, dict[str, Array], Array, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """Several training steps in one call, each on a batch that is drawn and cut on the device.

    Returns:
      A function of the state, the arrays of `data.arrays.Resident.on_device`, the epoch and the place of the first
      example, and the number of steps, at most `train.steps_per_call` (int32 []); it returns the state and the
      measurements, each [train.steps_per_call], of which the first are of these steps.
    """
    data, size, most = config.data, config.train.batch_size, config.train.steps_per_call
    laid_out, everywhere = state_lib.shardings(network, optimizer, strategy), strategy.everywhere
    network = network.over(strategy)

    def steps(state, arrays, epoch, place, count):
        def one(state, number):
            begin = place + number * size
            batch = resident.batch(data, arrays, config.seed, epoch, begin, size)
            batch = jax.lax.with_sharding_constraint(batch, strategy.batch)
            return train_step(state, batch, network=network, optimizer=optimizer, rate=rate, data=data)

        if most == 1:
            state, measured = one(state, 0)
            return state, jax.tree.map(lambda value: jnp.reshape(value, (1,)), measured)

        def next_one(number, carried):
            state, series = carried
            state, measured = one(state, number)
            return state, jax.tree.map(lambda values, value: values.at[number].set(value), series, measured)

        shapes = jax.eval_shape(lambda state: one(state, 0)[1], state)
        series = jax.tree.map(lambda leaf: jnp.zeros(most, leaf.dtype), shapes)
        # The number of steps is not compiled in: calls that a report or a checkpoint cuts short are the same program.
        return jax.lax.fori_loop(0, count, next_one, (state, series))

    return jax.jit(
        steps,
        in_shardings=(laid_out, *(everywhere,) * 4),
        out_shardings=(laid_out, everywhere),
        donate_argnums=0,
    )


def compile_evaluation_step(
    network: Network, strategy: Strategy, data
) -> Callable[[PyTree, PyTree, Array, Batch], Batch]:
    """`evaluation_step` over a mesh: the network and the batch lie as the strategy says."""
    return jax.jit(
        functools.partial(evaluation_step, network=network.over(strategy), data=data),
        in_shardings=(*map(strategy.shardings, network.shapes), strategy.everywhere, strategy.batch),
        out_shardings=strategy.everywhere,
    )
