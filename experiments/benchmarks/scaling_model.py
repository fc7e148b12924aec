"""What a compiled training step exchanges, in sums that can be scaled, and how long it takes on modelled links."""

import dataclasses
from collections.abc import Callable, Mapping

from alexnet_resnet.analysis import audit
from alexnet_resnet.analysis.audit import Audit
from experiments.benchmarks import links

# What an exchange is of. The activations of a layer that sees other devices' columns or examples: the layer waits for
# them, and they grow with the batch. Parameters, gradients and the running moments of batch statistics do not.
ACTIVATIONS, PARAMETERS, GRADIENTS, STATISTICS = "activations", "parameters", "gradients", "statistics"
# The loss and what else is reported, a few bytes that nothing waits for; and what should not be there.
NUMBERS, OTHERS = "numbers", "others"
WAITED_FOR = (ACTIVATIONS, OTHERS)

# The two times of a `Step`.
BOUNDS = ("apart", "overlapped")

# A strategy beats another if its step is shorter by this share of the other's.
MARGIN = 0.01


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The exchanges of a step that are of one kind.

    Attributes:
      what: 'activations', 'parameters', 'gradients', 'statistics', 'numbers' or 'others'.
      kind: one of `parallel.collectives.KINDS`.
      group: how many devices exchange with each other.
      stride: from one of them to the next.
      calls: how many exchanges. All but those of activations and others count as one, as the compilers for
        accelerators combine them.
      bytes: what each device receives.
    """

    what: str
    kind: str
    group: int
    stride: int
    calls: int
    bytes: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A step as it was compiled.

    Attributes:
      data, model: the mesh.
      batch_per_device: the step's examples by the number of devices.
      traffic: what is exchanged.
      least: the bytes that each device must receive (`analysis.audit.least`).
      operations: of one device, as the compiler counts them.
      parameter_bytes, optimizer_bytes: what one device holds.
    """

    data: int
    model: int
    batch_per_device: int
    traffic: tuple[Traffic, ...]
    least: int
    operations: float
    parameter_bytes: int
    optimizer_bytes: int

    @property
    def devices(self) -> int:
        return self.data * self.model

    def received(self, *what: str) -> float:
        """The bytes that each device receives; of all exchanges, or of some."""
        return sum(one.bytes for one in self.traffic if not what or one.what in what)

    def at(self, batch_per_device: float) -> "Program":
        """The same step with another batch: activations and operations in proportion, the rest as it is."""
        share = batch_per_device / self.batch_per_device
        traffic = tuple(
            dataclasses.replace(one, bytes=one.bytes * share) if one.what == ACTIVATIONS else one
            for one in self.traffic
        )
        return dataclasses.replace(
            self, batch_per_device=batch_per_device, traffic=traffic, operations=self.operations * share
        )


def program(found: Audit) -> Program:
    """The sums of an audit."""
    data, model = found.strategy.mesh.devices.shape
    sums: dict[tuple, tuple[int, int]] = {}
    for one in found.exchanges:
        key = _what(found.strategy.name, one), one.kind, one.axes
        calls, size = sums.get(key, (0, 0))
        sums[key] = calls + 1, size + one.bytes
    traffic = tuple(
        Traffic(
            what,
            kind,
            group=(data if "data" in axes else 1) * (model if "model" in axes else 1),
            stride=1 if "model" in axes else model,
            calls=calls if what in WAITED_FOR else 1,
            bytes=size,
        )
        for (what, kind, axes), (calls, size) in sums.items()
    )
    return Program(
        data,
        model,
        found.batch_size // (data * model),
        traffic,
        sum(found.least.values()),
        found.operations,
        found.parameter_bytes,
        found.optimizer_bytes,
    )


def _what(strategy: str, one: audit.Exchange) -> str:
    named = {audit.GRADIENTS: GRADIENTS, audit.MEASUREMENTS: NUMBERS, audit.OTHERS: OTHERS}
    if one.layer in named:
        return named[one.layer]
    if strategy in ("columns", "hybrid"):
        return ACTIVATIONS
    # 'fsdp' gathers a layer's parameters and scatters the sums of their gradients.
    return {"all-gather": PARAMETERS, "reduce-scatter": GRADIENTS, "all-reduce": STATISTICS}.get(one.kind, OTHERS)


@dataclasses.dataclass(frozen=True)
class Step:
    """The seconds of a training step.

    Attributes:
      compute: what a device computes.
      waited: exchanges of activations.
      rest: all other exchanges.
    """

    compute: float
    waited: float
    rest: float

    @property
    def apart(self) -> float:
        """With no overlap: one after the other."""
        return self.compute + self.waited + self.rest

    @property
    def overlapped(self) -> float:
        """With full overlap: all exchanges but those that a layer waits for hide behind what is computed."""
        return self.waited + max(self.compute, self.rest)


def step(program: Program, fabric: links.Nodes | links.Torus, compute: float) -> Step:
    """How long a step takes.

    Args:
      program: what is exchanged.
      fabric: what links the devices.
      compute: seconds that a device computes.
    """
    waited = rest = 0.0
    for one in program.traffic:
        if one.what != NUMBERS:
            time = links.seconds(fabric, one.kind, one.bytes, one.calls, one.group, one.stride)
            if one.what in WAITED_FOR:
                waited += time
            else:
                rest += time
    return Step(compute, waited, rest)


def beats(own: float, other: float) -> bool:
    """Whether a step is shorter than another by more than `MARGIN`."""
    return own < (1 - MARGIN) * other


def beating(own: Mapping[int, float], other: Mapping[int, float]) -> list[int]:
    """The numbers of devices at which a strategy beats another, ascending.

    Args:
      own: the steps of the strategy by the number of devices.
      other: those of the other; numbers that only one of them has are left out.
    """
    return [count for count in sorted(own.keys() & other.keys()) if beats(own[count], other[count])]


def crossover(own: Mapping[int, float], other: Mapping[int, float]) -> int | None:
    """The number of devices from which on a strategy beats another; None if it does not at the largest number.

    Args:
      own, other: as for `beating`.
    """
    first, where = None, beating(own, other)
    for count in sorted(own.keys() & other.keys(), reverse=True):
        if count not in where:
            break
        first = count
    return first


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` for which something holds that holds for all smaller ones; 0 for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
