"""What a training step exchanges between devices, layer by layer, beside the least, and what each of them holds."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import summary
from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import collectives, strategies
from alexnet_resnet.parallel.collectives import Collective, Part
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib

# What is not of one layer: the sums of gradients; the loss, the error and the norms, all single numbers; and what
# should not be there.
GRADIENTS, MEASUREMENTS, OTHERS = "gradients", "measurements", "others"
DIRECTIONS = ("forward", "backward")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What one collective of the compiled step moves for one layer.

    Attributes:
      layer: its name, or 'gradients', 'measurements' or 'others'.
      direction: 'forward' or 'backward'.
      kind: one of `collectives.KINDS`.
      axes: the mesh axes along which the devices exchange.
      bytes: what each device receives, as `parallel.collectives` counts.
    """

    layer: str
    direction: str
    kind: str
    axes: tuple[str, ...]
    bytes: int


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found in the compiled step.

    Attributes:
      network: the network's name.
      strategy: how it is spread.
      batch_size: examples of a step, on all devices together.
      layers: the names of all, in the order of computation, and then of what is no layer.
      exchanges: of every collective between devices.
      least: bytes that each device must receive, by layer and direction. Where the gradients of two parameters are
        equal, as those of the two offsets that meet at a projection shortcut, the compiler can be below it.
      parameters: how many one device holds.
      parameter_bytes: what these take.
      optimizer_bytes: what its share of the optimizer's state takes.
      temporary_bytes: the buffer for all that the compiled step computes on a device besides its results
        (`memory_analysis().temp_size_in_bytes`). It is as large as what lives there at the worst moment: activations
        that the backward pass needs, gradients, and the operations' scratch memory. Another compiler has another
        figure.
      operations: floating-point operations of one device, as the compiler counts them (`cost_analysis()`).
    """

    network: str
    strategy: Strategy
    batch_size: int
    layers: tuple[str, ...]
    exchanges: tuple[Exchange, ...]
    least: dict[tuple[str, str], int]
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    temporary_bytes: int
    operations: float

    def received(self, layer: str, direction: str) -> int:
        """The bytes that each device receives for a layer."""
        return sum(found.bytes for found in self.exchanges if (found.layer, found.direction) == (layer, direction))

    def exchanging(self) -> list[str]:
        """The names of the layers, and of what is no layer, that exchange something or should."""
        named = {found.layer for found in self.exchanges} | {name for name, _ in self.least}
        return [name for name in self.layers if name in named]

    def kinds(self, layer: str, direction: str) -> str:
        """The collectives of a layer, for people: such as 'all-gather' or '2 all-reduce'."""
        kinds = [found.kind for found in self.exchanges if (found.layer, found.direction) == (layer, direction)]
        counts = {kind: kinds.count(kind) for kind in kinds}
        return ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in counts.items())


def strategy_of(config) -> Strategy:
    """The strategy of a configuration over the devices that it asks for, by default all.

    Where there are fewer, or only one, they are simulated on the processor; to be called before JAX has been used.

    Raises:
      UserError: as `config.check` and `strategies.create`; blocks that are scanned or rematerialised.
    """
    config_lib.check(config)
    for field, value in summary.WRITTEN_OUT.items():
        if config.model.get(field, value) != value:
            raise UserError(f"model.{field}={config.model[field]!r}: expected {value!r}, to tell the layers apart.")
    data, model = strategies.shape(config)
    count = data * model if data > 0 else max(2, model)
    if jax.config.jax_num_cpu_devices < count and "xla_force_host_platform_device_count" not in os.getenv(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices() if jax.device_count() >= count else jax.devices("cpu")
    return strategies.create(config, devices[:count] if data > 0 else devices)


def strategies_of(config) -> list[Strategy]:
    """All strategies that the network of a configuration can be spread by, its own among them, over the same devices.

    Raises:
      UserError: as `strategy_of`, of any of them.
    """
    own = strategy_of(config)
    spreads = []
    for name in strategies.supported(config.model):
        other = config.copy_and_resolve_references()
        other.parallel.update(strategy=name, data=-1, model=-1)
        spreads.append(own if name == own.name else strategies.create(other, list(own.mesh.devices.flat)))
    return spreads


def audit(config, strategy: Strategy) -> Audit:
    """Compiles a configuration's training step for a strategy's mesh and reads what it exchanges. Nothing is run.

    Args:
      config: the run's configuration; its section `parallel` is not looked at.
      strategy: one that its network can be spread by.

    Raises:
      UserError: as `models.create`.
    """
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 100, 10)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    state = strategy.place(state_lib.like(config, network, optimizer, strategy.everywhere))
    step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data)
    program = step.lower(state, _batch(config, strategy)).compile()
    rows = summary.rows(config.model, network.image_shape, network.num_classes)
    moments = _moments(state.batch_stats)
    # A batch normalisation whose groups span devices sums on its way back what its parameters' gradients are.
    spanning = moments if _spans(config, strategy) else {}
    names = {row.name for row in rows if row.parameters or "norm" in row.name}
    exchanges = []
    for collective in collectives.read(program.as_text(), strategy.mesh):
        sizes = {}
        for part in collective.parts:
            owner = _owner(part, collective, strategy, names, spanning)
            sizes[owner] = sizes.get(owner, 0) + part.bytes
        exchanges += [Exchange(*owner, collective.kind, collective.axes, size) for owner, size in sizes.items()]
    fewest = least(config, strategy, rows, state.params, moments, spanning)
    return Audit(
        network=config.model.name,
        strategy=strategy,
        batch_size=config.train.batch_size,
        layers=(*(row.name for row in rows), GRADIENTS, MEASUREMENTS, OTHERS),
        exchanges=tuple(exchanges),
        least={key: size for key, size in fewest.items() if size},
        parameters=sum(map(_part, jax.tree.leaves(state.params))),
        parameter_bytes=_held(state.params),
        optimizer_bytes=_held(state.opt_state),
        temporary_bytes=program.memory_analysis().temp_size_in_bytes,
        operations=float(program.cost_analysis()["flops"]),
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


def _part(leaf) -> int:
    """The elements of an array that one device holds."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape)))


