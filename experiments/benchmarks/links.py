"""How long devices take to exchange something over their links: a stated model, nothing measured.

A group of devices exchanges in rings. With S bytes in all and n devices, an all-gather or a reduce-scatter brings each
device S (n - 1) / n bytes in n - 1 steps, an all-reduce twice both; the time is bytes / bandwidth + steps x latency.
Devices within a node make one ring, and the nodes another, one after the other: across nodes goes what a device of the
first ring is left with. All links of a device work at their stated rate and at the same time as all others'.

Devices are numbered node by node, and a mesh ('data', 'model') row by row, so that those along `model` are neighbours.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Link:
    """What a device sends over, and receives as fast at the same time.

    Attributes:
      bandwidth: bytes a second in one direction.
      latency: seconds that a step of a ring takes besides.
    """

    bandwidth: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Ring:
    """One ring that a group exchanges in.

    Attributes:
      members: its devices.
      link: what each of them has to the next.
      steps: from a device to the one before it, the long way round.
    """

    members: int
    link: Link
    steps: int


@dataclasses.dataclass(frozen=True)
class Nodes:
    """Nodes of several devices behind a switch, each of which has a link of its own to the other nodes.

    Attributes:
      title: for people.
      device: what is linked, by JAX's name (`timing.STATED`).
      source: where the figures are from.
      size: the devices of a node.
      inside: a device's link to those of its node.
      between: a device's link to other nodes.
    """

    title: str
    device: str
    source: str
    size: int
    inside: Link
    between: Link

    def rings(self, group: int, stride: int) -> list[Ring]:
        """The rings of a group, the innermost first.

        Args:
          group: its devices.
          stride: from one of them to the next; 1 for neighbours.
        """
        near = min(group, max(1, self.size // stride))
        rings = Ring(near, self.inside, near - 1), Ring(group // near, self.between, group // near - 1)
        return [ring for ring in rings if ring.members > 1]


@dataclasses.dataclass(frozen=True)
class Torus:
    """Chips on a grid, each linked to its neighbours; long dimensions close to a ring.

    A slice of n chips is as square as powers of two allow. A ring through it uses all links of a chip: in each
    dimension two where that closes, else one, since what goes one way comes back on the same links' other direction.

    Attributes:
      title, device, source: as for `Nodes`.
      dimensions: of the grid.
      closing: the fewest chips along a dimension that close to a ring.
      link: of a chip to one neighbour.
    """

    title: str
    device: str
    source: str
    dimensions: int
    closing: int
    link: Link

    def extents(self, count: int) -> list[int]:
        """The chips along each dimension of a slice, the most first."""
        doublings = round(math.log2(count))
        return [2 ** ((doublings + self.dimensions - 1 - i) // self.dimensions) for i in range(self.dimensions)]

    def rings(self, group: int, stride: int) -> list[Ring]:
        """As of `Nodes`. A group that leaves out chips of the first dimension shares its links with those others."""
        links, steps = 0.0, 0
        for dimension, extent in enumerate(self.extents(group * stride)):
            apart = stride if dimension == 0 else 1
            if extent // apart > 1:
                links += (2 if extent >= self.closing else 1) / apart
                steps += extent - apart
        return [Ring(group, Link(links * self.link.bandwidth, self.link.latency), steps)] if group > 1 else []


# The rates are the makers'; the latencies are round figures of ours for what a library and the wires take.
_NVLINK, _NDR, _ICI = Link(450e9, 2e-6), Link(50e9, 5e-6), Link(50e9, 1e-6)
LINKS = {
    "nvlink": Nodes(
        "NVLink, InfiniBand between nodes",
        "NVIDIA H100 80GB HBM3",
        "nodes of 8 GPUs as NVIDIA's DGX H100: NVLink 900 GB/s a GPU, both directions together (H100 data sheet), and "
        "InfiniBand NDR 400 Gb/s a GPU each way between nodes (ConnectX-7 data sheet); 2 and 5 us a step",
        8,
        _NVLINK,
        _NDR,
    ),
    "infiniband": Nodes(
        "InfiniBand only",
        "NVIDIA H100 80GB HBM3",
        "one GPU a node, InfiniBand NDR 400 Gb/s each way (ConnectX-7 data sheet); 5 us a step",
        1,
        _NDR,
        _NDR,
    ),
    "ici_v5e": Torus(
        "TPU v5e ICI",
        "TPU v5 lite",
        "a torus in 2 dimensions that closes from 16 chips on, 1,600 Gb/s a chip each way over 4 links (Google Cloud's "
        "page on TPU v5e); 1 us a step",
        2,
        16,
        _ICI,
    ),
    "ici_v4": Torus(
        "TPU v4 ICI",
        "TPU v4",
        "a torus in 3 dimensions that closes from 4 chips on, 2,400 Gb/s a chip each way over 6 links (Google Cloud's "
        "pages on TPU v4); 1 us a step",
        3,
        4,
        _ICI,
    ),
}


def seconds(fabric: Nodes | Torus, kind: str, received: float, calls: int, group: int, stride: int) -> float:
    """How long exchanges of one kind take.

    Args:
      fabric: what links the devices.
      kind: one of `parallel.collectives.KINDS`.
      received: the bytes that each device receives, in all of them together.
      calls: how many exchanges these are.
      group: the devices that exchange with each other.
      stride: from one of them to the next.
    """
    rings = fabric.rings(group, stride)
    if kind not in ("all-gather", "reduce-scatter", "all-reduce"):
        # Whole arrays that change hands: at worst all of them over the slowest link.
        return max(received / ring.link.bandwidth + calls * ring.link.latency for ring in rings)
    ways, whole, time = (2 if kind == "all-reduce" else 1), received * group / (group - 1), 0.0
    for ring in rings:
        share = whole * (ring.members - 1) / ring.members
        time += share / ring.link.bandwidth + calls * ways * ring.steps * ring.link.latency
        whole /= ring.members
    return time
