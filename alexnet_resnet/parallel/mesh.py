"""The mesh of devices, and how a batch lies on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alexnet_resnet.errors import UserError


def create(parallel) -> Mesh:
    """The mesh ('data', 'model') that `config.parallel` describes, over all devices of all processes.

    Raises:
      UserError: the devices cannot be laid out so.
    """
    devices = jax.device_count()
    data, model = parallel.data, parallel.model
    if model < 1 or devices % model:
        raise UserError(f"parallel.model={model}: expected a divisor of the number of devices, {devices}.")
    if data == -1:
        data = devices // model
    if data < 1 or data * model != devices:
        raise UserError(
            f"parallel.data={data}: expected {devices // model}, or -1, so that data x model is the number of devices, "
            f"{devices}."
        )
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(field: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the mesh's data axis divides the batch."""
    shards = mesh.shape["data"]
    if batch_size % shards:
        raise UserError(f"{field}={batch_size}: expected a multiple of {shards}, the devices that share a batch.")


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The least batch of at least `batch_size`, and not empty, that the mesh's data axis divides."""
    shards = mesh.shape["data"]
    return max(1, -(-batch_size // shards)) * shards


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Each device along `data` holds its share of the examples."""
    return NamedSharding(mesh, PartitionSpec("data"))


def share(batch_size: int, mesh: Mesh) -> slice:
    """The part of a batch that this process's devices hold, and that it alone has to read."""
    held = split_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    parts = [part.indices(batch_size)[:2] for (part,) in held]
    return slice(min(begin for begin, _ in parts), max(end for _, end in parts))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int | None = None) -> dict[str, jax.Array]:
    """This process's share of a batch as global arrays [B, ...], split by example. Returns before the copy has ended.

    Args:
      batch: numpy arrays with the examples of `share`.
      mesh: where they go.
      batch_size: B over all processes; by default that of the arrays, which suits one process.
    """
    sharding = split_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array, (batch_size or len(array), *array.shape[1:]))
        for name, array in batch.items()
    }
