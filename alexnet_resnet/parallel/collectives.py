"""What a compiled program exchanges between devices, read out of its text.

Bytes are always those that one device receives, and the fewest with which any algorithm can do it. Of an array of S
bytes, exchanged among n devices:

- all-gather, with S the result: the others' parts, S (n - 1) / n.
- reduce-scatter, with S the whole that is summed: the others' terms of its own part, S (n - 1) / n.
- all-reduce: both, one after the other, S 2 (n - 1) / n (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
  algorithms for clusters of workstations"). Of two devices each receives S, the other's terms.
- all-to-all: what the others have for it, S (n - 1) / n. The rest hand on whole arrays, S.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

KINDS = (
    *("all-gather", "reduce-scatter", "all-reduce", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)

_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Part:
    """One array of an exchange; the compiler combines the exchanges of many arrays into one.

    Attributes:
      scope: the program's name for it, such as 'jit(f)/transpose(jvp(conv3))/reduce_scatter'.
      shape: what one device has of it afterwards.
      bytes: what each device receives, as the module counts.
    """

    scope: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def backward(self) -> bool:
        """Whether it belongs to the gradient's way back through the network."""
        return "transpose(" in self.scope


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes along which the devices exchange.
      group: how many devices take part in each exchange.
      scope: the program's name for it. Of several arrays: what theirs begin with, and the rest in brackets.
      parts: the arrays that are exchanged.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    scope: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """What each device receives of all arrays, as the module counts."""
        return sum(part.bytes for part in self.parts)

    @property
    def backward(self) -> bool:
        """Whether it belongs, or some of it, to the gradient's way back through the network."""
        return "transpose(" in self.scope


def read(text: str, mesh: Mesh) -> list[Collective]:
    """The exchanges between two devices or more in a compiled program's text, in its order.

    Args:
      text: `jax.jit(f).lower(...).compile().as_text()`.
      mesh: what it was compiled for, on which its devices are numbered row by row.

    Raises:
      ValueError: the text says in a notation unknown here who exchanges.
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
        arrays = [(dtype, tuple(map(int, filter(None, size.split(","))))) for dtype, size in _ARRAY.findall(result)]
        if started and kind in ("all-gather", "collective-permute"):
            # These name what goes in, what comes out, and for some a context.
            arrays = arrays[1:2] if len(arrays) < 4 else arrays[len(arrays) // 2 :]
        scopes = _scopes(scope[1] if scope else "", len(arrays))
        parts = tuple(
            Part(name, shape, _received(kind, dtype, shape, size))
            for name, (dtype, shape) in zip(scopes, arrays, strict=True)
        )
        yield Collective(kind, _axes(groups, mesh), size, scope[1] if scope else "", parts)


def _scopes(scope: str, count: int) -> list[str]:
    """The name of each array, given that of all: 'f/(a:b)' is of 'f/a' and 'f/b'."""
    if combined := re.fullmatch(r"(|.*?/)\((.*)\)", scope):
        names = combined[2].split(":")
        if len(names) == count:
            return [combined[1] + name for name in names]
    return [scope] * count


def _groups(rest: str, devices: int) -> list[list[int]]:
    """The devices that exchange with each other; pairs of a permutation count as groups."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", listed[1])]
    # Rows of an array of all numbers, reshaped, transposed and reshaped again.
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, source, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        numbers = np.arange(math.prod(source)).reshape(source)
        return (numbers.transpose(order) if order else numbers).reshape(shape).tolist()
    # The axes of a mesh that the compiler has made up, possibly a stretch of one: 'axis:(what is left of it)size'.
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}", rest):
        return _groups_along(*named.groups())
    if re.search(r"replica_groups=\{\}", rest):
        return [list(range(devices))]
    raise ValueError(f"{rest}: expected replica groups in a notation that is known here.")


def _groups_along(mesh: str, order: str | None, axes: str) -> list[list[int]]:
    """The groups along some axes, each as the compiler writes it: mesh 'a'=2,'b'=4, order [4,2]T(1,0), axes 'a'."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    numbers = np.arange(math.prod(sizes.values()))
    if order and (tiled := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)):
        shape, transposed = ([int(n) for n in part.split(",")] if part else None for part in tiled.groups())
        numbers = numbers.reshape(shape).transpose(transposed)
    elif order:
        numbers = np.array([int(n) for n in order.split(",")])
    used = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    shape, along = [], []
    for name, size in sizes.items():
        before, stretch = (int(n) if n else None for n in used.get(name, ("", "")))
        pieces = (before, stretch, size // (before * stretch)) if before else (size,)
        along += [len(shape) + (1 if before else 0)] * (name in used)
        shape += pieces
    across = [axis for axis in range(len(shape)) if axis not in along]
    width = math.prod(shape[axis] for axis in along)
    return numbers.reshape(shape).transpose(*across, *along).reshape(-1, width).tolist()


def _axes(groups: list[list[int]], mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the members of a group differ."""
    places = [np.unravel_index(group, mesh.devices.shape) for group in groups]
    return tuple(name for axis, name in enumerate(mesh.axis_names) if any(np.ptp(place[axis]) for place in places))


def _received(kind: str, dtype: str, shape: tuple[int, ...], group: int) -> int:
    """Bytes of an array that reach each device, given what the result is there."""
    size = math.prod(shape) * _bits(dtype) // 8
    if kind == "reduce-scatter":
        return size * (group - 1)
    if kind == "all-reduce":
        return size * 2 * (group - 1) // group
    return size * (group - 1) // group if kind in ("all-gather", "all-to-all") else size


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
