"""Beginning a run with the parameters and the velocity that another one ended with: a recipe in stages."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import runs
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.optimizer import Optimizer
from alexnet_resnet.training.state import Average, Network, TrainState


def check(config: ConfigDict, network: Network, workdir: str) -> None:
    """Makes sure that the run which `train.init_from` names can be begun from; a run that goes on needs it no more.

    Args:
      config: the new run's configuration.
      network: its network.
      workdir: its folder.

    Raises:
      UserError: no such run, none of its checkpoints is finished, or it has other parameters or another velocity.
    """
    folder = config.train.init_from
    if not folder or _checkpoints(workdir):
        return
    field = f"train.init_from={folder!r}"
    try:
        before = workdir_lib.read_config(folder)
    except UserError as error:
        raise UserError(field + str(error).removeprefix(f"workdir={folder!r}")) from error
    if not _checkpoints(folder):
        raise UserError(f"{field}: expected a run with a finished checkpoint, found none yet.")
    found, asked = (_named(shapes) for shapes in (state_lib.from_config(before).shapes, network.shapes))
    for name in sorted(found.keys() | asked.keys()):
        if found.get(name) != asked.get(name):
            raise UserError(
                f"{field}: expected the same parameters, but {name} is {found.get(name, 'absent')} there and "
                f"{asked.get(name, 'absent')} here."
            )
    orders = [of.optimizer.momentum_order for of in (before, config)]
    if orders[0] != orders[1]:
        raise UserError(
            f"{field}: expected optimizer.momentum_order={orders[0]!r} as there, not {orders[1]!r}, which has another "
            "velocity."
        )


def begin(
    config: ConfigDict, state: TrainState, network: Network, optimizer: Optimizer, strategy: Strategy
) -> TrainState:
    """The state before the first step: `state`, with what `train.init_from` ended with where that names a run.

    From its last checkpoint are the parameters, batch normalisation's moments and the velocity. The step is 0, and the
    schedule, the random key, the mean image and the colours are the new run's; a moving average begins anew.

    Args:
      config: the new run's configuration, as `check` has passed it.
      state: its own beginning, laid out as `strategy` says.
      network: its network.
      optimizer: its optimizer.
      strategy: how the state is spread.

    Raises:
      UserError: as `evaluation.runs.restore`.
    """
    if not config.train.init_from:
        return state
    _, last = runs.restore(config.train.init_from, "last", strategy.everywhere)
    velocity = optax.tree.get(last.opt_state, "trace")

    def replaced(state, params, batch_stats, velocity):
        average = state.average
        if isinstance(average, Average):
            # Copies: a step is given the memory of both.
            average = jax.tree.map(jnp.copy, Average(params, batch_stats))
        opt_state = optax.tree.set(state.opt_state, trace=velocity)
        return dataclasses.replace(state, params=params, batch_stats=batch_stats, opt_state=opt_state, average=average)

    layout = functools.partial(jax.jit, out_shardings=state_lib.shardings(network, optimizer, strategy))
    return layout(replaced)(state, last.params, last.batch_stats, velocity)


def said(config: ConfigDict) -> str:
    """For the line that a run begins with: what it begins from, or nothing."""
    return f" from the end of {config.train.init_from}" if config.train.init_from else ""


def _checkpoints(workdir: str) -> list[str]:
    """The finished checkpoints in a run's folder; Orbax gives a folder its step as name when it is complete."""
    folder = os.path.join(workdir, workdir_lib.CHECKPOINTS)
    return [name for name in os.listdir(folder) if name.isdigit()] if os.path.isdir(folder) else []


def _named(shapes) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {optimizer_lib.name_of(path[1:]): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
