"""The folder of a run: its configuration, its measurements, its checkpoints."""

import json
import os
import statistics
from collections.abc import Iterator

from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError

CONFIG, DATASET, METRICS = "config.json", "dataset.json", "metrics.jsonl"
CHECKPOINTS, CURVE = "checkpoints", "curve.png"


def write_atomically(path: str, text: str) -> None:
    """Replaces a file's content as a whole: after a crash it is the old one or the new one."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def claim(workdir: str, config: ConfigDict) -> None:
    """Makes the folder this run's, or makes sure that it already is.

    Raises:
      UserError: it cannot be written, or belongs to a run whose configuration gives other results.
    """
    path = os.path.join(workdir, CONFIG)
    if os.path.exists(path):
        changed = config_lib.differences(read_config(workdir), config)
        if changed:
            raise UserError(
                f"workdir={workdir!r} belongs to another configuration; it differs in {'; '.join(changed)}."
            )
        return
    if os.path.isdir(os.path.join(workdir, CHECKPOINTS)):
        raise UserError(f"workdir={workdir!r} has checkpoints but no {CONFIG}: expected a new or an empty folder.")
    try:
        os.makedirs(workdir, exist_ok=True)
        write_atomically(path, json.dumps(json.loads(config.to_json()), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"workdir={workdir!r}: expected a folder that can be written ({error.strerror}).") from error


def describe_dataset(workdir: str, label_names: tuple[str, ...], array_shape: tuple[int, int] | None) -> None:
    """Keeps what judging other images needs of the training data.

    Args:
      workdir: the run's folder.
      label_names: one a class.
      array_shape: height and width of the images where they were arrays, None where they were encoded.
    """
    described = {"label_names": list(label_names), "array_shape": array_shape and list(array_shape)}
    write_atomically(os.path.join(workdir, DATASET), json.dumps(described, indent=2) + "\n")


def read_dataset(workdir: str) -> dict:
    """What `describe_dataset` kept.

    Raises:
      UserError: there is nothing, or it cannot be read.
    """
    return _read_json(workdir, DATASET)


def read_config(workdir: str) -> ConfigDict:
    """The configuration that the run in `workdir` was started with.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    return ConfigDict(_read_json(workdir, CONFIG))


def _read_json(workdir: str, name: str) -> dict:
    try:
        with open(os.path.join(workdir, name)) as file:
            return json.load(file)
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
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def keep_metrics_until(workdir: str, step: int) -> None:
    """Drops the measurements after `step`: the run goes on from there and will make them again."""
    path = os.path.join(workdir, METRICS)
    if os.path.exists(path):
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def final_measurements(workdir: str) -> dict[str, float]:
    """The last value of everything that the run measured, and the median of its images per second."""
    final, rates = {}, []
    for row in read_metrics(workdir):
        final |= row
        rates += [row["train/images_per_second"]] if "train/images_per_second" in row else []
    if rates:
        final["train/images_per_second"] = statistics.median(rates)
    return final
