"""Stages of residual or plain blocks, one after the other or as a scan, with or without rematerialisation.

Scanned, a stage's first block stands for itself, since it alone may change the shape, and all others are one block
whose arrays have a leading axis. The program then has the length of one block, however deep the network is.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from alexnet_resnet.models.context import Context
from alexnet_resnet.models.draws import Draws

# What the backward pass computes again instead of keeping it: nothing, or each block from its input.
REMAT = ("none", "block")


def run_stage(stage: nnx.Module, x: Float[Array, "N H W C"], remat: str, context: Context) -> Float[Array, "N h w D"]:
    """Calls the blocks of a stage in turn, each under its number: an `nnx.List` of them, or a `ScannedStage`."""
    if isinstance(stage, ScannedStage):
        return stage(x, remat, context)
    program = _programs(context, remat)
    for number, block in enumerate(stage):
        x = context.run(str(number), _run_alone, block, x, program)
    return x


class ScannedStage(nnx.Module):
    """Blocks of which all but the first are one, `rest`, whose arrays have a leading axis: the block's number less one.

    The parameters start as those of blocks made one after the other, bit by bit where the keys are of `Draws`, as
    `models.create` has them, and activations have the same names.

    Args:
      first: the first block.
      build: makes another one from the source of its keys.
      others: how many there are.
      rngs: the source of the 'params' key.
    """

    def __init__(self, first: nnx.Module, build: Callable[[nnx.Rngs], nnx.Module], others: int, rngs: nnx.Rngs):
        self.first = first
        self.rest = _stacked(build, others, rngs) if others else None
        self.others = others

    def __call__(self, x: Float[Array, "N H W C"], remat: str, context: Context) -> Float[Array, "N h w D"]:
        x = context.run("0", _run_alone, self.first, x, _programs(context, remat))
        if not self.others:
            return x
        graphdef, params, stats = nnx.split(self.rest, nnx.Param, nnx.BatchStat)
        call = _functional(graphdef, context, remat)
        # Moments that a block leaves behind come out of the scan in the place of those that went in.
        x, (stats, named) = jax.lax.scan(lambda x, arrays: call(*arrays, x), x, (params, stats))
        if context.train:
            nnx.update(self.rest, stats)
        for number in range(self.others):
            _keep_all(context, str(number + 1), jax.tree.map(lambda values, number=number: values[number], named))
        return x


def _stacked(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """Several blocks as one with a leading axis, drawn from the keys that they would draw one after the other."""
    if not isinstance(rngs, Draws):
        rngs = Draws(rngs.params())
    first = rngs.params.drawn
    block = build(rngs)
    each = rngs.params.drawn - first
    rngs.params.drawn = first + count * each
    starts = first + each * jnp.arange(count)
    arrays = jax.vmap(lambda start: nnx.state(build(rngs.starting(start))))(starts)
    return nnx.merge(nnx.graphdef(block), arrays)


def _functional(graphdef: nnx.GraphDef, context: Context, remat: str) -> Callable:
    """A block as a function of its parameters, its moments and x; what it gives are y, new moments and activations."""
    collects = context.activations is not None

    def block(params: PyTree, stats: PyTree, x: Array) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        own, named = nnx.merge(graphdef, params, stats, copy=True), {}
        inner = dataclasses.replace(context, activations=named if collects else None, path="")
        y = own(x, inner)
        return y, (nnx.state(own, nnx.BatchStat), named | {"": y} if collects else {})

    # Who collects activations keeps them.
    return jax.checkpoint(block) if remat == "block" and not collects else block


def _programs(context: Context, remat: str) -> Callable[[nnx.GraphDef], Callable]:
    """Makes functions of blocks, such as `_functional` has them, of which those that are built alike share one.

    In a function that is being traced it is compiled on its own account, so that it is traced, differentiated and
    lowered once, where ResNet-110 has 17 of a kind. XLA writes each out again.
    """
    # Elsewhere each call of the network would compile it anew.
    traced = isinstance(jnp.zeros(()), jax.core.Tracer)

    @functools.cache
    def program(graphdef: nnx.GraphDef) -> Callable:
        call = _functional(graphdef, context, remat)
        return jax.jit(call) if traced else call

    return program


def _run_alone(block: nnx.Module, x: Array, program: Callable[[nnx.GraphDef], Callable], context: Context) -> Array:
    """Calls a block by its program, if nobody observes what is inside."""
    if context.observes:
        return block(x, context)
    graphdef, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)
    x, (stats, _) = program(graphdef)(params, stats, x)
    if context.train:
        nnx.update(block, stats)
    return x


def _keep_all(context: Context, block: str, named: dict[str, Array]) -> None:
    """Keeps what a block collected under its number."""
    for name, value in named.items():
        context.keep(f"{block}/{name}" if name else block, value)


def stack(tree: PyTree) -> PyTree:
    """The parameters or moments of a written-out network in the form of the scanned one.

    Args:
      tree: nested dictionaries, in which a stage has its blocks' by number.
    """
    return {name: _stack_stage(value) if name.startswith("stage") else value for name, value in tree.items()}


def unstack(tree: PyTree) -> PyTree:
    """The inverse of `stack`."""
    return {name: _unstack_stage(value) if name.startswith("stage") else value for name, value in tree.items()}


def _stack_stage(blocks: dict) -> dict:
    first, *rest = (blocks[key] for key in sorted(blocks, key=int))
    return {"first": first} | ({"rest": jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest)} if rest else {})


def _unstack_stage(stage: dict) -> dict:
    rest = []
    if "rest" in stage:
        count = len(jax.tree.leaves(stage["rest"])[0])
        rest = [jax.tree.map(lambda leaf, number=number: leaf[number], stage["rest"]) for number in range(count)]
    return dict(enumerate([stage["first"], *rest]))
