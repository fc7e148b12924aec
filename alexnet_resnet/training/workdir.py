"""The folder of a run: its configuration, its measurements, its checkpoints."""

import collections
import contextlib
import fcntl
import json
import math
import os
import statistics
from collections.abc import Iterator

from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError

CONFIG, DATASET, METRICS, LOCK = "config.json", "dataset.json", "metrics.jsonl", "lock"
CHECKPOINTS, CURVE, OVERVIEW, UNREADABLE = "checkpoints", "curve.png", "overview.png", "unreadable.txt"

# What of a whole run is told of measurements whose last value would not do.
COMBINED = {
    "train/images_per_second": statistics.median,
    "train/input_wait_share": statistics.median,
    "train/seconds": sum,
    "train/skipped_steps": sum,
    "train/device_memory_gib": max,
}


def write_atomically(path: str, text: str) -> None:
    """Replaces a file's content as a whole: after a crash it is the old one or the new one."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def check(workdir: str, config: ConfigDict) -> None:
    """Makes sure that the folder is this run's, the beginning of it (`config.lengthens`) or free; writes nothing.

    Raises:
      UserError: it belongs to a run whose configuration gives other results, or cannot be told.
    """
    if "://" in workdir:
        raise UserError(f"workdir={workdir!r}: expected a folder of a file system; object stores have to be mounted.")
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise UserError(f"workdir={workdir!r}: expected a folder, found a file.")
    if os.path.exists(os.path.join(workdir, CONFIG)):
        old = read_config(workdir)
        changed = config_lib.differences(old, config)
        if changed and not config_lib.lengthens(old, config):
            raise UserError(
                f"workdir={workdir!r} belongs to another configuration, which differs in {'; '.join(changed)}: "
                "expected the same one, or another --workdir."
            )
    elif os.path.isdir(os.path.join(workdir, CHECKPOINTS)):
        raise UserError(f"workdir={workdir!r} has checkpoints but no {CONFIG}: expected a new or an empty folder.")


@contextlib.contextmanager
def claim(workdir: str, config: ConfigDict, dataset: dict) -> Iterator[None]:
    """Holds the folder for this run alone, and leaves in it what the run is.

    Args:
      workdir: the run's folder; made if it is missing.
      config: the run's configuration, as `check` has passed it.
      dataset: what `describe` says of the training examples.

    Raises:
      UserError: it cannot be written, another process trains in it, or its run had other examples.
    """
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(workdir, exist_ok=True)
            lock = stack.enter_context(open(os.path.join(workdir, LOCK), "a"))
            # The system frees it when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(os.path.join(workdir, DATASET)):
                write_atomically(os.path.join(workdir, DATASET), json.dumps(dataset, indent=2) + "\n")
            check_dataset(workdir, dataset)
            known = os.path.exists(os.path.join(workdir, CONFIG))
            if not known or config_lib.lengthens(read_config(workdir), config):
                text = json.dumps(json.loads(config.to_json()), indent=2)
                write_atomically(os.path.join(workdir, CONFIG), text + "\n")
        except BlockingIOError as error:
            raise UserError(f"workdir={workdir!r}: expected no other process to train there, but one does.") from error
        except OSError as error:
            raise UserError(
                f"workdir={workdir!r}: expected a folder that can be written ({error.strerror})."
            ) from error
        yield


def write_mark(workdir: str, mark: str) -> None:
    """Leaves a mark by which other processes know the folder again; `claim` holds the file.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with open(os.path.join(workdir, LOCK), "w") as file:
            file.write(mark)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"workdir={workdir!r}: expected a folder that can be written ({error.strerror}).") from error


def check_mark(workdir: str, mark: str) -> None:
    """Makes sure that this is the folder that the mark was left in.

    Raises:
      UserError: it is another one.
    """
    try:
        with open(os.path.join(workdir, LOCK)) as file:
            found = file.read()
    except OSError:
        found = ""
    if found != mark:
        raise UserError(f"workdir={workdir!r}: expected one folder that all processes see, but here it is another.")


def check_dataset(workdir: str, dataset: dict) -> None:
    """Makes sure that a run goes on with the training examples that it was started with.

    Raises:
      UserError: it does not, or the folder is not the run's.
    """
    if read_dataset(workdir) != dataset:
        raise UserError(f"data: expected the examples that the run in workdir={workdir!r} was started with.")


def describe(examples: Examples | EncodedExamples) -> dict:
    """What judging other images needs of the training examples, and what tells them from others."""
    return {
        "label_names": list(examples.label_names),
        # Height and width of images that were arrays; none of those that were encoded.
        "array_shape": None if examples.encoded else list(examples.images.shape[1:3]),
        "examples": len(examples),
        "checksum": examples.checksum(),
    }


def read_dataset(workdir: str) -> dict:
    """What `describe` said of the examples that the run was started with.

    Raises:
      UserError: there is nothing, or it cannot be read.
    """
    return _read_json(workdir, DATASET)


def read_config(workdir: str) -> ConfigDict:
    """The configuration that the run in `workdir` was started with.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    found = _read_json(workdir, CONFIG)
    try:
        # Fields that are newer than the run have their defaults, which always mean what was done before them.
        config = config_lib.default(found["model"]["name"])
        for section, fields in found.items():
            if isinstance(fields, dict):
                # JSON has lists only.
                found[section] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        config.update(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"workdir={workdir!r}: expected a run's configuration in {CONFIG} ({error}).") from error
    return config


def _read_json(workdir: str, name: str) -> dict:
    try:
        with open(os.path.join(workdir, name)) as file:
            found = json.load(file)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found
    except (OSError, ValueError) as error:
        raise UserError(f"workdir={workdir!r}: expected the folder of a run, with a {name} ({error}).") from error


def read_metrics(workdir: str) -> Iterator[dict]:
    """The rows of the run's measurements, in the order of their steps; a half-written last line is left out.

    Raises:
      UserError: there are none.
    """
    path = os.path.join(workdir, METRICS)
    if not os.path.exists(path):
        raise UserError(f"workdir={workdir!r}: expected the folder of a run, with a {METRICS}.")
    with open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"workdir={workdir!r}: line {number} of {METRICS} is damaged; remove it.") from error


def keep_metrics_until(workdir: str, step: int) -> None:
    """Drops the measurements after `step`: the run goes on from there and will make them again."""
    path = os.path.join(workdir, METRICS)
    if os.path.exists(path):
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def final_measurements(workdir: str) -> dict[str, float]:
    """The last value of everything that the run measured, and what is told of the whole run.

    Returns:
      The last of each measurement, or for those in `COMBINED` what is said there of all; `best/error` and `best/step`,
      the lowest validation error and the first step that has it.
    """
    final, every = {}, collections.defaultdict(list)
    for row in read_metrics(workdir):
        final |= row
        for name, value in row.items():
            every[name].append(value)
        if row.get("validation/error", math.inf) < final.get("best/error", math.inf):
            final |= {"best/error": row["validation/error"], "best/step": row["step"]}
    for name, combine in COMBINED.items():
        if name in every:
            final[name] = combine(every[name])
    return final
