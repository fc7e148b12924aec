"""One training step and one evaluation step, as pure functions compiled over a mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from alexnet_resnet.data import arrays as resident
from alexnet_resnet.ops import lighting
from alexnet_resnet.ops.losses import in_top_k, softmax_cross_entropy
from alexnet_resnet.ops.photometry import subtract_mean
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training.objective import Batch, Objective
from alexnet_resnet.training.optimizer import Optimizer
from alexnet_resnet.training.state import Average, Network, TrainState

# The stream of the run's key that lighting draws from; steps take the numbers from 0.
LIGHTING = 2**31 - 1


def training_images(data, state: TrainState, batch: Batch, lighting_until: int | None = None) -> Array:
    """What the network sees in training: the views mirrored, without their mean, their colours shifted, divided.

    Args:
      data: the configuration's `data` section.
      state: has the mean canvas, lighting's axes and the run's key.
      batch: as the loaders yield them.
      lighting_until: the step from which colours are no longer shifted; None for never.
    """
    images = evaluation_images(data, state.mean, batch, divided=False)
    if data.lighting != "none":
        # A stream of its own, in which an image has the same draw whatever step and batch it stands in.
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), LIGHTING)
        normals = lighting.normal_draws(key, batch["epoch"], batch["row"], images.shape[-1])
        scale = lighting.image_scale(data.lighting, data.lighting_strength)
        lit = lighting.light(images, lighting.colour_shifts(normals, state.colours), scale)
        images = lit if lighting_until is None else jnp.where(state.step < lighting_until, lit, images)
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
    optimizer: Optimizer,
    rate: Callable,
    data,
    objective: Objective = Objective(),
    strategy: Strategy | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Maps the state and a batch to the next state and the step's measurements.

    Args:
      state: where the training stands.
      batch: as the loaders yield them. Rows that are not valid take no part in the loss.
      network: the network that is trained.
      optimizer: that of `optimizer.create`.
      rate: its learning rate at each step.
      data: the configuration's `data` section.
      objective: the loss, and the parts that the batch is taken in.
      strategy: how the batch lies on the devices; None for one device.

    Returns:
      The new state, and scalars: `loss` (mean over the batch), `error` (top-1, a share), `learning_rate`,
      `gradient_norm`, and `parameter_norm` of the new parameters and statistics.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    images_of = functools.partial(training_images, data, state, lighting_until=objective.lighting_until)
    gradients, batch_stats, measured = objective_lib.gradient(
        objective, network, state.params, state.batch_stats, batch, images_of, key, strategy
    )
    measured |= {
        "learning_rate": optimizer_lib.rate_now(rate, state.step, state.opt_state),
        "gradient_norm": optax.tree.norm(gradients),
    }
    # A batch without an image that can be read has no errors, and is no reason to end a warm-up.
    error = jnp.where(jnp.any(batch["valid"]), measured["error"], 1.0)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, error)
    params, average = optax.apply_updates(state.params, updates), state.average
    if isinstance(average, Average):
        average = optimizer_lib.average(optimizer.ema, average, Average(params, batch_stats), state.step)
    new = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        key=state.key,
        mean=state.mean,
        colours=state.colours,
        average=average,
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
    network: Network,
    optimizer: Optimizer,
    rate: Callable,
    strategy: Strategy,
    data,
    objective: Objective = Objective(),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`train_step` over a mesh: the state and the batch lie as the strategy says. The old state's memory is reused."""
    state = state_lib.shardings(network, optimizer, strategy)
    fixed = dict(optimizer=optimizer, rate=rate, data=data, objective=objective, strategy=strategy)
    return jax.jit(
        functools.partial(train_step, network=network.over(strategy), **fixed),
        in_shardings=(state, strategy.batch),
        out_shardings=(state, strategy.everywhere),
        donate_argnums=0,
    )


def compile_resident_steps(
    network: Network,
    optimizer: Optimizer,
    rate: Callable,
    strategy: Strategy,
    config,
    objective: Objective = Objective(),
) -> Callable[[TrainState, dict[str, Array], Array, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """Several training steps in one call, each on a batch that is drawn and cut on the device.

    Returns:
      A function of the state, the arrays of `data.arrays.Resident.on_device`, the epoch and the place of the first
      example, and the number of steps, at most `train.steps_per_call` (int32 []); it returns the state and the
      measurements, each [train.steps_per_call], of which the first are of these steps.
    """
    data, size, most = config.data, config.train.batch_size, config.train.steps_per_call
    laid_out, everywhere = state_lib.shardings(network, optimizer, strategy), strategy.everywhere
    fixed = dict(optimizer=optimizer, rate=rate, data=data, objective=objective, strategy=strategy)
    network = network.over(strategy)

    def steps(state, arrays, epoch, place, count):
        def one(state, number):
            begin = place + number * size
            batch = resident.batch(data, arrays, config.seed, epoch, begin, size)
            batch = jax.lax.with_sharding_constraint(batch, strategy.batch)
            return train_step(state, batch, network=network, **fixed)

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
