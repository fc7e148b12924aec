"""A peer: residual networks in Flax Linen with its own layers, trained as Flax's ImageNet example trains.

That is: `nn.Conv` and `nn.BatchNorm` with statistics over the whole batch, activations in the compute type and
parameters in float32, cross entropy of one-hot labels plus the squares of all kernels in the loss, `optax.sgd` with
momentum, and one jitted step that is given the old state's memory. The networks are those of our configurations, so
the sums are the same; arrays have our names.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree

from experiments.benchmarks import timing
from experiments.benchmarks.blueprints import Block, Conv, Residual
from experiments.benchmarks.training_steps import LEARNING_RATE, images_and_labels

WEIGHT_DECAY = 1e-4


class LinenBlock(nn.Module):
    """A residual block."""

    block: Block
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x
        for number, layer in enumerate(self.block.convs, start=1):
            y = self.conv(layer, name=f"conv{number}")(y)
            y = self.norm(name=f"bn{number}")(y)
            if number < len(self.block.convs):
                y = nn.relu(y)
        if self.block.projection:
            x = self.conv(self.block.projection, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x)
        else:
            x = pad(x, self.block)
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    """A residual network."""

    blueprint: Residual
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        conv = functools.partial(_conv, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
        )
        x = conv(self.blueprint.stem, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        if self.blueprint.pooled:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for number, stage in enumerate(self.blueprint.stages, start=1):
            for place, block in enumerate(stage):
                x = LinenBlock(block, conv, norm, name=f"stage{number}_{place}")(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.blueprint.classes, name="fc")(x.astype(jnp.float32))


def _conv(layer: Conv, dtype: str, name: str) -> nn.Conv:
    side = (layer.window // 2, layer.window // 2)
    window = (layer.window, layer.window)
    strides = (layer.stride, layer.stride)
    return nn.Conv(layer.features, window, strides, padding=(side, side), use_bias=False, dtype=dtype, name=name)


def pad(x: Array, block: Block) -> Array:
    """The identity shortcut, with zeros for the channels that it lacks."""
    x = x[:, :: block.stride, :: block.stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, block.features - block.inputs)))


def create(config, blueprint: Residual) -> tuple[jax.stages.Compiled, float, Callable[[int], dict]]:
    """The compiled training step on one device, as `training_steps.create` returns ours."""
    network = LinenResNet(blueprint, config.model.dtype)
    data = config.data
    image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
    variables = jax.jit(network.init)(jax.random.key(0), image)

    def apply(params: PyTree, stats: PyTree, images: Array) -> tuple[Array, PyTree]:
        logits, new = network.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    return compile_sgd(config, apply, variables["params"], variables["batch_stats"])


def compile_sgd(
    config, apply: Callable, params: PyTree, stats: PyTree
) -> tuple[jax.stages.Compiled, float, Callable[[int], dict]]:
    """A plain training step of a network on one device and a batch of noise.

    Args:
      config: of the network.
      apply: maps parameters, statistics and images to logits and new statistics.
      params: the first parameters.
      stats: the first statistics.
    """
    optimizer = optax.sgd(LEARNING_RATE, momentum=0.9)

    def step(state, batch):
        params, stats, momentum = state
        images, labels = batch
        images = ((images.astype(jnp.float32) - 127.5) / 64).astype(config.model.dtype)

        def loss(params):
            logits, new = apply(params, stats, images)
            targets = jax.nn.one_hot(labels, logits.shape[-1])
            decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
            return jnp.mean(optax.softmax_cross_entropy(logits, targets)) + WEIGHT_DECAY * 0.5 * decay, (new, logits)

        (value, (stats, logits)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(gradients, momentum, params)
        error = jnp.mean(jnp.argmax(logits, -1) != labels)
        return (optax.apply_updates(params, updates), stats, momentum), dict(loss=value, error=error)

    state = params, stats, optimizer.init(params)
    batch = tuple(map(jnp.asarray, images_and_labels(config)))
    program, seconds = timing.compiled(jax.jit(step, donate_argnums=0), state, batch)
    return program, seconds, timing.onwards(program, state, batch)
