"""The mesh of devices, and how a batch lies on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alexnet_resnet.errors import UserError


def create(parallel, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh ('data', 'model') that `config.parallel` describes.

    Args:
      parallel: `data` and `model`, the devices along each axis; data=-1 takes all that are left.
      devices: those to use; by default all of all processes.

    Raises:
      UserError: the devices cannot be laid out so.
    """
    count = jax.device_count() if devices is None else len(devices)
    data, model = parallel.data, parallel.model
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


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axes: tuple[str, ...] = ("data",)) -> NamedSharding:
    """The examples are shared out along the named axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(axes))


def share(batch_size: int, sharding: NamedSharding) -> slice:
    """The part of a batch that this process's devices hold, and that it has to read."""
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    parts = [part.indices(batch_size)[:2] for (part,) in held]
    return slice(min(begin for begin, _ in parts), max(end for _, end in parts))


def put_batch(
    batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """This process's share of a batch as global arrays [B, ...]. Returns before the copy has ended.

    Args:
      batch: numpy arrays with the examples of `share`.
      sharding: how the examples are split over the devices.
      batch_size: B over all processes; by default that of the arrays, which suits one process.
    """
    return {
        name: jax.make_array_from_process_local_data(sharding, array, (batch_size or len(array), *array.shape[1:]))
        for name, array in batch.items()
    }
