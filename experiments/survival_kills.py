"""Trainings that are killed at chosen moments and started again, and what they are compared by; see survival.py."""

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.checkpoints import TEMPORARY
from alexnet_resnet.training.reporting import TIMINGS
from experiments.survival_damage import differing, read

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START, SAVE, ANY = "before the first checkpoint", "during a save", "at any moment"
# Seconds between two looks at a process.
LOOK = 0.002


@dataclasses.dataclass(frozen=True)
class Aim:
    """The moment that a kill is meant for.

    Attributes:
      kind: START, SAVE or ANY.
      step: what the process must have reported; then the next save is waited for, or a pause. None at the start.
      share: of the longest pause: the seconds to the first checkpoint, of a save or of a step.
    """

    kind: str
    step: int | None
    share: float


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long things take, in seconds, by an uninterrupted run: for aiming only."""

    first_checkpoint: float
    save: float
    step: float

    def longest(self, kind: str) -> float:
        return {START: self.first_checkpoint, SAVE: self.save, ANY: self.step}[kind]


def plan(kills: int, per_life: int, steps: range, seed: int) -> list[list[Aim]]:
    """The kills, drawn by a seed: for each life, a run's folder, those that it gets, in their order.

    Half of them are aimed at a save, a tenth at the time before the first checkpoint, the rest at any moment.

    Args:
      kills: how many in all.
      per_life: how many a life gets at most.
      steps: the steps that a kill may wait for.
      seed: decides all of them.
    """
    dice = random.Random(seed)
    saves, starts = (kills + 1) // 2, kills // 10
    kinds = [SAVE] * saves + [ANY] * (kills - saves - starts)
    dice.shuffle(kinds)
    count = -(-kills // per_life)
    lives = [[] for _ in range(count)]
    for number in range(starts):
        lives[number % count].append(Aim(START, None, dice.random()))
    for life in lives:
        own = [kinds.pop() for _ in range(min(per_life - len(life), len(kinds)))]
        for step in sorted(dice.sample(steps, len(own))):
            life.append(Aim(own.pop(), step, dice.random()))
    return lives


class Command:
    """A process of the training, watched from outside; it is killed when the context ends.

    Args:
      flags: the training's, but for its folder.
      workdir: the run's folder.
    """

    def __init__(self, flags: list[str], workdir: str):
        self.checkpoints = os.path.join(workdir, workdir_lib.CHECKPOINTS)
        self.log = f"{workdir}.log"
        self._program = [sys.executable, "-m", "alexnet_resnet.train", *flags, f"--workdir={workdir}"]

    def __enter__(self):
        with open(self.log, "w") as log:
            # A group of its own: a kill takes its children too.
            self._process = subprocess.Popen(
                self._program, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.began = time.monotonic()
        return self

    def __exit__(self, *_):
        if self.running():
            self.kill()

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """kill -9, to all that it consists of."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """Waits for its end; the exit status."""
        return self._process.wait()

    def said(self) -> str:
        with open(self.log) as log:
            return log.read()

    def step(self) -> int:
        """The last step that it has reported, or began after."""
        found = re.findall(r"^step (\d+)/", self.said(), re.M)
        return int(found[-1]) if found else self.resumed() or 0

    def resumed(self) -> int | None:
        """The step that it went on from, 0 at the beginning; None where it has not said so yet."""
        found = re.search(r"device\(s\).*; (?:going on after step (\d+) of )?\d+(?: steps)?$", self.said(), re.M)
        return int(found[1] or 0) if found else None

    def saving(self) -> list[str]:
        """The folders of checkpoints that are not finished."""
        return [name for name in _names(self.checkpoints) if TEMPORARY in name]

    def finished(self) -> int:
        """The newest finished checkpoint's step; 0 where there is none."""
        return max((int(name) for name in _names(self.checkpoints) if name.isdecimal()), default=0)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def uninterrupted(flags: list[str], workdir: str) -> tuple[Pace, float]:
    """Trains without a kill; how long its parts took, and how long all of it.

    Raises:
      RuntimeError: it failed.
    """
    with Command(flags, workdir) as command:
        first, saves, since, reports = None, [], None, []
        while command.running():
            now, saving, step = time.monotonic(), command.saving(), command.step()
            if saving and since is None:
                since = now
            elif not saving and since is not None:
                saves.append(now - since)
                since = None
            if first is None and command.finished():
                first = now - command.began
            if step and (not reports or reports[-1][0] != step):
                reports.append((step, now))
            time.sleep(5 * LOOK)
        seconds = time.monotonic() - command.began
        if command.wait() or first is None or len(reports) < 2:
            raise RuntimeError(f"{workdir}: the uninterrupted run failed:\n{command.said()[-2000:]}")
    a_step = (reports[-1][1] - reports[0][1]) / (reports[-1][0] - reports[0][0])
    return Pace(first, sorted(saves)[len(saves) // 2] if saves else a_step, a_step), seconds


def _wait_for(aim: Aim, pace: Pace, command: Command) -> bool:
    """Returns when the moment has come; False where the process has ended before."""
    while aim.step is not None and command.step() < aim.step:
        if not command.running():
            return False
        time.sleep(5 * LOOK)
    while aim.kind == SAVE and not command.saving():
        if not command.running():
            return False
        time.sleep(LOOK)
    end = time.monotonic() + aim.share * pace.longest(aim.kind)
    while command.running() and time.monotonic() < end:
        time.sleep(LOOK)
    return command.running()


def live(flags: list[str], workdir: str, aims: list[Aim], pace: Pace, say: Callable[[str], None]) -> dict:
    """One life: the command is started, killed and started again, as often as there are aims, and then to the end.

    Returns:
      `processes`, in their order: the step each resumed from (None where it was killed before it said so) and the last
      that it reported, how long it ran, and for those that were killed what had been aimed at, whether a save was going
      on, what of it was there, and the newest checkpoint that was left; `status` and `said` of the last.
    """
    rows = []
    for aim in [*aims, None]:
        with Command(flags, workdir) as command:
            killed = aim is not None and _wait_for(aim, pace, command)
            if killed:
                command.kill()
            status = command.wait()
            seconds = round(time.monotonic() - command.began, 2)
            row = dict(resumed=command.resumed(), step=command.step(), seconds=seconds)
            what = f"ended with status {status}"
            if killed:
                inside = [os.path.join(command.checkpoints, name) for name in command.saving()]
                written = sum(len(names) for top in inside for _, _, names in os.walk(top))
                row |= dict(aim=aim.kind, saving=bool(inside), files_of_the_save=written, newest=command.finished())
                what = f"killed {'while it saved, ' if inside else ''}after step {row['step']}"
            rows.append(row)
            say(f"{os.path.basename(workdir)}: began after step {row['resumed']}, {what}, {seconds:.1f} s")
            if not killed:
                break
    return dict(processes=rows, status=status, said="" if status == 0 else command.said()[-2000:])


def stopped(flags: list[str], workdir: str, steps: list[int]) -> int:
    """Trains until a checkpoint of one of the steps is the newest, then kills; the step.

    Raises:
      RuntimeError: that did not happen.
    """
    for step in steps:
        with Command(flags, workdir) as command:
            while command.running() and command.finished() < step:
                time.sleep(LOOK)
        if command.finished() == step:
            return step
    raise RuntimeError(f"{workdir}: expected to be stopped at one of the steps {steps}:\n{command.said()[-2000:]}")


def kills(life: dict) -> list[dict]:
    """The kills of a life: the rows of its killed processes, with what the next one resumed from."""
    rows = life["processes"]
    return [row | {"next": after["resumed"]} for row, after in zip(rows, rows[1:], strict=False) if "aim" in row]


def lost(life: dict) -> list[str]:
    """Restarts that did not go on from the newest finished checkpoint; one killed before it says so is not known."""
    return [
        f"killed at step {kill['step']} with checkpoint {kill['newest']}, went on after step {kill['next']}"
        for kill in kills(life)
        if kill["next"] not in (None, kill["newest"])
    ]


def differences(workdir: str, reference: str) -> list[str]:
    """What two finished runs differ in: arrays of any checkpoint, the errors they were saved with, measurements."""
    a, b = read(workdir), read(reference)
    found = []
    if a.states.keys() != b.states.keys():
        found.append(f"checkpoints: {sorted(a.states)}, expected {sorted(b.states)}")
    for step in sorted(a.states.keys() & b.states.keys()):
        found += [f"checkpoint {step}: {name}" for name in differing(a.states[step], b.states[step])]
        if a.errors[step] != b.errors[step]:
            found.append(f"checkpoint {step}: error {a.errors[step]}, expected {b.errors[step]}")
    ours, theirs = measurements(workdir), measurements(reference)
    if len(ours) != len(theirs):
        found.append(f"{workdir_lib.METRICS}: {len(ours)} rows, expected {len(theirs)}")
    for x, y in zip(ours, theirs, strict=False):
        if x != y:
            found.append(f"{workdir_lib.METRICS}: {x}, expected {y}")
    return found


def measurements(workdir: str) -> list[dict]:
    """The rows of a run's metrics.jsonl without timing."""
    rows = workdir_lib.read_metrics(workdir)
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
