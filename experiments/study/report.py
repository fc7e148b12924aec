"""What a study says: a table with the paper's value beside ours, figures, and result.json for the scoreboard."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alexnet_resnet.training import workdir as workdir_lib
from experiments.benchmarks import provenance
from experiments.study.plan import Run, Settings
from experiments.study.training import Outcome, Trained

RESULT, TABLE = "result.json", "table.md"
NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a paper and ours.

    Attributes:
      what: what was measured of what, such as 'plain-20'.
      measure: in what, such as 'test error (%)'.
      paper: the paper's value; None where it gives none.
      ours: None where it was not run.
      spread: the standard deviation over seeds, or what else is said after +-; None for none.
      paper_spread: likewise the paper's.
      interval: the 95% interval of ours; None where there is none.
      budget: how much of the paper's training ours is.
      note: what a reader has to know to compare the two.
      digits: after the point.
      missing: what stands in place of ours where there is none, though it was run; else it is 'not run'.
    """

    what: str
    measure: str
    paper: float | None = None
    ours: float | None = None
    spread: float | None = None
    paper_spread: float | None = None
    interval: tuple[float, float] | None = None
    budget: str = ""
    note: str = ""
    digits: int = 2
    missing: str = ""

    def cells(self) -> tuple[str, ...]:
        """Its texts, in the order of `HEADER`."""

        def text(value, spread):
            plus = "" if spread is None else f" +- {spread:.{self.digits}f}"
            return f"{value:,.{self.digits}f}{plus}"

        ours = (self.missing or NOT_RUN) if self.ours is None else text(self.ours, self.spread)
        if self.interval and self.ours is not None:
            ours += " ({:.{d}f} to {:.{d}f})".format(*self.interval, d=self.digits)
        paper = "" if self.paper is None else text(self.paper, self.paper_spread)
        return self.what, self.measure, paper, ours, self.budget, self.note


HEADER = ("what", "measure", "paper", "ours", "budget", "note")


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """What a study found.

    Attributes:
      rows: every number of the paper that the study is about, run or not.
      figures: file names in the report's folder.
      notes: sentences below the table.
    """

    rows: Sequence[Row]
    figures: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Option:
    """A study's own flag.

    Attributes:
      default: its value where it is not given; its type is the flag's.
      help: what it does.
    """

    default: str | int | float | bool
    help: str


@dataclasses.dataclass(frozen=True)
class Study:
    """One table or figure.

    Attributes:
      name: of its module.
      title: what it is about, as one line.
      source: the paper and its table or figure.
      runs: all trainings that it asks for, given its options.
      conclude: from what was trained to the table and the figures, which it writes to the folder that it is given. It
        must do with whatever runs there are.
      options: its own flags.
      check: refuses options that cannot work before anything is trained.
      check_settings: likewise by all that the command line says, such as a layer that a changed network lacks. It reads
        no images, as a dry run does without them.
      check_files: likewise by the images and weights that the conclusion will read; only where something is trained
        first.
    """

    name: str
    title: str
    source: str
    runs: Callable[[Mapping[str, Any]], Sequence[Run]]
    conclude: Callable[[Outcome, str], Conclusion]
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    check_settings: Callable[[Settings], None] = lambda settings: None
    check_files: Callable[[Settings], None] = lambda settings: None

    def default_options(self) -> dict[str, Any]:
        """Its options where none is given."""
        return {name: option.default for name, option in self.options.items()}


def text_table(rows: Sequence[Row]) -> str:
    """The table for a terminal; columns that nothing stands in are left out."""
    lines = _filled([HEADER, *(row.cells() for row in rows)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def markdown_table(rows: Sequence[Row]) -> str:
    """The same in Markdown."""
    header, *lines = _filled([HEADER, *(row.cells() for row in rows)])
    out = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row, line in zip(rows, lines, strict=True):
        cells = [cell.replace("|", "\\|") for cell in line]
        if row.ours is not None:
            place = header.index("ours")
            cells[place] = f"**{cells[place]}**"
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def _filled(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    kept = [place for place, column in enumerate(zip(*lines[1:], strict=True)) if any(column) or place < 4]
    return [[line[place] for place in kept] for line in lines]


def write(
    study: Study, outcome: Outcome, conclusion: Conclusion, folder: str, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes result.json and the table, and gives the record.

    Args:
      study: what was asked.
      outcome: what was trained.
      conclusion: what was found.
      folder: of the report.
      machine: where, when and from which commit, as `provenance.machine` said before any file was written.
    """
    settings = outcome.settings
    trained = [outcome.trained[run.label] for run in outcome.runs if run.label in outcome.trained]
    notes = list(conclusion.notes)
    if settings.changes and outcome.runs:
        changed = ", ".join(f"{field}={value}" for field, value in settings.changes.items())
        notes.append(f"Changed by --set in every training that has the field: {changed}.")
    record = dict(
        study=study.name,
        title=study.title,
        source=study.source,
        budget=settings.budget.text,
        seed=settings.seed,
        machine=dict(machine) | {"devices": provenance.devices()},
        training_seconds=round(sum(one.final.get("train/seconds", 0.0) for one in trained), 1),
        changes=dict(settings.changes),
        options=dict(settings.options),
        rows=[dataclasses.asdict(row) for row in conclusion.rows],
        figures=list(conclusion.figures),
        notes=notes,
        runs=[_described(one) for one in trained],
        not_run=[run.label for run in outcome.runs if run.label not in outcome.trained],
    )
    workdir_lib.write_atomically(os.path.join(folder, RESULT), json.dumps(record, indent=1) + "\n")
    text = f"# {study.title}\n\n{study.source}. `{record['machine']['command']}`\n\n{markdown_table(conclusion.rows)}\n"
    text += "".join(f"\n{note}\n" for note in notes)
    text += "".join(f"\n![{name}]({name})\n" for name in conclusion.figures)
    workdir_lib.write_atomically(os.path.join(folder, TABLE), text)
    return record


def _described(one: Trained) -> dict[str, Any]:
    """What result.json says of a training."""
    kept = ("step", "parameters", "train/seconds", "train/images_per_second", "train/device_memory_gib")
    return dict(
        label=one.run.label,
        config=one.run.config,
        fields=dict(one.run.fields),
        seed=one.config.seed,
        budget=one.budget,
        diverged=one.diverged,
        error=one.error,
        split=one.split,
        training_error=100 * one.final["train/error"] if "train/error" in one.final else None,
        **{name.removeprefix("train/"): one.final[name] for name in kept if name in one.final},
        date=one.machine["date"],
        commit=one.machine["commit"],
        devices=one.machine["devices"],
    )
