"""How a network is spread over the mesh ('data', 'model'): where its arrays lie, and how it is applied to a batch.

- 'data': every device has all parameters and a share of the batch. Plain `jax.jit`; XLA adds up the gradients.
- 'columns': the two GPUs of 2012. Each device along `model` owns one column of every layer; the columns exchange
  before conv3, fc6 and fc7, and add up their partial logits at fc8 (Krizhevsky et al. 2012, figure 2).
- 'hybrid': the "one weird trick" (Krizhevsky 2014, arXiv 1404.5997, section 4). The convolutions share out the batch
  over all devices; before fc6 those along `model` exchange it, and each owns a column of the fully connected layers.
- 'fsdp': as 'data', but parameters and optimizer state are split along `data` too. The parameters are gathered once a
  step, for both passes, and their gradients summed straight into the parts.

All but 'data' are a `jax.shard_map` around the application of the network alone, so that what is exchanged is written
down and nothing else is. Loss, gradient and optimizer are the same code for all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from alexnet_resnet import models
from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.models import Context
from alexnet_resnet.ops.columns import Columns, Layout
from alexnet_resnet.parallel import mesh as mesh_lib

STRATEGIES = ("data", "columns", "hybrid", "fsdp")

# Arrays of fewer elements are not worth splitting under 'fsdp'.
SMALL = 1024


def supported(model) -> tuple[str, ...]:
    """The strategies that the network of a configuration's `model` section can be spread by."""
    in_columns = hasattr(models.NETWORKS[model.name], "column_axis") and model.get("columns", 1) > 1
    return STRATEGIES if in_columns else ("data", "fsdp")


def check(config) -> None:
    """Refuses what can be known to be wrong from the configuration alone.

    Raises:
      UserError: an unknown strategy, one that the network lacks, or not as many devices as columns.
    """
    parallel, model = config.parallel, config.model
    check_choice("parallel.strategy", parallel.strategy, STRATEGIES)
    able = supported(model)
    if parallel.strategy not in able:
        columns = f" and model.columns={model.columns}" if "columns" in model else ""
        raise UserError(
            f"parallel.strategy={parallel.strategy!r}: expected one of {', '.join(map(repr, able))} with "
            f"model.name={model.name!r}{columns}."
        )
    if parallel.strategy in ("columns", "hybrid") and parallel.model not in (-1, model.columns):
        raise UserError(
            f"parallel.model={parallel.model}: expected {model.columns}, the columns of the network, or -1 with "
            f"parallel.strategy={parallel.strategy!r}."
        )


def shape(config) -> tuple[int, int]:
    """The devices along `data` (-1 for all that are left) and `model` that `config.parallel` asks for."""
    parallel = config.parallel
    if parallel.model != -1:
        return parallel.data, parallel.model
    return parallel.data, config.model.columns if parallel.strategy in ("columns", "hybrid") else 1


