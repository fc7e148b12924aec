"""Encoded images from their store into the host's memory, by many threads and ahead of those who need them."""

import collections
import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from alexnet_resnet.data import encoded, plan
from alexnet_resnet.data.examples import EncodedExamples, Unreadable
from alexnet_resnet.data.faults import Faults

# Reading waits for disks and networks, so there are more threads than processors.
THREADS = min(32, 4 * (os.cpu_count() or 1))
# Examples that one task of a thread reads, and that are on their way at a time.
CHUNK, AHEAD = 16, 1024

# What stands in for an image that cannot be read: one grey pixel, as a PNG.
NOTHING = encoded.png(np.full((1, 1, 3), 128, np.uint8))


@dataclasses.dataclass(frozen=True)
class Read:
    """One batch's encoded images.

    Attributes:
      images: [B] objects, bytes: JPEGs that the decoder takes as they are, else PNGs in RGB.
      labels: [B] int32.
      sizes: [B, 2], height and width.
      jpegs: [B], which are JPEGs.
      good: [B], False where a grey pixel stands in for an image that cannot be read.
    """

    images: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    jpegs: np.ndarray
    good: np.ndarray

    def one(self, place: int) -> "Read":
        """One of them, as a batch of its own."""
        part = slice(place, place + 1)
        return Read(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))

    @staticmethod
    def joined(parts: Sequence["Read"]) -> "Read":
        """Several batches as one."""
        names = [field.name for field in dataclasses.fields(Read)]
        return Read(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class Reader:
    """Reads the examples of one split.

    Args:
      examples: the split.
      faults: takes note of those that cannot be read.
      cache_bytes: encoded images that are kept, as many as fit and as they come, so that later epochs find them here.
    """

    def __init__(self, examples: EncodedExamples, faults: Faults, cache_bytes: float = 0):
        self._examples, self.faults = examples, faults
        self._room = cache_bytes
        self._kept: dict[int, tuple[bytes, int, int, int, bool]] = {}
        self._lock = threading.Lock()

    def batches(self, batches: Iterator[plan.Batch]) -> Iterator[tuple[plan.Batch, Read]]:
        """The batches with their encoded images; those of the next ones are read meanwhile.

        Raises:
          UserError: too many cannot be read.
        """
        waiting, outstanding = collections.deque(), 0
        with concurrent.futures.ThreadPoolExecutor(THREADS, "reader") as pool:
            try:
                for batch in batches:
                    chunks = np.array_split(batch.rows, -(-len(batch.rows) // CHUNK))
                    waiting.append((batch, [pool.submit(self._chunk, chunk.tolist()) for chunk in chunks]))
                    outstanding += len(batch.rows)
                    if outstanding >= AHEAD:
                        outstanding -= len(waiting[0][0].rows)
                        yield self._gathered(*waiting.popleft())
                while waiting:
                    yield self._gathered(*waiting.popleft())
            finally:
                for _, futures in waiting:
                    for future in futures:
                        future.cancel()

    def _gathered(self, batch: plan.Batch, futures) -> tuple[plan.Batch, Read]:
        rows = [row for future in futures for row in future.result()]
        images = np.empty(len(rows), object)
        images[:] = [row[0] for row in rows]
        labels, heights, widths, jpegs, good = (np.array([row[i] for row in rows]) for i in range(1, 6))
        sizes = np.stack([heights, widths], 1)
        return batch, Read(images, labels.astype(np.int32), sizes, jpegs.astype(bool), good.astype(bool))

    def _chunk(self, indices: list[int]) -> list[tuple[bytes, int, int, int, bool, bool]]:
        return [self._one(index) for index in indices]

    def _one(self, index: int) -> tuple[bytes, int, int, int, bool, bool]:
        found = self._kept.get(index)
        if found is None:
            try:
                if index in self.faults:
                    return NOTHING, 0, 1, 1, False, False
                found = self._fresh(index)
            except Unreadable as error:
                self.faults.add(index, str(error))
                return NOTHING, 0, 1, 1, False, False
            self._keep(index, found)
        return *found, True

    def _fresh(self, index: int) -> tuple[bytes, int, int, int, bool]:
        image, label = self._examples.read(index)
        classes = len(self._examples.label_names)
        try:
            if not 0 <= label < classes:
                raise Unreadable(f"label {label}, where there are {classes} classes")
            header = encoded.describe(image)
            # Files that lie about their kind, the few with four colours and those without an end, the slow way. Whether
            # an image can be read must not depend on the crop, or a resumed run would leave out other uses.
            if header.format == "JPEG" and header.components in (1, 3) and encoded.ends(image):
                return image, label, header.height, header.width, True
            return encoded.as_rgb_png(image), label, header.height, header.width, False
        except Unreadable as error:
            raise Unreadable(f"{self._examples.name_of(index)}: {error}") from error

    def _keep(self, index: int, found) -> None:
        with self._lock:
            if index not in self._kept and len(found[0]) <= self._room:
                self._room -= len(found[0])
                self._kept[index] = found

    def mend(self, index: int, decode) -> bool:
        """Looks at an example that may have stopped the decoder.

        One that `decode` cannot read but PIL can is read that way from now on; one that neither can is a fault.

        Args:
          index: the example.
          decode: a function of the encoded image that raises for one that it cannot read.

        Returns:
          Whether anything was wrong with it.
        """
        image, label, height, width, jpeg, good = self._one(index)
        if not (good and jpeg):
            return False
        try:
            decode(image)
            return False
        except Exception:  # Whatever the decoder raises: what counts is that it does.
            self._kept.pop(index, None)
        try:
            self._kept[index] = encoded.as_rgb_png(image), label, height, width, False
        except Unreadable as error:
            self.faults.add(index, f"{self._examples.name_of(index)}: {error}")
        return True
