"""What a run says while it goes: measurements one step late, a progress bar, files to read later."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Array

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel.host import peak_memory
from alexnet_resnet.training import workdir as workdir_lib

# What depends on the machine and on what else it did; all else two runs of one configuration have in common.
TIMINGS = ("train/seconds", "train/images_per_second", "train/input_wait_share", "train/device_memory_gib")


class Diverged(Exception):
    """The loss or the gradient is no longer a finite number.

    Attributes:
      step: where.
      skips: how often the run had gone back to a checkpoint before.
    """

    def __init__(self, step: int, text: str):
        super().__init__(f"step {step}: {text}")
        self.step, self.skips = step, 0


class Writer:
    """Appends measurements to metrics.jsonl and to TensorBoard's events.

    Rows that a full disk has no room for are kept until it has.

    Args:
      workdir: the run's folder.
      step: where the run stands; what was written beyond it, by a run that was killed, is dropped.
      tensorboard: whether events are written too.
      tell: takes a line about what cannot be written.
    """

    def __init__(self, workdir: str, step: int, tensorboard: bool, tell: Callable[[str], None] = print):
        try:
            workdir_lib.keep_metrics_until(workdir, step)
            path = os.path.join(workdir, workdir_lib.METRICS)
            # Unbuffered: a row is in the file when it has been written, and what has not been is known.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            self._events = Events(os.path.join(workdir, "tensorboard"), step) if tensorboard else None
        except OSError as error:
            raise UserError(
                f"workdir={workdir!r}: expected a folder that can be written ({error.strerror})."
            ) from error
        self._rest, self._tell = b"", tell

    def write(self, step: int, **values: float) -> None:
        """Writes one row."""
        waiting = bool(self._rest)
        self._rest += (json.dumps({"step": step, **values}) + "\n").encode()
        try:
            self._empty()
        except OSError as error:
            if not waiting:
                self._tell(f"step {step}: measurements wait for room in {self._file.name} ({error.strerror})")
        try:
            if self._events:
                self._events.write(step, values)
        except OSError as error:
            # What follows half an event cannot be read.
            self._events = None
            self._tell(f"step {step}: no more events for TensorBoard ({error.strerror}); metrics.jsonl has all")

    def _empty(self) -> None:
        while self._rest:
            self._rest = self._rest[self._file.write(self._rest) :]

    def close(self) -> None:
        """Tries for a last time to write what waits."""
        try:
            self._empty()
        except OSError as error:
            self._tell(f"{self._rest.count(10)} rows of measurements are lost ({error.strerror})")
        self._file.close()
        if self._events:
            self._events.close()


class Events:
    """A file of TensorBoard's events, written at once: tensorboardX' own thread would block a run on a full disk.

    Args:
      directory: its folder; made if it is missing.
      step: where the run stands; TensorBoard does not show what an earlier file has beyond it.
    """

    def __init__(self, directory: str, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        os.makedirs(directory, exist_ok=True)
        self._event, self._scalar = event_pb2.Event, scalar
        # By itself it names files by the second, and a start in the same second would overwrite one.
        self._writer = EventsWriter(os.path.join(directory, "events"), f".{os.getpid()}.{step}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(step + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a step's scalars."""
        for name, value in values.items():
            self._put(step, summary=self._scalar(name, value))
        self._writer.flush()

    def _put(self, step: int, **content) -> None:
        self._writer.write_event(self._event(step=step, wall_time=time.time(), **content))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()


class Silence:
    """Takes the place of `Writer` and `Progress` where another process writes and speaks for all."""

    def __getattr__(self, name: str):
        return lambda *arguments, **values: None


