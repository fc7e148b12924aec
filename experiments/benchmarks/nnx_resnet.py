"""A peer: residual networks in Flax NNX with its own layers, `nnx.Conv` and `nnx.BatchNorm`, else as ours are built.

The step is the Linen peer's, a jitted function of arrays as ours is: what differs from us are the layers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from experiments.benchmarks.blueprints import Block, Conv, Residual
from experiments.benchmarks.linen_resnet import compile_sgd, pad


class NnxBlock(nnx.Module):
    """A residual block."""

    def __init__(self, block: Block, dtype: str, rngs: nnx.Rngs):
        for number, layer in enumerate(block.convs, start=1):
            setattr(self, f"conv{number}", _conv(layer, dtype, rngs))
            setattr(self, f"bn{number}", _norm(layer.features, dtype, rngs))
        if block.projection:
            self.shortcut_conv = _conv(block.projection, dtype, rngs)
            self.shortcut_bn = _norm(block.features, dtype, rngs)
        self.block = nnx.static(block)

    def __call__(self, x: Array) -> Array:
        y = x
        for number in range(1, len(self.block.convs) + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < len(self.block.convs):
                y = nnx.relu(y)
        x = self.shortcut_bn(self.shortcut_conv(x)) if self.block.projection else pad(x, self.block)
        return nnx.relu(x + y)


class NnxResNet(nnx.Module):
    """A residual network."""

    def __init__(self, blueprint: Residual, dtype: str, rngs: nnx.Rngs):
        self.conv1 = _conv(blueprint.stem, dtype, rngs)
        self.bn1 = _norm(blueprint.stem.features, dtype, rngs)
        for number, stage in enumerate(blueprint.stages, start=1):
            setattr(self, f"stage{number}", nnx.List([NnxBlock(block, dtype, rngs) for block in stage]))
        self.fc = nnx.Linear(blueprint.features, blueprint.classes, rngs=rngs)
        self.stages = len(blueprint.stages)
        self.pooled = blueprint.pooled

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.bn1(self.conv1(x)))
        if self.pooled:
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for number in range(1, self.stages + 1):
            for block in getattr(self, f"stage{number}"):
                x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)).astype(jnp.float32))


def _conv(layer: Conv, dtype: str, rngs: nnx.Rngs) -> nnx.Conv:
    side, window, stride = ((layer.window // 2,) * 2,) * 2, (layer.window,) * 2, (layer.stride,) * 2
    fixed = dict(padding=side, use_bias=False, dtype=jnp.dtype(dtype), rngs=rngs)
    return nnx.Conv(layer.inputs, layer.features, window, stride, **fixed)


def _norm(features: int, dtype: str, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(dtype), rngs=rngs)


def create(config, blueprint: Residual) -> tuple[jax.stages.Compiled, float, Callable[[int], dict]]:
    """The compiled training step on one device, as `training_steps.create` returns ours."""

    def build():
        return NnxResNet(blueprint, config.model.dtype, nnx.Rngs(0))

    def arrays():
        _, params, stats = nnx.split(build(), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    graphdef, _ = nnx.split(nnx.eval_shape(build))
    params, stats = jax.jit(arrays)()

    def apply(params, stats, images):
        network = nnx.merge(graphdef, params, stats, copy=True)
        logits = network(images)
        return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    return compile_sgd(config, apply, params, stats)
