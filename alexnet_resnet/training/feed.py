"""What takes a run's steps: on batches that come from the host, or on those that the device makes itself."""

import time

import numpy as np

from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.prefetch import prefetch
from alexnet_resnet.training import step as step_lib


class Streamed:
    """Takes steps on batches from the host, one at a time; to be told where to begin before the first."""

    def __init__(self, config, network, optimizer, rate, objective, strategy, loader, total):
        self._step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data, objective)
        self._config, self._loader, self._sharding, self._total = config, loader, strategy.batch, total
        self._batches = iter(())

    def begin(self, number: int) -> None:
        """The next step is the one after `number`."""
        size, config = self._config.train.batch_size, self._config
        share = mesh_lib.share(size, self._sharding)
        host = self._loader.training_batches(size, config.seed, number, self._total, share)
        self._batches = prefetch(host, self._sharding, config.data.prefetch, size)

    def __call__(self, state, number: int, count: int):
        """The state and the measurements after the next step, and the seconds that it waited for its batch."""
        asked = time.monotonic()
        batch = next(self._batches)
        waited = time.monotonic() - asked
        return *self._step(state, batch), waited


class Resident:
    """Takes steps, several in a call, on batches that the device makes itself."""

    def __init__(self, config, network, optimizer, rate, objective, strategy, loader, total):
        self._steps = step_lib.compile_resident_steps(network, optimizer, rate, strategy, config, objective)
        self._arrays, self._size = loader.on_device(strategy.everywhere), config.train.batch_size

    def begin(self, number: int) -> None:
        """Batches are made by their number, so there is nothing to prepare."""

    def __call__(self, state, number: int, count: int):
        """The state and the measurements after the `count` steps after `number`, and no seconds of waiting."""
        epoch, place = divmod(number * self._size, len(self._arrays["labels"]))
        return *self._steps(state, self._arrays, np.int32(epoch), np.int32(place), np.int32(count)), 0.0
