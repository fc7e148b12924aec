"""What an evaluation leaves behind: rows of results.jsonl, and the checks of its files before anything is computed."""

import datetime
import hashlib
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classification import Result
from alexnet_resnet.evaluation.ensemble import Member, Verdict
from alexnet_resnet.evaluation.intervals import wilson
from alexnet_resnet.training import workdir as workdir_lib

RESULTS = "results.jsonl"
# Hexadecimal digits of a hash: enough to tell runs apart.
DIGITS = 12


def config_hash(workdir: str) -> str:
    """A short hash of a run's configuration: of what decides its results, not of where it ran or how it was split.

    Of the file as it was written, so that fields which are newer than the run do not change it.

    Raises:
      UserError: no such run.
    """
    workdir_lib.read_config(workdir)
    with open(os.path.join(workdir, workdir_lib.CONFIG)) as file:
        fields = dict(config_lib.flatten(json.load(file)))
    kept = {name: value for name, value in fields.items() if not name.startswith(config_lib.FREE_ON_RESUME)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:DIGITS]


def file_hash(path: str) -> str:
    """A short hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def check_file(flag: str, path: str, ending: str = "") -> None:
    """Raises UserError unless a file can be written at `path`, whose name ends in `ending`; writes nothing."""
    folder = os.path.dirname(path) or "."
    if not path.endswith(ending):
        raise UserError(f"--{flag}={path!r}: expected a name that ends in {ending}.")
    if not os.path.isdir(folder):
        raise UserError(f"--{flag}={path!r}: expected a file in a folder that exists.")
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UserError(f"--{flag}={path!r}: expected a file that can be written.")


def row(members: Sequence[Member], verdict: Verdict, split: str, precise_bn: int, seconds: float) -> dict[str, Any]:
    """What results.jsonl says of an evaluation.

    Args:
      members: who was judged.
      verdict: what was found.
      split: the split or its slice.
      precise_bn: training batches that batch normalisation's statistics were taken anew from.
      seconds: how long the evaluation took, with loading and compiling.
    """
    views = list(dict.fromkeys(member.config.evaluation.views for member in members))
    device = jax.devices()[0]
    each = [
        {**member.origin, "step": step, "views": member.config.evaluation.views, **_errors(result)}
        for member, step, result in zip(members, verdict.steps, verdict.results, strict=True)
    ]
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "dataset": members[0].config.data.dataset,
        "split": split,
        "views": "+".join(views),
        "precise_bn": precise_bn,
        **_errors(verdict.result),
        "unreadable": verdict.result.unreadable,
        "members": each,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
        "seconds": round(seconds, 1),
    }


def _errors(result: Result) -> dict[str, Any]:
    return {
        "examples": result.examples,
        # JSON has no infinity, which is the loss of a right class that was given no probability at all.
        "loss": result.loss if math.isfinite(result.loss) else None,
        **{
            f"top{k}_{name}": value
            for k, errors in ((1, result.top1_errors), (5, result.top5_errors))
            for name, value in (
                ("errors", errors),
                ("error", errors / result.examples),
                ("interval", wilson(errors, result.examples)),
            )
        },
    }


def append(path: str, row: dict[str, Any]) -> None:
    """Adds a row to a file of JSON lines.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with open(path, "ab+") as file:
            cut_off = file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            # In one piece, as several evaluations may end at the same moment.
            file.write(b"\n" * bool(cut_off) + json.dumps(row, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise UserError(f"results={path!r}: expected a file that can be written ({error.strerror}).") from error
