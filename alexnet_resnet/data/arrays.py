"""Views of arrays in memory: by NumPy for an evaluation, and inside the jitted step for the resident loader.

The resident loader keeps a whole set on the device and needs no TensorFlow. Shuffling, crops and flips are drawn where
the step runs, with the numbers that the tf.data pipeline draws on the host: both give the same batches.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_resnet.data import plan
from alexnet_resnet.data.examples import Examples
from alexnet_resnet.data.faults import Faults

Batches = Iterator[dict[str, np.ndarray]]


def margins(side: int, canvas: int) -> tuple[int, int]:
    """The pixels of zeros before and after an array's side in the middle of its canvas."""
    return (canvas - side) // 2, canvas - side - (canvas - side) // 2


def _frame(shape, canvas: int) -> list[tuple[int, int]]:
    """The padding that brings images [B, H, W, C] to their canvas."""
    return [(0, 0), margins(shape[1], canvas), margins(shape[2], canvas), (0, 0)]


class Resident:
    """The batches of a set that fits on the device.

    Args:
      data: the configuration's `data` section.
      examples: the split.
    """

    def __init__(self, data, examples: Examples):
        self._data, self._examples = data, examples
        # Arrays in memory can always be read.
        self.faults = Faults(examples, 0)

    def on_device(self, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
        """The images and labels as arrays on the device, for `batch`."""
        examples = self._examples
        put = lambda array: jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])  # noqa: E731
        return dict(images=put(examples.images), labels=put(examples.labels))

    def training_batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        stop_step: int | None = None,
        share: slice | np.ndarray = slice(None),
    ) -> Batches:
        """As `pipeline.Pipeline.training_batches`, made on the host; training itself has `batch`."""
        data, examples, size = self._data, self._examples, self._data.image_size
        for drawn in plan.training_batches(data, len(examples), batch_size, seed, start_step, stop_step, share):
            images = examples.images[drawn.rows]
            canvases = np.pad(images, _frame(images.shape, data.canvas_size))
            views = [
                canvas[top : top + size, left : left + size]
                for canvas, (top, left) in zip(canvases, drawn.offsets, strict=True)
            ]
            yield drawn.with_views(np.stack(views), examples.labels[drawn.rows], drawn.valid)

    def evaluation_batches(
        self,
        batch_size: int,
        share: slice | np.ndarray = slice(None),
        whole_canvas: bool = False,
        rows: np.ndarray | None = None,
    ) -> Batches:
        """As `pipeline.Pipeline.evaluation_batches`."""
        data, examples = self._data, self._examples
        size = data.canvas_size if whole_canvas else data.image_size
        offset = (data.canvas_size - size) // 2
        inside = slice(offset, offset + size)
        for batch in plan.evaluation_batches(len(examples) if rows is None else len(rows), batch_size, offset, share):
            if rows is not None:
                batch.rows[:] = rows[batch.rows]
            images = examples.images[batch.rows]
            views = np.pad(images, _frame(images.shape, data.canvas_size))[:, inside, inside]
            yield batch.with_views(views, examples.labels[batch.rows], batch.valid)


def batch(data, arrays: dict[str, jax.Array], seed: int, epoch: jax.Array, place: jax.Array, batch_size: int) -> dict:
    """A training batch, made where it is needed. To be called under `jax.jit`.

    Args:
      data: the configuration's `data` section.
      arrays: from `Resident.on_device`.
      seed: the run's seed.
      epoch: the epoch of the batch's first example, int32 [].
      place: its place in that epoch's order, int32 []; the batch goes on into the next epochs.
      batch_size: examples.

    Returns:
      What `pipeline.Pipeline.training_batches` yields, as arrays on the device.
    """
    images, labels = arrays["images"], arrays["labels"]
    count = len(images)
    places = place + jnp.arange(batch_size, dtype=jnp.int32)
    rows, epochs, offsets, flips = plan.draw(data, count, seed, epoch + places // count, places % count)
    canvases = jnp.pad(images[rows], _frame(images.shape, data.canvas_size))
    size = (data.image_size, data.image_size, images.shape[-1])

    def crop(canvas, offset):
        return lax.dynamic_slice(canvas, (*offset, jnp.zeros_like(offset[0])), size)

    views = jax.vmap(crop)(canvases, offsets)
    valid = jnp.ones(batch_size, bool)
    return dict(image=views, label=labels[rows], valid=valid, row=rows, epoch=epochs, offset=offsets, flip=flips)
