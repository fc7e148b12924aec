"""What a training step exchanges between devices, layer by layer, beside the least, and what each of them holds."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import summary
from alexnet_resnet.parallel import collectives, strategies
from alexnet_resnet.parallel.collectives import Collective
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib

# What is not of one layer: the sums of gradients, and those of the loss and the norms.
GRADIENTS, MEASUREMENTS = "gradients", "measurements"


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found in the compiled step.

    Attributes:
      exchanges: all collectives of the step.
      least: bytes that each device must receive, by layer and direction ('forward', 'backward').
      parameters: bytes of them on one device.
      optimizer: bytes of its state on one device.
      temporaries: bytes that the compiled step needs besides its arguments and results: mostly activations.
    """

    exchanges: tuple[tuple[str, str, Collective], ...]
    least: dict[tuple[str, str], int]
    parameters: int
    optimizer: int
    temporaries: int


def strategy_of(config) -> Strategy:
    """The strategy of a configuration over this machine's devices, or over simulated ones where there is only one.

    Of these there are as many as the configuration asks for, or two: to be called before anything has used a device.

    Raises:
      UserError: as `config.check` and `strategies.create`.
    """
    config_lib.check(config)
    data, model = strategies.shape(config)
    count = data * model if data > 0 else max(2, model)
    if jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", count)
    return strategies.create(config, jax.devices() if jax.device_count() > 1 else jax.devices("cpu"))


def audit(config, strategy: Strategy) -> Audit:
    """Compiles a configuration's training step for a strategy's mesh and reads what it exchanges. Nothing is run.

    Raises:
      UserError: as `models.create`.
    """
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 100, 10)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    state = strategy.place(state_lib.like(config, network, optimizer, strategy.everywhere))
    step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data)
    program = step.lower(state, _batch(config, strategy)).compile()
    layers = summary.rows(config.model, network.image_shape, network.num_classes)
    named = functools.partial(_owner, {row.name for row in layers if row.parameters or "norm" in row.name})
    found = collectives.read(program.as_text(), strategy.mesh)
    params, moments = _held(state.params), _held(state.opt_state)
    return Audit(
        exchanges=tuple((*named(collective), collective) for collective in found),
        least=_least(config, strategy, layers, state.params),
        parameters=params,
        optimizer=moments,
        temporaries=program.memory_analysis().temp_size_in_bytes,
    )


def _batch(config, strategy: Strategy) -> dict[str, jax.ShapeDtypeStruct]:
    size, side = config.train.batch_size, config.data.image_size
    shapes = {
        "image": ((side, side, config.data.channels), jnp.uint8),
        "offset": ((2,), jnp.int32),
        **dict.fromkeys(("flip", "valid"), ((), jnp.bool_)),
        **dict.fromkeys(("label", "row", "epoch"), ((), jnp.int32)),
    }
    return {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=strategy.batch)
        for name, (shape, dtype) in shapes.items()
    }


