"""The command line of every study: `python -m experiments.NAME`."""

import functools
import os
import signal
import sys
from collections.abc import Sequence

from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import UserError, near_matches
from experiments.benchmarks import provenance
from experiments.study import estimate, plan, report, training
from experiments.study.plan import Budget, Run, Settings
from experiments.study.report import Study

OUT = "runs/studies"
FLAGS = ("out", "report", "budget", "seed", "data_dir", "set", "only", "task", "dry_run", "collect")


def main(study: Study) -> None:
    """Runs a study's command; to be called once, by its module."""
    flags.DEFINE_string("out", OUT, "The folder of all studies: trainings, which they share, and reports.")
    flags.DEFINE_string("report", "", f"The folder of the table, the figures and result.json; OUT/{study.name}.")
    flags.DEFINE_string(
        "budget", "1", "How much of each training is done: a share of its length, such as 0.05, or '3 epochs' for all."
    )
    flags.DEFINE_integer("seed", 0, "Added to the seed of every run.", lower_bound=0)
    flags.DEFINE_string("data_dir", "", "Where the datasets are; the variable TFDS_DATA_DIR by default.")
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE for every run that has the field; repeated for several.")
    flags.DEFINE_list("only", [], "Labels of the runs that are trained, for several machines; all by default.")
    flags.DEFINE_integer("task", None, "The number, from 0, of the one run that is trained, as of a SLURM array.")
    flags.DEFINE_bool("dry_run", False, "Say what would be trained and how long it may take, and train nothing.")
    flags.DEFINE_bool("collect", False, "Make the report of what has been trained so far, and train nothing.")
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    for name, option in study.options.items():
        define[type(option.default)](name, option.default, option.help)
    # --help lists them as the command's own.
    for name in (*FLAGS, *study.options):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    cli.run(functools.partial(_main, study))


def _main(study: Study) -> None:
    values = flags.FLAGS
    options = {name: values[name].value for name in study.options}
    study.check(options)
    runs = study.runs(options)
    settings = Settings(
        out=values.out,
        report=values.report,
        budget=Budget(values.budget),
        seed=values.seed,
        data_dir=os.path.abspath(os.path.expanduser(values.data_dir)) if values.data_dir else "",
        changes=plan.parse_changes(values.set, runs),
        only=chosen(runs, values.only, values.task),
        options=options,
    )
    if values.dry_run:
        print("\n".join(announce(study, settings)))
        return
    from alexnet_resnet.parallel.host import keep_compiled, keep_freed_memory
    from alexnet_resnet.training.checkpoints import Unsaved
    from alexnet_resnet.training.preemption import Stopped

    keep_freed_memory()
    keep_compiled()
    # While it trains the trainer listens; elsewhere there is nothing to save.
    signal.signal(signal.SIGTERM, _between_trainings)
    try:
        perform(study, settings, values.collect)
    except _Told:
        print("Told to stop (SIGTERM) between trainings; the same command goes on from there.")
    except Stopped as stopped:
        print(f"Told to stop ({stopped.why}): saved after step {stopped.step}; the same command goes on from there.")
    except Unsaved as error:
        print(f"error: {error}. Once there is room, the same command goes on from there.", file=sys.stderr)
        sys.exit(cli.FAILURE)


class _Told(BaseException):
    """SIGTERM came while nothing was trained. No error that code on the way may take for its own."""


def _between_trainings(number, frame) -> None:
    raise _Told


def chosen(runs: Sequence[Run], only: Sequence[str], task: int | None = None) -> tuple[str, ...]:
    """The labels that --only or --task name.

    Raises:
      UserError: the study does not have them.
    """
    labels = [run.label for run in runs]
    for label in only:
        if label not in labels:
            raise UserError(f"--only={label!r}: expected some of {', '.join(labels)}.{near_matches(label, labels)}")
    if task is None:
        return tuple(only)
    if only or not 0 <= task < len(labels):
        raise UserError(f"--task={task}: expected one of 0 to {len(labels) - 1}, without --only.")
    return (labels[task],)


def announce(study: Study, settings: Settings) -> list[str]:
    """What a study would train and how long that may take, as lines.

    Raises:
      UserError: as `perform`, but for what is wrong with files.
    """
    study.check_settings(settings)
    runs = study.runs(settings.options)
    lines = [f"{study.name}: {study.title} ({study.source})"]
    total, unknown = 0.0, False
    width = max([len(run.label) for run in runs], default=0)
    for run in runs:
        if settings.only and run.label not in settings.only:
            continue
        guess = estimate.of(run, settings)
        state = (
            "finished" if guess.done >= guess.steps > 0 else f"at step {guess.done:,}" if guess.done else "not begun"
        )
        left = "unknown: its data is not at hand" if guess.seconds is None else estimate.clock(guess.seconds)
        unknown, total = unknown or guess.seconds is None, total + (guess.seconds or 0.0)
        steps = f"{guess.steps:,} steps" if guess.steps else plan.resolve(run, settings).train.duration
        lines.append(
            f"  {run.label:<{width}}  {steps}, {guess.multiply_adds:,} multiply-adds an image; {state}; {left}"
        )
        lines.append(f"  {'':<{width}}  {plan.train_command(run, settings)}")
    if runs:
        lines.append(
            f"about {estimate.clock(total)} in all on this machine"
            + (", and what is unknown" if unknown else "")
            + " (from a run's own pace where it has begun, else from its multiply-adds, within a factor of 2 or 3)"
        )
    else:
        lines.append("nothing to train")
    return lines


def perform(study: Study, settings: Settings, collect: bool = False, say=functools.partial(print, flush=True)) -> dict:
    """Trains what is missing, writes the report and prints the table.

    Returns:
      What result.json has.

    Raises:
      UserError: an option, a run, a folder or a file that cannot work, before anything is trained.
    """
    study.check(settings.options)
    study.check_settings(settings)
    runs = study.runs(settings.options)
    chosen(runs, settings.only)
    if not collect and training.due(runs, settings):
        study.check_files(settings)
    folder = settings.report or os.path.join(settings.out, study.name)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"--report={folder!r}: expected a folder that can be made ({error.strerror}).") from error
    machine = provenance.machine()
    outcome = training.train_all(runs, settings, collect, say)
    conclusion = study.conclude(outcome, folder)
    record = report.write(study, outcome, conclusion, folder, machine)
    say(f"\n{study.title} ({study.source})\n")
    say(report.text_table(conclusion.rows))
    for note in record["notes"]:
        say(note)
    files = [report.TABLE, report.RESULT, *conclusion.figures]
    say(f"\nwritten to {folder}: {', '.join(files)}")
    return record
