"""Runs stages one after the other until the minutes are over; what is done is not done again."""

import collections
import contextlib
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from alexnet_resnet.training.workdir import write_atomically
from experiments.benchmarks.campaign import stages as stages_lib
from experiments.benchmarks.campaign.stages import TRAINING, Stage

RECORD, LOG = "stage.json", "log.txt"
DONE, FAILED, MISSING, STOPPED, NO_TIME, WAITING = "done", "failed", "missing", "stopped", "no time", "waiting"
# A benchmark that takes this many times as long as expected, and this many seconds, is ended for the others' sake.
PATIENCE, LEAST_PATIENCE = 3.0, 120.0
# A benchmark that is expected to take longer than this share of a whole call is tried when that much is left: guesses
# may be wrong, and it would never have its turn.
SHARE = 0.7
# A training is not started for fewer seconds of steps.
LEAST_STEPS = 20.0
TAIL = 15  # lines of its log that are told of a stage that failed


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a stage.

    Attributes:
      status: 'done'; 'failed'; 'missing', its module is not there; 'stopped', to be gone on with; 'no time' or
        'waiting' for the dataset, not begun in this call.
      text: what there is to say of it in a line.
      seconds: that it took in all calls so far.
      settings: what it was run with.
      tail: the end of its log, if it failed.
      date: when it ended.
    """

    status: str
    text: str = ""
    seconds: float = 0.0
    settings: str = ""
    tail: str = ""
    date: str = ""


def record(stage: Stage, out: str) -> Result:
    """What is written down of a stage; of one that was not begun, or with other settings, that nothing was done."""
    try:
        with open(os.path.join(out, stage.name, RECORD), encoding="utf-8") as file:
            found = Result(**json.load(file))
    except (OSError, ValueError, TypeError):
        return Result(NO_TIME)
    return found if found.settings == stage.settings else Result(NO_TIME)


class Campaign:
    """The stages of one call.

    Args:
      stages: all there are, in the order in which they are run.
      out: the campaign's folder.
      until: the time by `clock` at which the last stage has to have ended.
      grace: seconds before that in which a stage that was told to stop may save.
      root: the folder in which the stages' programs are started.
      environment: of these programs.
      chosen: the names of those that are run; the others are told of only. None for all.
      data: what is missing of the dataset, for which the trainings wait; '' for nothing.
      after: called after each stage with all results so far.
      clock: seconds.
      say: takes a line.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        out: str,
        until: float,
        grace: float,
        root: str,
        environment: Mapping[str, str],
        chosen: Collection[str] | None = None,
        data: str = "",
        after: Callable[[Mapping[str, Result]], None] = lambda results: None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = print,
    ):
        self.stages, self.out, self.until, self.grace = tuple(stages), out, until, grace
        self._chosen = [stage for stage in self.stages if chosen is None or stage.name in chosen]
        self._root, self._environment, self._data = root, dict(environment), data
        self._after, self._clock, self._say = after, clock, say
        self._told, self._insist, self._whole = "", False, self.left()
        self.results = {stage.name: record(stage, out) for stage in self.stages}

    def left(self) -> float:
        """Seconds that stages may still take before they are told to stop."""
        return self.until - self.grace - self._clock()

    def expected(self, stage: Stage) -> tuple[float, str]:
        """Seconds that a stage still takes, and what that is known from."""
        taken = {name: result.seconds for name, result in self.results.items() if result.status == DONE}
        return stages_lib.expected(stage, self.out, self.stages, taken)

    def plan(self) -> list[tuple[Stage, float, str, str]]:
        """Each stage with its expected seconds, what they are known from, and what this call will probably do of it."""
        rows, left = [], self.left()
        for stage in self._chosen:
            seconds, source = self.expected(stage)
            refused = self._refused(stage, seconds, left)
            if self.results[stage.name].status == DONE:
                rows.append((stage, 0.0, "", "done before"))
            elif refused:
                rows.append((stage, seconds, source, refused.text))
            else:
                part = "the first part of it" if stage.kind == TRAINING else "if it is faster than that"
                rows.append((stage, seconds, source, "all of it" if seconds <= left else part))
                left -= min(seconds, left)
        return rows

    def _refused(self, stage: Stage, seconds: float, left: float) -> Result | None:
        """Why a stage is not begun; None if it is."""
        if stage.is_missing():
            return Result(MISSING, f"there is no {stage.arguments[1]}")
        if stage.kind == TRAINING and self._data:
            return Result(WAITING, self._data)
        least = stage.start + LEAST_STEPS if stage.kind == TRAINING else SHARE * self._whole
        needed = min(seconds, least)
        if left < needed:
            return Result(NO_TIME, f"needs about {needed:,.0f} s, {max(left, 0):,.0f} s were left")
        return None

    def run(self) -> Mapping[str, Result]:
        """Runs what is not done and returns what became of every stage."""
        with self._listening():
            for stage in self._chosen:
                before = self.results[stage.name]
                if before.status == DONE:
                    continue
                if self._told:
                    break
                seconds, source = self.expected(stage)
                refused = self._refused(stage, seconds, self.left())
                if refused:
                    # What an earlier call left of it stays written down.
                    keeps = before.status == STOPPED and refused.status != MISSING
                    text = f"{before.text}; then: {refused.text}" if keeps else refused.text
                    self.results[stage.name] = dataclasses.replace(before if keeps else refused, text=text)
                    self._say(f"{stage.name}: not begun, {refused.text}")
                    continue
                self._say(f"{stage.name}: begins; expected {seconds:,.0f} s ({source}), {self.left():,.0f} s are left")
                self.results[stage.name] = self._one(stage, seconds, before)
                self._write(stage)
                self._tell(stage)
                self._after(self.results)
        return self.results

    def _one(self, stage: Stage, seconds: float, before: Result) -> Result:
        folder, begin = os.path.join(self.out, stage.name), self._clock()
        os.makedirs(folder, exist_ok=True)
        limit, why = self.until - self.grace, "the minutes were over"
        # What was not enough in the last call is no measure of what will be.
        patience = max(LEAST_PATIENCE, PATIENCE * max(seconds, before.seconds * (before.status == STOPPED)))
        if stage.kind != TRAINING and begin + patience < limit:
            limit, why = begin + patience, f"it took more than {patience:,.0f} s"
        log = os.path.join(folder, LOG)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ {stage.settings}\n")
            file.flush()
            # A session of its own: its children end with it, and Ctrl-C reaches it through us alone.
            program = subprocess.Popen(
                stage.command(self.out),
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                stopped = self._wait(program, limit, why)
            finally:
                _kill(program)
        took = self._clock() - begin
        return self._judge(stage, program.returncode, stopped, before.seconds * (before.status == STOPPED) + took)

    def _wait(self, program: subprocess.Popen, limit: float, why: str) -> str:
        """Waits for a program's end and tells it to stop when it is time; why that was, or ''."""
        stopped, end = "", 0.0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(0.1)
                return stopped
            if stopped and (self._insist or self._clock() > end):
                _kill(program)
            elif not stopped and (self._told or self._clock() >= limit):
                stopped, end = self._told or why, self._clock() + 0.7 * self.grace
                program.send_signal(signal.SIGTERM)

    def _judge(self, stage: Stage, code: int, stopped: str, seconds: float) -> Result:
        facts = dict(seconds=round(seconds, 1), settings=stage.settings, date=_now())
        if stage.kind == TRAINING:
            at = stages_lib.standing(stage, self.out)
            error = "" if at.error is None else f", test error {at.error:.2f}%"
            text = f"step {at.step:,} of {stage.total:,}{error}"
            if code == 0 and at.finished:
                return Result(DONE, text, **facts)
            if stopped or code == 0:
                saved = f"saved at step {at.saved:,}" if at.saved else "nothing saved"
                return Result(STOPPED, f"{text}, {saved}; {stopped or 'it was told to stop'}", **facts)
        elif code == 0 and not stopped:
            return Result(DONE, **facts)
        elif stopped:
            return Result(STOPPED, f"{stopped}; it begins anew", **facts)
        return Result(FAILED, f"exit status {code}", tail=_tail(os.path.join(self.out, stage.name, LOG)), **facts)

    def _write(self, stage: Stage) -> None:
        text = json.dumps(dataclasses.asdict(self.results[stage.name]), indent=1)
        write_atomically(os.path.join(self.out, stage.name, RECORD), text + "\n")

    def _tell(self, stage: Stage) -> None:
        result = self.results[stage.name]
        self._say(f"{stage.name}: {result.status} after {result.seconds:,.0f} s {result.text}".rstrip())
        if result.tail:
            self._say("  " + result.tail.replace("\n", "\n  "))
        done = [s.name for s in self._chosen if self.results[s.name].status == DONE]
        rest = [s.name for s in self._chosen if self.results[s.name].status != DONE]
        self._say(f"  done: {', '.join(done) or 'nothing'}; remaining: {', '.join(rest) or 'nothing'}")

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C tell the stage that runs to save, and end the campaign; a second one does not wait."""

        def notice(number, frame):
            self._insist = bool(self._told)
            self._told = f"told to stop ({signal.Signals(number).name})"

        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, notice) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def told(self) -> str:
        """By what the campaign was told to stop; '' if it was not."""
        return self._told


def _kill(program: subprocess.Popen) -> None:
    """Ends a program and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def _tail(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return "".join(collections.deque(file, TAIL)).rstrip()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