def _held(tree) -> int:
    """The bytes of a tree of arrays that one device holds."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _owner(layers: set[str], collective: Collective) -> tuple[str, str]:
    """The layer that a collective belongs to and the direction; the sums of gradients and of scalars have no layer."""
    within = [name for name in layers if re.search(rf"(^|/){re.escape(name)}(/|$)", collective.scope)]
    direction = "backward" if collective.backward else "forward"
    if collective.kind == "all-reduce" and collective.backward:
        return GRADIENTS, "backward"
    if within:
        return max(within, key=len), direction
    return MEASUREMENTS, direction


def _least(config, strategy: Strategy, layers: list[summary.Row], params) -> dict[tuple[str, str], int]:
    """Bytes that each device must receive: what it lacks of what it computes with, and of sums the others' terms.

    A sum over n devices that all of them need costs each 2 (n - 1) / n of its size, of which half for its own part.
    """
    data, model = (strategy.mesh.shape[axis] for axis in ("data", "model"))
    least = {}
    if strategy.name in ("columns", "hybrid"):
        shapes = {row.name: row.output for row in layers}
        inputs = dict(zip(list(shapes)[1:], list(shapes)[:-1], strict=True))
        examples, lacking = config.train.batch_size // data, (model - 1) / model
        size = jnp.dtype(config.model.dtype).itemsize
        for name in _meetings(config, layers, strategy.name):
            count = int(np.prod(shapes[inputs[name]])) * examples * size
            least[name, "forward"] = least[name, "backward"] = int(count * lacking)
        least["fc8", "forward"] = int(shapes["fc8"][0] * examples * 4 * 2 * lacking)
    if strategy.name == "fsdp":
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if "data" in leaf.sharding.spec:
                name = "/".join(str(key.key) for key in path[:-1])
                for direction in ("forward", "backward"):
                    count = leaf.size * leaf.dtype.itemsize * (data - 1) // data
                    least[name, direction] = least.get((name, direction), 0) + count
    least[GRADIENTS, "backward"] = int(sum(_gradient(strategy, path, leaf) for path, leaf in _leaves(params)))
    return {key: count for key, count in least.items() if count}


def _leaves(params):
    return jax.tree_util.tree_leaves_with_path(params)


def _gradient(strategy: Strategy, path: tuple, leaf) -> float:
    """Bytes of the sum of one parameter's gradient over the devices that hold the same part of it."""
    used = {axis for axis in leaf.sharding.spec if axis}
    summed = {"data"} if strategy.name == "columns" else {"data", "model"}
    if strategy.name == "hybrid" and path[0].key in strategy.network.CONNECTED:
        summed = {"data"}
    count = int(np.prod([strategy.mesh.shape[axis] for axis in summed - used]))
    part = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return part * 2 * (count - 1) / count


def _meetings(config, layers: list[summary.Row], strategy: str) -> list[str]:
    """The layers that see all columns and whose own columns are on several devices."""
    convs = [row.name for row in layers if row.name.startswith("conv")]
    first = next(name for name in convs if int(name[4:]) > 2)
    names = ["fc6", "fc7"]
    if strategy == "columns":
        across = [row.name for row in layers if row.name in ("norm1", "norm2") and config.model.lrn_across == "all"]
        names += [name for name in convs if name in (first, "conv6")] + across * (config.model.norm == "lrn")
    return [row.name for row in layers if row.name in names]


def table(config, strategy: Strategy) -> str:
    """The audit as text."""
    found = audit(config, strategy)
    cells = {}
    for name, direction, collective in found.exchanges:
        kinds, total = cells.setdefault((name, direction), [[], 0])
        cells[name, direction] = [kinds + [collective.kind] * (collective.kind not in kinds), total + collective.bytes]
    lines = [("layer", "forward", "bytes", "least", "backward", "bytes", "least")]
    order = [row.name for row in summary.rows(config.model, *_network_shape(config))] + [GRADIENTS, MEASUREMENTS]
    named = {name for name, _ in (*cells, *found.least)}
    sums = {"forward": [0, 0], "backward": [0, 0]}
    for name in (name for name in order if name in named):
        line = [name]
        for direction, total in sums.items():
            kinds, count = cells.get((name, direction), ([], 0))
            least = found.least.get((name, direction), 0)
            total[0] += count
            total[1] += least
            line += [", ".join(kinds), f"{count:,}" if count else "", f"{least:,}" if least else ""]
        lines.append(tuple(line))
    (sent, least), (returned, least_back) = sums.values()
    lines.append(("total", "", f"{sent:,}", f"{least:,}", "", f"{returned:,}", f"{least_back:,}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join((cell.ljust if i in (0, 1, 4) else cell.rjust)(widths[i]) for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, text))
    title = f"{config.model.name} on {strategy}, batch {config.train.batch_size}: bytes received by each device a step"
    memory = (
        f"each device holds {found.parameters:,} bytes of parameters and {found.optimizer:,} of optimizer state; "
        f"the compiled step needs {found.temporaries:,} for activations and other temporaries"
    )
    return "\n".join([title, rule, text[0], rule, *text[1:-1], rule, text[-1], rule, memory])


def _network_shape(config) -> tuple[tuple[int, int, int], int]:
    data = config.data
    return (data.image_size, data.image_size, data.channels), data.num_classes
