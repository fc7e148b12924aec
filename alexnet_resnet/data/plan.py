"""Which example stands where in which batch, and how it is cropped: a pure function of (seed, epoch, place).

A batch of any step can be named without going through those before it, so a run that is resumed reads on exactly
where it stopped. Epochs follow each other without a gap: each shows every example once, and a batch may hold the end
of one and the beginning of the next.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one batch consists of.

    Attributes:
      rows: [B], the index of each example in its split.
      offsets: [B, 2], the top left corner of each crop on its canvas, in pixels.
      flips: [B], which crops are mirrored left to right.
      valid: [B], False where a row only fills up the last batch of an evaluation.
    """

    rows: np.ndarray
    offsets: np.ndarray
    flips: np.ndarray
    valid: np.ndarray


def training_batches(
    data, examples: int, batch_size: int, seed: int, start_step: int = 0, stop_step: int | None = None
) -> Iterator[Batch]:
    """The training batches of the steps from `start_step` to before `stop_step`.

    Args:
      data: the configuration's `data` section.
      examples: how many examples an epoch has.
      batch_size: examples a step, over all hosts.
      seed: the run's seed.
      start_step: the first step to return.
      stop_step: the first not to return; None goes on without end.
    """
    epochs = _Epochs(data, examples, seed)
    place = start_step * batch_size
    while stop_step is None or place < stop_step * batch_size:
        places = np.arange(place, place + batch_size)
        parts = [
            epochs.of(epoch)[:, places[places // examples == epoch] % examples] for epoch in _span(places, examples)
        ]
        rows, top, left, flips = np.concatenate(parts, axis=1)
        yield Batch(rows, np.stack([top, left], 1).astype(np.int32), flips.astype(bool), np.ones(batch_size, bool))
        place += batch_size


def _span(places: np.ndarray, examples: int) -> range:
    return range(places[0] // examples, places[-1] // examples + 1)


class _Epochs:
    """The order and the draws of an epoch as four rows of whole numbers; the last one made is kept."""

    def __init__(self, data, examples: int, seed: int):
        self.data, self.examples, self.seed = data, examples, seed
        self.number, self.table = -1, None

    def of(self, epoch: int) -> np.ndarray:
        if epoch != self.number:
            # Philox takes any 128-bit key, so seed and epoch go in as they are.
            random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            n, room = self.examples, self.data.canvas_size - self.data.image_size
            order = random.permutation(n)
            # Drawn whether used or not: switching crops on does not change the flips.
            offsets = random.integers(0, room, (2, n), endpoint=True)
            flips = random.integers(0, 1, n, endpoint=True)
            if not self.data.random_crop:
                offsets[:] = room // 2
            if not self.data.random_flip:
                flips[:] = 0
            self.number, self.table = epoch, np.stack([order, *offsets, flips])
        return self.table


def evaluation_batches(data, examples: int, batch_size: int) -> Iterator[Batch]:
    """Every example once, in order, with the canvas's centre as its crop; the last batch is filled up as invalid."""
    room = data.canvas_size - data.image_size
    for start in range(0, examples, batch_size):
        places = np.arange(start, start + batch_size)
        valid = places < examples
        yield Batch(
            rows=np.where(valid, places, 0),
            offsets=np.full((batch_size, 2), room // 2, np.int32),
            flips=np.zeros(batch_size, bool),
            valid=valid,
        )
