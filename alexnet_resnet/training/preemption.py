"""SIGTERM, by which schedulers announce that a machine is taken away: training saves where it stands and ends."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """Training was told to stop and has saved where it stands.

    Attributes:
      step: the last one that was taken.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step:,}")
        self.step = step


class Preemption:
    """Listens for SIGTERM while training runs; with several processes, to any of them."""

    def __init__(self):
        self._noticed, self._asked = False, 0
        self._together = jax.process_count() > 1
        # Only the main thread may listen to signals.
        self._listens = threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGTERM) if self._listens else None
        if self._together:
            # JAX listens, and tells all of them. From now on only: nobody would ask it before, nor in an evaluation.
            distributed = multihost_utils.distributed.global_state
            if distributed.preemption_sync_manager is None:
                jax.config.update("jax_enable_preemption_service", True)
                distributed.initialize_preemption_sync_manager()
        elif self._listens:
            signal.signal(signal.SIGTERM, self._notice)

    def _notice(self, number, frame) -> None:
        self._noticed = True

    def due(self) -> bool:
        """Whether to stop, the same on all processes. To be asked once between any two calls of the step."""
        if self._together and multihost_utils.reached_preemption_sync_point(self._asked):
            self._noticed = True
        # JAX stops everybody at one number, so none may be left out: not the step's, of which a call may take several.
        self._asked += 1
        return self._noticed

    def close(self) -> None:
        """Gives the signal back."""
        if self._listens:
            # None stands for a handler that was not Python's.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)
