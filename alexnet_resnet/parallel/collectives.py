"""What a compiled program exchanges between devices, read out of its text."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes along which the devices exchange.
      group: how many devices take part in each exchange.
      bytes: what each device receives at least: of an all-gather the others' parts, of a reduce-scatter their terms of
        its part, of an all-reduce both.
      scope: the program's name for it, such as 'jit(f)/transpose(jvp(conv3))/reduce_scatter'.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: int
    scope: str

    @property
    def backward(self) -> bool:
        """Whether it belongs to the gradient's way back through the network."""
        return "transpose(" in self.scope


def read(text: str, mesh: Mesh) -> list[Collective]:
    """The exchanges between two devices or more in a compiled program's text, in its order.

    Args:
      text: `jax.jit(f).lower(...).compile().as_text()`.
      mesh: what it was compiled for, on which its devices are numbered row by row.
    """
    return list(_read(text, mesh))


def _read(text: str, mesh: Mesh) -> Iterator[Collective]:
    for line in text.splitlines():
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        result, kind, started, rest = found.groups()
        groups = _groups(rest, mesh.size)
        size = max(len(group) for group in groups)
        if size < 2:
            continue
        scope = re.search(r'op_name="([^"]*)"', rest)
        arrays = _ARRAY.findall(result)
        if started and kind in ("all-gather", "collective-permute"):
            # These name what goes in, what comes out, and for some a context.
            arrays = arrays[1:2] if len(arrays) < 4 else arrays[len(arrays) // 2 :]
        yield Collective(kind, _axes(groups, mesh), size, _received(kind, arrays, size), scope[1] if scope else "")


def _groups(rest: str, devices: int) -> list[list[int]]:
    """The devices that exchange with each other; pairs of a permutation count as groups."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", listed[1])]
    # Rows of an array of all numbers, reshaped, transposed and reshaped again.
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, source, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        numbers = np.arange(math.prod(source)).reshape(source)
        return (numbers.transpose(order) if order else numbers).reshape(shape).tolist()
    return [list(range(devices))]


def _axes(groups: list[list[int]], mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the members of a group differ."""
    places = [np.unravel_index(group, mesh.devices.shape) for group in groups]
    return tuple(name for axis, name in enumerate(mesh.axis_names) if any(np.ptp(place[axis]) for place in places))


def _received(kind: str, arrays: list[tuple[str, str]], group: int) -> int:
    """Bytes that reach each device, given the types and shapes of the result."""
    total = sum(math.prod(map(int, filter(None, shape.split(",")))) * _bits(dtype) // 8 for dtype, shape in arrays)
    if kind == "collective-permute":
        return total
    if kind == "reduce-scatter":
        return total * (group - 1)
    return total * (group - 1) // group * (2 if kind == "all-reduce" else 1)


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
