"""The columns of AlexNet: parallel halves of a network that meet only at named layers (section 3.2, figure 2).

An activation is a list with one array for every column that is present here. On one device all of them are; in the
split over two devices each holds one, and where the columns meet the devices exchange. One network definition serves
both, given a `Columns` value.

A convolution of a column is a convolution of its own with its slice of the kernel. The alternative, one convolution
with feature_group_count, makes XLA's partitioner gather the whole batch around it, and is slower on CPUs.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Columns:
    """How many columns a layer has and where they are.

    Attributes:
      total: the number of columns of the network, 1 or more.
      axis: the mesh axis along which each device holds one column; None when all of them are on this device.
    """

    total: int = 1
    axis: str | None = None

    @property
    def here(self) -> int:
        """The number of columns on this device."""
        return 1 if self.axis else self.total

    def indices(self) -> list:
        """The number of each column present here, from 0; a traced value inside a split."""
        return [lax.axis_index(self.axis)] if self.axis else list(range(self.total))

    def split(self, x: Array, axis: int = -1) -> list[Array]:
        """An array of this device's columns side by side along `axis`, as a list with one array a column."""
        return jnp.split(x, self.here, axis)

    def join(self, parts: list[Array]) -> Array:
        """All columns side by side along the last axis: the exchange between the devices (`all_gather`)."""
        x = jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
        return lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True) if self.axis else x

    def add(self, parts: list[Array]) -> Array:
        """The sum over all columns (`psum` between devices)."""
        x = functools.reduce(jnp.add, parts)
        return lax.psum(x, self.axis) if self.axis else x


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the columns of a network's convolutions and of its fully connected layers are.

    Attributes:
      conv: the columns of the convolutions.
      fc: the columns of the fully connected layers.
      batch_axis: the mesh axis over which the convolutions' batch is split while the fully connected layers see all
        of it (the "one weird trick" of arXiv 1404.5997); None where both see the same batch.
    """

    conv: Columns = Columns()
    fc: Columns = Columns()
    batch_axis: str | None = None

    def to_fc(self, x: Array) -> Array:
        """The batch as the fully connected layers see it."""
        return lax.all_gather(x, self.batch_axis, axis=0, tiled=True) if self.batch_axis else x