def _held(tree) -> int:
    """The bytes of a tree of arrays that one device holds."""
    return sum(_part(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _owned(tree) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Each array with the name of its layer."""
    return [
        ("/".join(str(key.key) for key in path[:-1]), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _moments(stats) -> dict[str, int]:
    """The bytes of the running moments of each batch normalisation that one device holds."""
    sizes = {}
    for name, leaf in _owned(stats):
        sizes[name] = sizes.get(name, 0) + _held(leaf)
    return sizes


def _spans(config, strategy: Strategy) -> bool:
    """Whether batch statistics are of examples on several devices."""
    part = config.train.batch_size // strategy.shards
    return (config.model.get("ghost_batch", 0) or config.train.batch_size) > part


def _owner(
    part: Part, collective: Collective, strategy: Strategy, layers: set[str], spanning: dict[str, int]
) -> tuple[str, str]:
    """The layer and the direction that an array of an exchange belongs to."""
    if not part.shape:
        return MEASUREMENTS, "forward"
    # A transformation stands around the first name it meets, a function after its caller's name, where blocks share it:
    # transpose(jvp(stage1))/0/jit(block)/conv1.
    scope = re.sub(r"transpose\(|jvp\(|jit\(\w+\)/|\)", "", part.scope)
    within = [name for name in layers if re.search(rf"(^|[/:(]){re.escape(name)}([/:]|$)", scope)]
    layer = max(within, key=len, default=OTHERS)
    direction = "backward" if part.backward else "forward"
    sums = part.backward and collective.kind == "all-reduce"
    if sums and layer in layers - spanning.keys() and _summed(strategy, layer).issuperset(collective.axes):
        return GRADIENTS, direction
    return layer, direction


def _summed(strategy: Strategy, layer: str) -> set[str]:
    """The mesh axes over which the gradients of a layer's parameters are summed where all devices hold these."""
    connected = strategy.name == "hybrid" and layer in strategy.network.CONNECTED
    return {"data"} if strategy.name == "columns" or connected else {"data", "model"}


def _all_reduce(size: int, devices: int) -> int:
    return size * 2 * (devices - 1) // devices


def least(
    config,
    strategy: Strategy,
    rows: Sequence[summary.Row],
    params: PyTree,
    moments: Mapping[str, int],
    spanning: Mapping[str, int],
) -> dict[tuple[str, str], int]:
    """Bytes that each device must receive: what it lacks of what it computes with, and of sums the others' terms.

    Args:
      config: the run's configuration.
      strategy: how its network is spread.
      rows: the network's layers.
      params: the parameters as ShapeDtypeStructs, laid out.
      moments: the bytes of each batch normalisation's running moments on one device.
      spanning: those of them whose groups of examples span devices.
    """
    data, model = (strategy.mesh.shape[axis] for axis in ("data", "model"))
    sizes = {}

    def add(name: str, direction: str, size: int) -> None:
        sizes[name, direction] = sizes.get((name, direction), 0) + size

    if strategy.name in ("columns", "hybrid"):
        shapes = {row.name: row.output for row in rows}
        inputs = dict(zip(list(shapes)[1:], list(shapes)[:-1], strict=True))
        examples, size = config.train.batch_size // data, jnp.dtype(config.model.dtype).itemsize
        for name in _meetings(config, rows, strategy.name):
            lacking = int(np.prod(shapes[inputs[name]])) * examples * size * (model - 1) // model
            add(name, "forward", lacking)
            add(name, "backward", lacking)
        add("fc8", "forward", _all_reduce(shapes["fc8"][0] * examples * 4, model))
    for name, leaf in _owned(params):
        axes = set(leaf.sharding.spec)
        if strategy.name == "fsdp" and "data" in axes:
            add(name, "forward", _held(leaf) * (data - 1))
            if name not in spanning:
                add(name, "backward", _held(leaf) * (data - 1))
        if name not in spanning:
            devices = int(np.prod([strategy.mesh.shape[axis] for axis in _summed(strategy, name) - axes]))
            add(GRADIENTS, "backward", _all_reduce(_held(leaf), devices))
    for name, size in moments.items():
        # Of the groups of all devices, be it for normalisation or for the running moments alone.
        add(name, "forward", _all_reduce(size, strategy.shards))
        if name in spanning:
            add(name, "backward", _all_reduce(size, strategy.shards))
    return sizes


def _meetings(config, rows: list[summary.Row], strategy: str) -> list[str]:
    """The layers that see all columns, or all of a batch, while their inputs are on several devices."""
    convs = [row.name for row in rows if row.name.startswith("conv")]
    first = next(name for name in convs if int(name[4:]) > 2)
    names = ["fc6", "fc7"]
    if strategy == "columns":
        across = [row.name for row in rows if row.name in ("norm1", "norm2") and config.model.lrn_across == "all"]
        names += [name for name in convs if name in (first, "conv6")] + across * (config.model.norm == "lrn")
    return [row.name for row in rows if row.name in names]


def table(found: Audit) -> str:
    """The audit as text: a line for each layer that exchanges anything, the sums, and the memory."""
    lines, below = [("layer", *(cell for way in DIRECTIONS for cell in (way, "bytes", "least")))], []
    for name in found.exchanging():
        line = [name]
        for way in DIRECTIONS:
            size, fewest = found.received(name, way), found.least.get((name, way), 0)
            line += [found.kinds(name, way), f"{size:,}" if size else "", f"{fewest:,}" if fewest else ""]
            below += [name] * (size < fewest)
        lines.append(tuple(line))
    total = ["total"]
    for way in DIRECTIONS:
        size = sum(found.received(name, way) for name in found.layers)
        total += ["", f"{size:,}", f"{sum(fewest for key, fewest in found.least.items() if key[1] == way):,}"]
    text = _columns([*lines, tuple(total)], left=(0, 1, 4))
    rule = "-" * max(map(len, text))
    held = _columns(
        [
            ("each device holds", "bytes", ""),
            ("parameters", f"{found.parameter_bytes:,}", f"{found.parameters:,} numbers"),
            ("optimizer state", f"{found.optimizer_bytes:,}", ""),
            (
                *("activations", f"{found.temporary_bytes:,}"),
                "XLA's temporaries: activations kept for the way back, gradients, scratch",
            ),
        ],
        left=(0, 2),
    )
    notes = []
    if MEASUREMENTS in found.exchanging():
        notes.append(f"{MEASUREMENTS}: the loss, the error and the norms, one number each")
    notes += [f"below the least, for the compiler sums equal gradients once: {', '.join(below)}"] * bool(below)
    title = f"{found.network} on {found.strategy}, batch {found.batch_size}: what each device receives in a step"
    return "\n".join([title, rule, text[0], rule, *text[1:-1], rule, text[-1], rule, *held, rule, *notes]).rstrip("\n-")


def _columns(lines: Sequence[tuple[str, ...]], left: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join((cell.ljust if i in left else cell.rjust)(widths[i]) for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]


def comparison(audits: Sequence[Audit]) -> str:
    """A line for each strategy: megabytes (10^6 bytes) that each device receives in a step, and those it holds."""
    head = ("strategy", "mesh", "forward", "backward", "gradients", "least", "parameters", "optimizer", "activations")
    lines = [head]
    for found in audits:
        ways = {way: sum(e.bytes for e in found.exchanges if e.direction == way) for way in DIRECTIONS}
        gradients = found.received(GRADIENTS, "backward")
        sizes = (ways["forward"], ways["backward"] - gradients, gradients, sum(found.least.values()))
        sizes += (found.parameter_bytes, found.optimizer_bytes, found.temporary_bytes)
        lines.append((found.strategy.name, mesh(found), *(f"{size / 1e6:,.3f}" for size in sizes)))
    text = _columns(lines, left=(0, 1))
    rule = "-" * max(map(len, text))
    first = audits[0]
    title = f"{headline(first)}: MB that each receives in a step, and holds"
    return "\n".join([title, rule, text[0], rule, *text[1:]])


def headline(found: Audit) -> str:
    """The network, the batch and the devices, which audits that are compared have in common."""
    devices = found.strategy.mesh.devices
    return f"{found.network}, batch {found.batch_size}, {devices.size} {devices.flat[0].platform.upper()} devices"


def mesh(found: Audit) -> str:
    """Such as '1x2': the devices along `data` and along `model`."""
    return "x".join(map(str, found.strategy.mesh.devices.shape))
