"""Batches on their way to the devices ahead of the step that needs them."""

import collections
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding

from alexnet_resnet.parallel.mesh import put_batch


def prefetch(
    batches: Iterator[dict[str, np.ndarray]], sharding: NamedSharding, size: int = 2, batch_size: int | None = None
) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches as global arrays, with the copies of the next `size` - 1 already under way.

    Args:
      batches: this process's shares.
      sharding: how their examples are split over the devices.
      size: batches that are on the device or on their way.
      batch_size: examples over all processes; by default those of the share.
    """
    waiting = collections.deque()
    for batch in batches:
        waiting.append(put_batch(batch, sharding, batch_size))
        if len(waiting) >= size:
            yield waiting.popleft()
    yield from waiting
