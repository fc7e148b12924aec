"""What one forward pass carries through a network besides the activations."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from alexnet_resnet.ops.columns import Layout


@dataclasses.dataclass(frozen=True)
class Context:
    """The circumstances of a forward pass, handed down from module to module.

    Attributes:
      train: normalise with the batch's own statistics and remember them; drop units.
      key: the key of this step, from which each random layer folds its own; None draws nothing (no dropout).
      examples: the place of each row in the global batch, [N]; random layers key their draws by it.
      layout: where the columns of a network in columns are; None has all of them here.
      batch_axes: inside a `shard_map`, the mesh axes over which the examples are split until `layout.to_fc`; batch
        statistics are taken over them too. Empty where the arrays are global.
      activations: a dictionary that collects every named activation, or None to collect none.
      path: the name of the module being called, such as 'stage1/0'.
    """

    train: bool = False
    key: Key[Array, ""] | None = None
    examples: Int[Array, "N"] | None = None
    layout: Layout | None = None
    batch_axes: tuple[str, ...] = ()
    activations: dict[str, Array] | None = None
    path: str = ""

    @property
    def observes(self) -> bool:
        """Whether something is made of activations by their names, so that no two modules can be one program."""
        return self.activations is not None

    def run(self, name: str, module: Callable, *args):
        """Calls a submodule under its name and keeps what it returns under that name."""
        path = f"{self.path}/{name}" if self.path else name
        with jax.named_scope(name):
            return self.keep(name, module(*args, dataclasses.replace(self, path=path)))

    def keep(self, name: str, x: Array | list[Array]) -> Array | list[Array]:
        """Names an activation and returns it as it is; of a list of columns, all side by side are kept."""
        if self.activations is not None:
            path = f"{self.path}/{name}" if self.path else name
            self.activations[path] = jnp.concatenate(x, -1) if isinstance(x, list) else x
        return x
