"""Which example stands where in which batch, and how it is cropped: a pure function of (seed, epoch, place).

A batch of any step can be named without going through those before it, so a run that is resumed reads on exactly
where it stopped, and a host names its share of a batch without the others. Epochs follow each other without a gap: each
shows every example once, and a batch may hold the end of one and the beginning of the next.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_resnet.data import draws

# Examples that are drawn at once: a few thousand cost little more than one.
BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one batch, or one host's share of it, consists of.

    Attributes:
      rows: [B], the index of each example in its split.
      epochs: [B], the epoch that each belongs to.
      offsets: [B, 2], the top left corner of each crop on its canvas, in pixels.
      flips: [B], which crops are mirrored left to right.
      valid: [B], False where a row only fills up the last batch of an evaluation.
    """

    rows: np.ndarray
    epochs: np.ndarray
    offsets: np.ndarray
    flips: np.ndarray
    valid: np.ndarray

    def with_views(self, images: np.ndarray, labels: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
        """What a loader yields: the views and labels, and what was drawn for them."""
        drawn = dict(row=self.rows, epoch=self.epochs, offset=self.offsets, flip=self.flips)
        return dict(image=images, label=labels, valid=valid, **drawn)


def training_batches(
    data,
    examples: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    stop_step: int | None = None,
    share: slice | np.ndarray = slice(None),
) -> Iterator[Batch]:
    """The training batches of the steps from `start_step` to before `stop_step`.

    Args:
      data: the configuration's `data` section.
      examples: how many examples an epoch has.
      batch_size: examples a step, over all hosts.
      seed: the run's seed.
      start_step: the first step to return.
      stop_step: the first not to return; None goes on without end.
      share: the places of every batch that this host reads.
    """
    inside = np.arange(batch_size)[share]
    step = start_step
    while stop_step is None or step < stop_step:
        count = max(1, BLOCK // len(inside))
        if stop_step is not None:
            count = min(count, stop_step - step)
        places = (np.arange(step, step + count)[:, None] * batch_size + inside).reshape(-1)
        epochs, places = places // examples, places % examples
        drawn = draw(data, examples, seed, epochs, places)
        for fields in zip(*(np.split(array, count) for array in drawn), strict=True):
            rows, epochs, offsets, flips = fields
            yield Batch(rows, epochs, offsets, flips, np.ones(len(rows), bool))
        step += count


def draw(data, examples: int, seed: int, epochs: draws.Array, places: draws.Array) -> tuple[draws.Array, ...]:
    """The rows, epochs, offsets on the canvas and flips of the given places, as `Batch` holds them.

    NumPy's arrays give NumPy's, JAX's give JAX's: the same numbers on a host and on a device.
    """
    rows = draws.shuffle(seed, epochs, places, examples)
    room = data.canvas_size - data.image_size
    top, _ = draws.words(seed, epochs, rows, draws.TOP)
    left, _ = draws.words(seed, epochs, rows, draws.LEFT)
    flip, _ = draws.words(seed, epochs, rows, draws.FLIP)
    if data.random_crop:
        top, left = draws.below(top, room + 1), draws.below(left, room + 1)
    else:
        top, left = top * 0 + np.uint32(room // 2), left * 0 + np.uint32(room // 2)
    flips = (draws.below(flip, 2) == 1) if data.random_flip else flip != flip
    offsets = (jnp if isinstance(top, jax.Array) else np).stack([top, left], 1)
    return rows.astype(np.int32), epochs.astype(np.int32), offsets.astype(np.int32), flips


def evaluation_batches(
    examples: int, batch_size: int, offset: int, share: slice | np.ndarray = slice(None)
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up as invalid.

    Args:
      examples: how many there are.
      batch_size: examples a batch, over all hosts.
      offset: where every crop begins on its canvas, on both axes.
      share: the places of every batch that this host reads.
    """
    for start in range(0, examples, batch_size):
        places = np.arange(start, start + batch_size)[share]
        valid = places < examples
        yield unmoved(np.where(valid, places, 0).astype(np.int32), valid, offset)


def unmoved(rows: np.ndarray, valid: np.ndarray, offset: int = 0) -> Batch:
    """A batch without anything drawn: every crop begins at `offset` on both axes and none is mirrored."""
    count = len(rows)
    offsets = np.full((count, 2), offset, np.int32)
    return Batch(rows, np.zeros(count, np.int32), offsets, np.zeros(count, bool), valid)