def create(config, devices: Sequence[jax.Device] | None = None) -> "Strategy":
    """The strategy of `config.parallel`.

    Args:
      config: the run's configuration.
      devices: those to use; by default all of all processes.

    Raises:
      UserError: as `check`; devices that cannot be laid out so; a training batch that cannot be shared out over them,
        or ghost batches that do not nest in its parts.
    """
    check(config)
    data, model = shape(config)
    mesh = mesh_lib.create(data, model, devices)
    strategy = Strategy(config.parallel.strategy, mesh, models.NETWORKS[config.model.name])
    batch = config.train.batch_size
    mesh_lib.check_batch("train.batch_size", batch, strategy.shards)
    part, group = batch // strategy.shards, config.model.get("ghost_batch", 0)
    if group and part % group and group % part:
        raise UserError(
            f"model.ghost_batch={group}: expected a divisor or a multiple of {part}, the examples of "
            f"train.batch_size={batch} on each of {strategy.shards} devices."
        )
    return strategy


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to spread a network.

    Attributes:
      name: one of `STRATEGIES`.
      mesh: with the axes 'data' and 'model'.
      network: the class of the network; 'columns' and 'hybrid' ask it for its columns.
    """

    name: str
    mesh: Mesh
    network: type | None = None

    def __str__(self) -> str:
        """For people."""
        text = f"{self.mesh.size} {self.mesh.devices.flat[0].platform} device(s)"
        shape = "x".join(str(size) for size in self.mesh.devices.shape)
        return text if self.mesh.size == 1 else f"{text} as {shape}, {self.name}"

    @property
    def _axes(self) -> tuple[str, ...]:
        """The mesh axes that the examples are split along when the network sees them."""
        return ("data",) if self.name == "columns" else ("data", "model")

    @property
    def shards(self) -> int:
        """How many parts a batch falls into: its size is a multiple of this."""
        return self.mesh.shape["data"] * (1 if self.name == "columns" else self.mesh.shape["model"])

    @property
    def everywhere(self) -> NamedSharding:
        """The whole array on every device."""
        return mesh_lib.replicated(self.mesh)

    @property
    def batch(self) -> NamedSharding:
        """How the examples of a batch lie on the devices, and those of the logits.

        With columns all devices along `model` hold the same examples. Under 'hybrid' too: the convolutions of each
        take a share of them, and the loss sees all.
        """
        return mesh_lib.split_batch(self.mesh, ("data",) if self.name in ("columns", "hybrid") else self._axes)

    def shardings(self, state: PyTree) -> PyTree:
        """Where each array of a training state lies.

        Args:
          state: arrays or their shapes. Whatever ends in the names of a parameter or statistic lies as that does:
            the optimizer's momentum of conv1's kernel as conv1's kernel.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._spec(_names(path), leaf)), state
        )

    def place(self, state: PyTree) -> PyTree:
        """The shapes and types of a training state, as ShapeDtypeStructs laid out by `shardings`."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.shardings(state),
        )

    def _spec(self, names: tuple[str, ...], leaf) -> PartitionSpec:
        # Counters, keys and images have no name in a dictionary.
        if self.name == "data" or not names:
            return PartitionSpec()
        if self.name == "fsdp":
            axis = _split_axis(leaf, self.mesh.shape["data"]) if names[-1] not in ("mean", "variance") else None
            return _along(axis, leaf.ndim, "data")
        if self.name == "hybrid" and names[0] not in self.network.CONNECTED:
            return PartitionSpec()
        return _along(self.network.column_axis(names), leaf.ndim, "model")

    def apply(
        self, function: Callable, params: PyTree, batch_stats: PyTree, images: Array, context: Context
    ) -> tuple[Array, PyTree]:
        """Applies a network that is spread so.

        Args:
          function: maps (params, batch_stats, images, context) to logits and new statistics.
          params: the parameters, global arrays.
          batch_stats: batch normalisation's running moments.
          images: the global batch.
          context: what the network is called with; the examples' numbers are global.

        Raises:
          ValueError: the context has a layout, or collects activations, which only 'data' can.
        """
        if self.name == "data":
            return function(params, batch_stats, images, context)
        if context.layout is not None or context.activations is not None:
            raise ValueError(f"context: expected no layout and no activations under {self.name!r}")
        laid_out = self.shardings(params)
        draws = {name: value for name in ("key", "examples") if (value := getattr(context, name)) is not None}
        inner = dataclasses.replace(context, key=None, examples=None, layout=self._layout(), batch_axes=self._axes)

        def local(params, batch_stats, images, draws):
            params = jax.tree_util.tree_map_with_path(
                lambda path, *leaf: self._enter(_names(path), *leaf), params, laid_out
            )
            return function(params, batch_stats, images, dataclasses.replace(inner, **draws))

        # Dropout stands behind the exchange of 'hybrid', and so sees the numbers of all examples along `model`.
        specs = {"key": PartitionSpec(), "examples": self.batch.spec}
        moments = _specs(self.shardings(batch_stats))
        spread = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(
                _specs(laid_out),
                moments,
                PartitionSpec(self._axes),
                {name: specs[name] for name in draws},
            ),
            out_specs=(self.batch.spec, moments),
        )
        return spread(params, batch_stats, images, draws)

    def _layout(self) -> Layout | None:
        total = self.mesh.shape["model"]
        if self.name == "columns":
            return Layout(Columns(total, "model"), Columns(total, "model"))
        if self.name == "hybrid":
            return Layout(Columns(total), Columns(total, "model"), "model")
        return None

    def _enter(self, names: tuple[str, ...], leaf: Array, sharding: NamedSharding) -> Array:
        """A parameter as the network computes with it, inside the `shard_map`.

        It varies over the axes of the batch from here on, so that the sum of the gradients is taken here too: in the
        parameters' type, whatever type the network computes in.
        """
        axes = self._axes
        if self.name == "hybrid" and names[0] in self.network.CONNECTED:
            axes = ("data",)
        missing = tuple(axis for axis in axes if axis not in jax.typeof(leaf).mat.varying)
        with jax.named_scope("/".join(names[:-1])):
            leaf = lax.pcast(leaf, missing, to="varying") if missing else leaf
            if self.name == "fsdp" and "data" in sharding.spec:
                # After that: on the way back the sum along `model` is then of the part that this device keeps.
                leaf = lax.all_gather(leaf, "data", axis=sharding.spec.index("data"), tiled=True)
        return leaf


def _specs(shardings: PyTree) -> PyTree:
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def _names(path: tuple) -> tuple[str, ...]:
    """The names in dictionaries on the way to an array."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def _split_axis(leaf, parts: int) -> int | None:
    """The longest axis of an array that falls into equal parts; None where there is none, or too little to split."""
    axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
    return max(axes, key=lambda axis: leaf.shape[axis]) if axes and leaf.size >= SMALL else None


def _along(axis: int | None, dimensions: int, name: str) -> PartitionSpec:
    """An array that is split along one of its axes, or along none."""
    if axis is None:
        return PartitionSpec()
    names = [None] * dimensions
    names[axis] = name
    return PartitionSpec(*names)
