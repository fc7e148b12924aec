"""What a study trains: configurations of configs/ with some fields changed, and how much of each."""

import ast
import dataclasses
import importlib.util
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError, near_matches

CONFIGS = Path(__file__).parents[2] / "configs"
# Where the images are from may be changed in any study.
SOURCES = ("data.dataset", "data.train_split", "data.validation_split", "data.test_split", "data.loader")
LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?)\s*")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of each training is done: a share of its own length, or a length for all.

    Attributes:
      text: '1' for all of it, '0.05' for a twentieth, '3 epochs' or '2000 steps'.

    Raises:
      UserError: it is neither.
    """

    text: str = "1"

    def __post_init__(self):
        length = LENGTH.fullmatch(self.text)
        if length and float(length[1]) > 0:
            # One text, and so one folder, for all that mean the same.
            object.__setattr__(self, "text", f"{float(length[1]):g} {length[2].rstrip('s')}s")
        elif length or not 0 < self._share() <= 1:
            raise UserError(
                f"--budget={self.text!r}: expected a share of the full training above 0 and up to 1, such as 0.05, or "
                "a length such as '3 epochs' or '2000 steps'."
            )

    def _share(self) -> float:
        try:
            return float(self.text)
        except ValueError:
            return 0.0

    @property
    def folder(self) -> str:
        """What the folder of its trainings is called."""
        if LENGTH.fullmatch(self.text):
            return self.text.replace(" ", "_")
        return "full" if self._share() == 1 else f"{self._share():g}"

    def of(self, duration: str) -> str:
        """A training's length, such as '64000 steps', under this budget.

        >>> Budget("0.05").of("64000 steps"), Budget("0.1").of("14 epochs"), Budget("3 epochs").of("64000 steps")
        ('3200 steps', '1.4 epochs', '3 epochs')
        """
        if LENGTH.fullmatch(self.text):
            return self.text
        number, unit = LENGTH.fullmatch(duration).groups()
        if self._share() == 1:
            return duration
        scaled = float(number) * self._share()
        return f"{max(1, round(scaled))} steps" if unit.startswith("step") else f"{scaled:g} epochs"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
      label: what tables and figures call it, such as 'plain-20'.
      config: a file of configs/ and its argument, such as 'resnet_cifar.py:20+plain'.
      fields: what is changed in it, by dotted name.
      seed: of the configuration; `Settings.seed` is added.
      name: its folder's name, without the seed; by default that of the configuration. Runs with other fields need
        another name, and studies that name a run alike share it.
      moments: checkpoints that are kept, evenly over the training, and evaluated; 0 for what the configuration says.
        Part of what a run is: its `name` must say it.
    """

    label: str
    config: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    name: str = ""
    moments: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line says of a study.

    Attributes:
      out: the folder of all trainings and reports.
      report: the folder of this study's report; by default its own below `out`.
      budget: how much of each training is done.
      seed: added to the seed of every run.
      data_dir: as `config.data.data_dir`, for every run.
      changes: fields that are changed in every run that has them.
      only: labels of the runs that are trained; empty for all.
      options: a study's own options.
    """

    out: str
    report: str = ""
    budget: Budget = Budget()
    seed: int = 0
    data_dir: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def workdir(self, run: Run) -> str:
        """The folder that a run is trained in: the same for every study with this `out` and budget."""
        file, _, argument = run.config.partition(":")
        name = run.name or "-".join(filter(None, (Path(file).stem, argument)))
        return os.path.join(self.out, "trainings", self.budget.folder, f"{name}-seed{run.seed + self.seed}")


def full_config(run: Run) -> ConfigDict:
    """The configuration that a run's file and fields describe, at its full length.

    Raises:
      UserError: no such file, argument or field.
    """
    file, _, argument = run.config.partition(":")
    path = CONFIGS / file
    if not path.is_file():
        known = sorted(other.name for other in CONFIGS.glob("*.py"))
        hint = near_matches(os.path.basename(file), known)
        raise UserError(f"config={run.config!r}: expected one of {', '.join(known)}.{hint}")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
    config.lock()
    for field, value in run.fields.items():
        if not assign(config, field, value):
            known = dict(config_lib.flatten(config))
            raise UserError(f"{field}={value!r}: {run.config} has no such field.{near_matches(field, known)}")
    return config


def resolve(run: Run, settings: Settings) -> ConfigDict:
    """The configuration that a run is trained with.

    Raises:
      UserError: as `full_config`, and as `config.check` for the changed fields.
    """
    config = full_config(run)
    config.seed = run.seed + settings.seed
    if settings.data_dir:
        config.data.data_dir = settings.data_dir
    config.train.duration = settings.budget.of(config.train.duration)
    if run.moments:
        number, unit = LENGTH.fullmatch(config.train.duration).groups()
        every = float(number) / run.moments
        every = f"{max(1, round(every))} steps" if unit.startswith("step") else f"{every:g} epochs"
        config.checkpoint.update(every=every, keep_last=run.moments)
        # A checkpoint is saved at every evaluation too.
        config.evaluation.every = every
    for field, value in settings.changes.items():
        assign(config, field, value)
    config_lib.check(config)
    return config


def assign(config: ConfigDict, field: str, value: Any) -> bool:
    """Sets a field by its dotted name; False where the configuration has none of that name.

    Raises:
      UserError: the value is of another type than the field's.
    """
    *sections, name = field.split(".")
    for section in sections:
        if section not in config or not isinstance(config[section], ConfigDict):
            return False
        config = config[section]
    if name not in config:
        return False
    try:
        config[name] = tuple(value) if isinstance(value, list) else value
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}={value!r}: expected a value like {config[name]!r}.") from error
    return True


def parse_changes(texts: Sequence[str], runs: Sequence[Run]) -> dict[str, Any]:
    """Fields and values of 'model.width=0.25' and the like, as --set has them.

    Raises:
      UserError: it cannot be read so, nothing is trained, no run has such a field, it is one that tells the study's
        runs apart, or it has a flag of its own.
    """
    changes, configs = {}, [full_config(run) for run in runs]
    if texts and not runs:
        raise UserError(f"--set={texts[0]!r}: expected no --set, as nothing is trained here.")
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set={text!r}: expected FIELD=VALUE, such as train.batch_size=64.")
        if field in ("train.duration", "seed", "data.data_dir"):
            flag = {"train.duration": "--budget", "seed": "--seed", "data.data_dir": "--data_dir"}[field]
            raise UserError(f"--set={text!r}: expected {flag} instead.")
        before = [dict(config_lib.flatten(config)) for config in configs]
        of_runs = any(field in run.fields for run in runs) and not field.startswith(SOURCES)
        values = {repr(fields[field]) for fields in before if field in fields}
        if of_runs or (field.startswith("model.") and len(values) > 1):
            raise UserError(f"--set={text!r}: expected another field; in this one the runs of this study differ.")
        changes[field] = parse_value(value)
        having = [assign(config, field, changes[field]) for config in configs]
        if not any(having):
            known = {name for config in configs for name, _ in config_lib.flatten(config)}
            raise UserError(f"--set={text!r}: no run of this study has such a field.{near_matches(field, known)}")
    return changes


def parse_value(text: str) -> Any:
    """A value as Python writes it, or the text itself.

    >>> parse_value("0.5"), parse_value("(1, 2)"), parse_value("cifar10"), parse_value("False")
    (0.5, (1, 2), 'cifar10', False)
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def train_command(run: Run, settings: Settings) -> str:
    """The command that trains a run by itself, on other machines for instance."""
    config, default = resolve(run, settings), full_config(dataclasses.replace(run, fields={}))
    before = dict(config_lib.flatten(default))
    changed = {name: value for name, value in config_lib.flatten(config) if before.get(name) != value}
    parts = ["python", "-m", "alexnet_resnet.train", f"--config=configs/{run.config}"]
    parts += [f"--workdir={settings.workdir(run)}"]
    parts += [f"--config.{name}={tuple(v) if isinstance(v, list) else v}" for name, v in changed.items()]
    return shlex.join(parts)
