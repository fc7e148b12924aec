"""A trained network as a function from pictures to the probabilities of its classes and to activations by name."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree, UInt8

from alexnet_resnet import models
from alexnet_resnet.errors import UserError, near_matches
from alexnet_resnet.training.state import Network

BATCH = 16
# Names that an error lists; ResNet-152 has more than 500.
LISTED = 40


class Forward:
    """A network's forward pass over a batch of views, compiled for each choice of activations.

    The weights are arguments of the compiled function: as constants they would be compiled in.

    Args:
      network: the network.
      params: its parameters, which go to the default device.
      batch_stats: its running moments, likewise.
      preprocessing: from a batch of views to what the network sees.
    """

    def __init__(self, network: Network, params: PyTree, batch_stats: PyTree, preprocessing: Callable):
        self.params, self._batch_stats = jax.device_put((params, batch_stats))
        self._view_shape = network.image_shape

        def whole(params, batch_stats, views):
            return models.activations(nnx.merge(network.graphdef, params, batch_stats), preprocessing(views))

        @functools.partial(jax.jit, static_argnames="names")
        def forward(params, batch_stats, views, names):
            logits, named = whole(params, batch_stats, views)
            return logits, {name: named[name].astype(jnp.float32) for name in names}

        self._whole, self._forward = whole, forward

    def __call__(
        self, views: UInt8[np.ndarray, "N S S C"], names: tuple[str, ...] = ()
    ) -> tuple[Float[Array, "N K"], dict[str, Array]]:
        """The logits and the named activations, float32."""
        return self._forward(self.params, self._batch_stats, views, names)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every named activation for one view, in the order of the forward pass."""
        found = {}

        def look(*arguments):
            _, named = self._whole(*arguments)
            found.update((name, array.shape[1:]) for name, array in named.items())

        views = jax.ShapeDtypeStruct((1, *self._view_shape), jnp.uint8)
        jax.eval_shape(look, self.params, self._batch_stats, views)
        return found


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network, what it wants to see, and what its classes are called.

    Attributes:
      label_names: one a class.
      channels: 3 for RGB, 1 for grey.
      view: a picture [H, W, C] as the bytes that the network's preprocessing starts from.
      forward: a batch of views as logits and named activations.
      network: the network's configuration for `models.create`, every field of it.
      input_order: the order of the channels that the first layer's kernel sees, 'rgb' or 'bgr'.
    """

    label_names: tuple[str, ...]
    channels: int
    view: Callable[[np.ndarray], np.ndarray]
    forward: Forward
    network: dict
    input_order: str = "rgb"

    @property
    def params(self) -> PyTree:
        """The parameters, nested dictionaries of arrays by layer: params['conv1']['kernel']."""
        return self.forward.params

    @property
    def columns(self) -> int:
        """The columns that AlexNet's layers fall into; 1 for every other network."""
        return self.network.get("columns", 1)

    @property
    def activation_shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and the shape for one picture of everything that `activations` gives, in the network's order."""
        return self.forward.shapes

    def probabilities(self, pictures: Iterable[np.ndarray]) -> Float[np.ndarray, "N K"]:
        """The softmax of each picture's logits, float32."""
        out = [np.asarray(jax.nn.softmax(logits))[:count] for count, logits, _ in self._batches(pictures, (), BATCH)]
        return np.concatenate([np.empty((0, len(self.label_names)), np.float32), *out])

    def activations(
        self, pictures: Iterable[np.ndarray], names: Sequence[str], batch: int = BATCH
    ) -> dict[str, Float[np.ndarray, "N ..."]]:
        """What named layers make of each picture, float32; of the columns of AlexNet, all side by side.

        Args:
          pictures: each [H, W, C]; they are taken a batch at a time, so that an iterator need not hold all.
          names: keys of `activation_shapes`, such as 'fc7', or ResNet's 'pool'.
          batch: pictures that go through the network together.

        Raises:
          UserError: a name that the network does not have.
        """
        shapes = self.activation_shapes
        for name in names:
            if name not in shapes:
                more = ["..."] * (len(shapes) > LISTED)
                known = ", ".join([*map(repr, itertools.islice(shapes, LISTED)), *more])
                raise UserError(f"activation={name!r}: expected one of {known}.{near_matches(name, shapes)}")
        parts = {name: [np.empty((0, *shapes[name]), np.float32)] for name in names}
        for count, _, named in self._batches(pictures, tuple(parts), batch):
            for name, arrays in parts.items():
                arrays.append(np.asarray(named[name])[:count])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _batches(
        self, pictures: Iterable[np.ndarray], names: tuple[str, ...], size: int
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        """How many pictures are in each batch, and `forward` of it; the rest of its rows are filling."""
        pictures = iter(pictures)
        while part := list(itertools.islice(pictures, size)):
            views = np.stack([self.view(picture) for picture in part])
            # Filled up to a power of two, so that few sizes are compiled and one picture does not cost sixteen.
            full = 1 << (len(views) - 1).bit_length()
            filled = np.concatenate([views, np.repeat(views[:1], full - len(views), 0)])
            yield len(part), *self.forward(filled, names)
