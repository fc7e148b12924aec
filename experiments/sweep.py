"""Trains a configuration with every combination of some fields, or with a list of changes, into one table.

    python -m experiments.sweep --config=configs/resnet_cifar.py:110 --grid='seed=0,1,2,3,4' --out=runs/five_seeds
    python -m experiments.sweep --config=configs/digits.py --out=runs/rates \
        --grid='optimizer.learning_rate=0.05,0.1; seed=0,1,2'
    python -m experiments.sweep --config=configs/digits.py --list=changes.txt --out=runs/some

A line of the list has the changes of one run, as `optimizer.learning_rate=0.05 log.every='10 steps'`. Runs are trained
one after the other; with --task=N only the N-th, which experiments/launch/sweep.sh does for each task of a SLURM array.
Each has a folder of its own, is gone on with where it stopped, and is not trained again. Runs that differ in their seed
alone are one row: the mean, and the standard deviation of the sample. --collect makes the table of what there is.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alexnet_resnet.errors import UserError, near_matches
from experiments.study import Conclusion, Outcome, Row, Run, Study, command, figures, plan
from experiments.study.report import Option


def split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that stand neither in brackets nor in quotes.

    >>> split("(1, 2),'a,b',3", ",")
    ['(1, 2)', "'a,b'", '3']
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character in separators and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def parse_grid(text: str) -> list[dict[str, Any]]:
    """The combinations of 'seed=0,1; optimizer.learning_rate=0.1,0.05', the last field changing fastest.

    Raises:
      UserError: it cannot be read so.
    """
    axes = {}
    for part in filter(None, split(text, ";")):
        field, equals, values = part.partition("=")
        found = split(values, ",")
        if not equals or not field.strip() or "" in found or field.strip() in axes:
            raise UserError(f"--grid={text!r}: expected FIELD=VALUE,VALUE once a field, with ';' between fields.")
        axes[field.strip()] = [plan.parse_value(value) for value in found]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []


def parse_list(path: str) -> list[dict[str, Any]]:
    """The changes of each line of a file; empty lines and those that begin with # are left out.

    Raises:
      UserError: the file or a line cannot be read.
    """
    try:
        with open(path) as file:
            lines = [(number, line.strip()) for number, line in enumerate(file, start=1)]
    except OSError as error:
        raise UserError(f"--list={path!r}: expected a file of changes, a run a line ({error.strerror}).") from error
    found = []
    for number, line in lines:
        if not line or line.startswith("#"):
            continue
        pairs = [part.partition("=") for part in filter(None, split(line, " \t"))]
        if not all(field and equals for field, equals, _ in pairs):
            raise UserError(f"--list={path!r}, line {number}: {line!r}: expected FIELD=VALUE, with spaces between.")
        found.append({field: plan.parse_value(value) for field, _, value in pairs})
    return found


def label(changes: Mapping[str, Any]) -> str:
    """'optimizer.learning_rate=0.1 seed=0'."""
    return " ".join(f"{field}={value}" for field, value in changes.items()) or "as configured"


def combinations(options) -> list[dict[str, Any]]:
    """The changes of every run.

    Raises:
      UserError: none, or the same twice.
    """
    if bool(options["grid"]) == bool(options["list"]):
        raise UserError("--grid, --list: expected one of the two, such as --grid='seed=0,1,2'.")
    every = parse_grid(options["grid"]) if options["grid"] else parse_list(options["list"])
    if not every:
        raise UserError("--grid, --list: expected at least one run.")
    for number, changes in enumerate(every):
        if "train.duration" in changes or "data.data_dir" in changes:
            raise UserError(f"{label(changes)}: expected --budget for train.duration and --data_dir for data.data_dir.")
        if changes in every[:number]:
            raise UserError(f"{label(changes)}: expected each run once.")
    return every


def runs(options) -> list[Run]:
    file, _, argument = options["config"].partition(":")
    if not file:
        raise UserError("--config is missing: expected one such as --config=configs/digits.py.")
    if not os.path.isfile(file):
        known = [f"configs/{path.name}" for path in sorted(plan.CONFIGS.glob("*.py"))]
        raise UserError(f"--config={file!r}: expected a file that exists.{near_matches(file, known)}")
    config = os.path.relpath(file, plan.CONFIGS) + (f":{argument}" if argument else "")
    begin = "-".join(filter(None, (os.path.splitext(os.path.basename(file))[0], argument)))
    found = []
    for changes in combinations(options):
        fields = {field: value for field, value in changes.items() if field != "seed"}
        seed = changes.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UserError(f"seed={seed!r}: expected a whole number.")
        name = ",".join([begin, *(f"{field}={value}" for field, value in fields.items())])
        found.append(Run(label(changes), config, fields, seed, re.sub(r"[^\w.=,+-]+", "_", name)))
    return found


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    groups: dict[str, list[Run]] = {}
    for run in outcome.runs:
        groups.setdefault(label(run.fields), []).append(run)
    splits = {one.split for one in outcome.trained.values()} - {""}
    measure = f"{'/'.join(sorted(splits)) or 'test'} error (%)"
    rows, points = [], []
    for name, members in groups.items():
        errors = [outcome.error(run.label) for run in members if outcome.error(run.label) is not None]
        mean = float(np.mean(errors)) if errors else None
        spread = float(np.std(errors, ddof=1)) if len(errors) > 1 else None
        note = f"{len(errors)} of {len(members)} seeds" if len(members) > 1 else ""
        if len(errors) > 1:
            note += f": {', '.join(f'{error:.2f}' for error in errors)}"
        budget = next(filter(None, (outcome.budget(run.label) for run in members)), "")
        missing = next(filter(None, (outcome.missing(run.label) for run in members)), "")
        rows.append(Row(name, measure, None, mean, spread, budget=budget, note=note, missing=missing))
        points.append((name, errors))
    # About a tenth of an inch a letter of the longest name, at the left of the panel.
    longest = max(len(name) for name, _ in points)
    figure, ((axes,),) = figures.new(5.4 + 0.08 * longest, 1.2 + 0.35 * len(points))
    for place, (_, errors) in enumerate(points):
        axes.plot(errors, [place] * len(errors), "o", color="C0", alpha=0.6)
        if errors:
            axes.plot(np.mean(errors), place, "|", color="k", ms=14)
    axes.set_yticks(range(len(points)), [name for name, _ in points], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(f"{measure}; each seed a dot, their mean a line")
    axes.grid(alpha=0.3, axis="x")
    return Conclusion(rows, [figures.save(figure, folder, "sweep.png")])


def check(options: Mapping[str, Any]) -> None:
    names: Sequence[Run] = runs(options)
    for run in names:
        plan.full_config(run)


STUDY = Study(
    name="sweep",
    title="A sweep over fields of a configuration",
    source="no paper",
    runs=runs,
    conclude=conclude,
    options={
        "config": Option("", "The configuration file and its argument, as in training."),
        "grid": Option("", "FIELD=VALUE,VALUE for each field, with ';' between: every combination is a run."),
        "list": Option("", "A file with the changes of one run a line, FIELD=VALUE with spaces between."),
    },
    check=check,
)

if __name__ == "__main__":
    command.main(STUDY)
