"""Trains the runs of a study one after the other; those that are finished are not trained again."""

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.training import workdir as workdir_lib
from experiments.benchmarks import provenance
from experiments.study import plan
from experiments.study.plan import Run, Settings

FINISHED = "finished.json"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that has ended.

    Attributes:
      run: what was trained.
      workdir: its folder.
      config: its configuration.
      final: its measurements, as `loop.train` returns them; shares, not percent.
      machine: where, when and from which commit it was trained.
      diverged: what was said where its loss was no longer finite; empty otherwise.
    """

    run: Run
    workdir: str
    config: ConfigDict
    final: Mapping[str, Any]
    machine: Mapping[str, Any]
    diverged: str = ""

    @property
    def split(self) -> str:
        """What `error` is of: 'test', or 'validation' where there is no test split; empty where nothing was judged."""
        return next((split for split in ("test", "validation") if f"{split}/error" in self.final), "")

    @property
    def error(self) -> float | None:
        """The last error on `split` in percent; None for a run that diverged, whose end was not judged."""
        return 100 * self.final[f"{self.split}/error"] if self.split and not self.diverged else None

    @property
    def budget(self) -> str:
        """How much of its configuration's training this is, such as '3,200 of 64,000 steps' or 'full length'."""
        full = plan.full_config(dataclasses.replace(self.run, fields={})).train.duration
        done = self.config.train.duration
        length = "full length" if full == done else f"{_with_commas(done)} of {_with_commas(full)}"
        return f"diverged ({self.diverged}) on the way to: {length}" if self.diverged else length

    def rows(self) -> list[dict]:
        """All that was measured, in the order of steps."""
        return list(workdir_lib.read_metrics(self.workdir))


def _with_commas(duration: str) -> str:
    number, unit = plan.LENGTH.fullmatch(duration).groups()
    return f"{float(number):,g} {unit}" if float(number) < 1e6 else f"{int(float(number)):,} {unit}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What has been trained of a study.

    Attributes:
      settings: what the command line said.
      runs: all that the study asks for.
      trained: those that have ended, by label.
    """

    settings: Settings
    runs: tuple[Run, ...]
    trained: Mapping[str, Trained]

    @property
    def sound(self) -> Mapping[str, Trained]:
        """Those of the trained that did not diverge: whose network can be looked into."""
        return {label: one for label, one in self.trained.items() if not one.diverged}

    def missing(self, label: str) -> str:
        """Why there is no result of a run, for `Row.missing`."""
        return "diverged" if label in self.trained and self.trained[label].diverged else ""

    def error(self, label: str) -> float | None:
        """The error of a run in percent; None where it has not been trained, or diverged."""
        return self.trained[label].error if label in self.trained else None

    def budget(self, label: str) -> str:
        """How much of a run was trained; empty where it was not."""
        return self.trained[label].budget if label in self.trained else ""

    @property
    def options(self) -> Mapping[str, Any]:
        """The study's own options."""
        return self.settings.options


def finished(run: Run, settings: Settings) -> Trained | None:
    """A run that has ended, if its folder has it with this configuration and, as far as can be told, these images."""
    workdir, config = settings.workdir(run), plan.resolve(run, settings)
    path = os.path.join(workdir, FINISHED)
    if not os.path.exists(path):
        return None
    trained = workdir_lib.read_config(workdir)
    if _of_other_images(trained, config) or config_lib.differences(trained, config):
        return None
    with open(path) as file:
        return Trained(run, workdir, config, **json.load(file))


def _of_other_images(trained: ConfigDict, config: ConfigDict) -> bool:
    """Only the trainer can tell a user's own images from others in another place, and does."""
    return config.data.dataset in ("folder", "prepared", "npz") and config.data.data_dir != trained.data.data_dir


def take_over(run: Run, settings: Settings, say: Callable[[str], None]) -> None:
    """Copies a run of a smaller budget that is how this one begins, if there is one and this has no folder yet.

    Only where nothing depends on the length of the training (`config.lengthens`).
    """
    place, config = settings.workdir(run), plan.resolve(run, settings)
    if os.path.exists(place):
        return
    budgets, name = os.path.split(place)
    shorter = {}
    for path in glob.glob(os.path.join(glob.escape(os.path.dirname(budgets)), "*", glob.escape(name), FINISHED)):
        folder = os.path.dirname(path)
        trained = workdir_lib.read_config(folder)
        if config_lib.lengthens(trained, config) and not _of_other_images(trained, config):
            shorter[folder] = float(plan.LENGTH.fullmatch(trained.train.duration)[1])
    if shorter:
        longest = max(shorter, key=shorter.get)
        say(f"{run.label} goes on from {longest}")
        os.makedirs(budgets, exist_ok=True)
        # Half a copy has another name.
        with tempfile.TemporaryDirectory(dir=budgets) as copy:
            shutil.copytree(longest, os.path.join(copy, name), ignore=shutil.ignore_patterns(FINISHED))
            # Another task may have begun it meanwhile.
            with contextlib.suppress(OSError):
                os.rename(os.path.join(copy, name), place)


def train(run: Run, settings: Settings) -> Trained:
    """Trains a run to its end, from where its folder's stands.

    Raises:
      UserError: as `loop.train`.
      preemption.Stopped: a signal came; the same call goes on.
      checkpoints.Unsaved: its end could not be saved.
    """
    from alexnet_resnet.training import loop
    from alexnet_resnet.training.reporting import Diverged

    workdir, config, diverged = settings.workdir(run), plan.resolve(run, settings), ""
    machine = provenance.machine()
    # Of a shorter training, which this one makes longer.
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(workdir, FINISHED))
    try:
        final = loop.train(config, workdir)
    except Diverged as error:
        # A result too: figure 6's deepest plain net hardly trains.
        final, diverged = workdir_lib.final_measurements(workdir), str(error)
    record = dict(final=final, machine=machine | {"devices": provenance.devices()}, diverged=diverged)
    workdir_lib.write_atomically(os.path.join(workdir, FINISHED), json.dumps(record, indent=1) + "\n")
    return Trained(run, workdir, config, **record)


def due(runs: Sequence[Run], settings: Settings) -> list[Run]:
    """Those that are to be trained and have not ended."""
    wanted = [run for run in runs if not settings.only or run.label in settings.only]
    return [run for run in wanted if finished(run, settings) is None]


def train_all(runs: Sequence[Run], settings: Settings, collect: bool, say: Callable[[str], None]) -> Outcome:
    """Trains what is not finished, or with `collect` only gathers what is.

    Raises:
      As `train`.
    """
    asked = [] if collect else due(runs, settings)
    # Refused before anything expensive begins.
    for run in asked:
        workdir_lib.check(settings.workdir(run), plan.resolve(run, settings))
    for number, run in enumerate(asked, start=1):
        say(f"[{number}/{len(asked)}] {run.label}: {settings.workdir(run)}")
        take_over(run, settings, say)
        train(run, settings)
    # Only now: other machines may have finished theirs meanwhile.
    trained = {run.label: found for run in runs if (found := finished(run, settings))}
    for label, one in trained.items():
        said = f"diverged: {one.diverged}" if one.diverged else f"error {one.error:.2f}%" if one.split else ""
        say(f"{label} is finished" + (f": {said}" if said else ""))
    return Outcome(settings, tuple(runs), trained)
