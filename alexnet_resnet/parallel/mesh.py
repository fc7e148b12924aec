"""The mesh of devices, and how a batch lies on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alexnet_resnet.errors import UserError


def create(data: int, model: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh ('data', 'model').

    Args:
      data: the devices along the first axis; -1 takes all that are left.
      model: those along the second.
      devices: those to use; by default all of all processes.

    Raises:
      UserError: the devices cannot be laid out so.
    """
    count = jax.device_count() if devices is None else len(devices)
    if model < 1 or count % model:
        raise UserError(f"parallel.model={model}: expected a divisor of the number of devices, {count}.")
    if data == -1:
        data = count // model
    if data < 1 or data * model != count:
        raise UserError(
            f"parallel.data={data}: expected {count // model}, or -1, so that data x model is the number of devices, "
            f"{count}."
        )
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, model), ("data", "model"), axis_types=axes, devices=devices)


def check_batch(field: str, batch_size: int, shards: int) -> None:
    """Raises UserError unless the batch falls into `shards` equal parts."""
    if batch_size % shards:
        raise UserError(f"{field}={batch_size}: expected a multiple of {shards}, the devices that share a batch.")


def round_up(batch_size: int, shards: int) -> int:
    """The least batch of at least `batch_size`, and not empty, that falls into `shards` equal parts."""
    return max(1, -(-batch_size // shards)) * shards


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axes: tuple[str, ...] = ("data",)) -> NamedSharding:
    """The examples are shared out along the named axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(axes))


def share(batch_size: int, sharding: NamedSharding) -> np.ndarray:
    """The places in a batch that this process's devices hold, and that it has to read: ascending, int64.

    Where the mesh's other axis spans hosts, several of them hold the same. On a TPU pod, whose devices are laid out
    along its wires, they need not follow each other.
    """
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for (part,) in held]))


def put_batch(
    batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """This process's share of a batch as global arrays [B, ...]. Returns before the copy has ended.

    Args:
      batch: numpy arrays with the examples of `share`.
      sharding: how the examples are split over the devices.
      batch_size: B over all processes; by default that of the arrays, which suits one process.
    """
    size = batch_size or len(next(iter(batch.values())))
    places = share(size, sharding)

    def put(array: np.ndarray) -> jax.Array:
        def held(index: tuple[slice, ...]) -> np.ndarray:
            begin, end, _ = index[0].indices(size)
            first = int(np.searchsorted(places, begin))
            return array[first : first + end - begin]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, held)

    return {name: put(array) for name, array in batch.items()}


def own_rows(array: jax.Array) -> np.ndarray:
    """What this process holds of a global array that is split along its first axis: the rows of `share`, in order."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
