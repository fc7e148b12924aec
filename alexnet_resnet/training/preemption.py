"""SIGTERM, by which schedulers announce that a machine is taken away, and Ctrl-C: training saves and ends."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Training was told to stop and has saved where it stands.

    Attributes:
      step: the last one that was taken.
      why: the signal's name.
    """

    def __init__(self, step: int, why: str):
        super().__init__(f"stopped after step {step:,}")
        self.step, self.why = step, why


class Preemption:
    """Listens for SIGTERM and SIGINT while training runs; with several processes, to any of them.

    A second SIGINT interrupts at once, as it does where nobody listens.
    """

    def __init__(self):
        self._noticed, self._asked = "", 0
        self._together = jax.process_count() > 1
        # Only the main thread may listen to signals.
        listens = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.getsignal(number) for number in SIGNALS} if listens else {}
        if self._together:
            # JAX listens, and tells all of them. From now on only: nobody would ask it before, nor in an evaluation.
            distributed = multihost_utils.distributed.global_state
            if distributed.preemption_sync_manager is None:
                jax.config.update("jax_enable_preemption_service", True)
                distributed.initialize_preemption_sync_manager()
        for number, before in self._before.items():
            # What a shell has a command in the background ignore stays ignored.
            if before != signal.SIG_IGN and not (self._together and number == signal.SIGTERM):
                signal.signal(number, self._notice)

    def _notice(self, number, frame) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            # Not print, which may be what was interrupted.
            os.write(2, b"\nSaving before the end; once more to end at once.\n")
            if self._together:
                # JAX listens to this one only.
                os.kill(os.getpid(), signal.SIGTERM)
                return
        self._noticed = signal.Signals(number).name

    @property
    def noticed(self) -> bool:
        """Whether this process alone, where it is alone, has been told to stop. To be asked anywhere."""
        return bool(self._noticed) and not self._together

    def due(self) -> str:
        """The name of the signal to stop for, the same on all processes, or ''.

        To be asked once between any two calls of the step.
        """
        if self._together and multihost_utils.reached_preemption_sync_point(self._asked):
            self._noticed = signal.SIGTERM.name
        # JAX stops everybody at one number, so none may be left out: not the step's, of which a call may take several.
        self._asked += 1
        return self._noticed

    def close(self) -> None:
        """Gives the signals back."""
        for number, before in self._before.items():
            # None stands for a handler that was not Python's.
            signal.signal(number, signal.SIG_DFL if before is None else before)