class Progress:
    """A bar on a terminal, one line for each report elsewhere.

    Args:
      start: the step a run begins at.
      total: the step it ends at.
    """

    def __init__(self, start: int, total: int):
        self._start, self._total, self._began = start, total, time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)

    def advance(self, steps: int = 1) -> None:
        """More steps have been handed to the device."""
        if self._bar:
            self._bar.update(steps)

    def report(self, step: int, **values: float) -> None:
        """Shows the latest training measurements."""
        if self._bar:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
            return
        left = (time.monotonic() - self._began) / max(step - self._start, 1) * (self._total - step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"step {step}/{self._total}  {shown}  {_clock(left)} left")

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        # A log on a disk that is full, or a reader that has gone, is no reason to end a run.
        with contextlib.suppress(OSError):
            if self._bar:
                self._bar.write(text)
            else:
                print(text, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.close()


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


class Meter:
    """Reads each step's measurements one step late, so that the host waits for a step only once the next is running.

    Averages them over windows of `every` steps. The windows end at multiples of `every`, wherever a run was resumed.
    The first call of a process, which waits for the compiler, is left out of the images per second.

    Args:
      every: steps in a window.
      images_per_step: the batch size.
      writer: takes each window's row.
      progress: shows it.
    """

    def __init__(self, every: int, images_per_step: int, writer: Writer, progress: Progress):
        self._every, self._images = every, images_per_step
        self._writer, self._progress = writer, progress
        self._late: tuple[int, dict[str, Array], int] | None = None
        self._window: list[dict[str, float]] = []
        self._seconds = self._waited = 0.0
        self._since = time.monotonic()
        self._compiling, self._timed, self._last_step = True, 0, 0

    def add(self, step: int, measured: dict[str, Array], waited: float, count: int = 1) -> None:
        """Takes the measurements of the steps just dispatched in one call and reads those of the call before.

        Args:
          step: the number of the last of them, from 1.
          measured: their scalars, still on the device: [] for one step, or arrays that begin with these steps'.
          waited: seconds that the loop waited for their batches.
          count: how many steps they are.

        Raises:
          Diverged: a step of the call before gave a loss, a gradient or parameters that are not finite.
        """
        self._read()
        self._late = step, measured, count
        self._waited += waited

    def _read(self) -> None:
        if self._late is None:
            return
        last, measured, count = self._late
        self._late = None
        series = {name: np.atleast_1d(value).tolist() for name, value in jax.device_get(measured).items()}
        for number in range(count):
            self._take(last - count + 1 + number, {name: values[number] for name, values in series.items()}, count)

    def _take(self, step: int, values: dict[str, float], call: int) -> None:
        """One step's values, of a call of `call` steps."""
        if not all(math.isfinite(values[name]) for name in ("loss", "gradient_norm", "parameter_norm")):
            raise Diverged(
                step,
                f"loss {values['loss']}, gradient norm {values['gradient_norm']}, "
                f"parameter norm {values['parameter_norm']} at learning rate {values['learning_rate']:g}",
            )
        if self._compiling:
            # The first call of a process waits for the compiler, which is not the network's speed.
            self._compiling, self._seconds, self._waited, self._timed = False, 0.0, 0.0, -call
            self._since = time.monotonic()
        self._timed += 1
        self._last_step = step
        self._window.append(values)
        if step % self._every == 0:
            self._report(step)

    def _report(self, step: int) -> None:
        self._seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        count = len(self._window)
        means = {name: sum(row[name] for row in self._window) / count for name in self._window[0]}
        means |= {"seconds": self._seconds, "device_memory_gib": peak_memory() / 2**30}
        shown = {"loss": means["loss"], "error %": 100 * means["error"]}
        if self._timed > 0:
            seconds = max(self._seconds, 1e-9)
            means["input_wait_share"] = min(1.0, self._waited / seconds)
            means["images_per_second"] = shown["images/s"] = self._timed * self._images / seconds
        self._writer.write(step, **{f"train/{name}": value for name, value in means.items()})
        self._progress.report(step, **shown)
        self._window, self._seconds, self._waited, self._timed = [], 0.0, 0.0, 0

    def finish(self) -> None:
        """Reads what is outstanding and reports the last window, though it be shorter."""
        self._read()
        if self._window:
            self._report(self._last_step)

    def forget(self) -> None:
        """Drops what is outstanding and the window that is not full: the run goes on elsewhere."""
        self._late, self._window, self._compiling = None, [], True
        self._seconds, self._waited, self._timed, self._since = 0.0, 0.0, 0, time.monotonic()

    def pause(self) -> None:
        """Reads what is outstanding and stops the clock, before something that is not training."""
        self._read()
        now = time.monotonic()
        # A short last window is reported from here on, and what it took counts once.
        self._seconds, self._since = self._seconds + now - self._since, now

    def proceed(self) -> None:
        """Starts the clock again."""
        self._since = time.monotonic()
