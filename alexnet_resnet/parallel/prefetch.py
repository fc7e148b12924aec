"""Batches on their way to the devices ahead of the step that needs them."""

import collections
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from alexnet_resnet.parallel.mesh import put_batch


def prefetch(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, size: int = 2) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches as global arrays, with the copies of the next `size` - 1 already under way."""
    waiting = collections.deque()
    for batch in batches:
        waiting.append(put_batch(batch, mesh))
        if len(waiting) >= size:
            yield waiting.popleft()
    yield from waiting
