"""What the evaluate command asks for, from the names of runs and files to results on disk."""

import dataclasses
import json
import os
import time

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import confusion
from alexnet_resnet.data import labels
from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.evaluation import ensemble, published, records, runs
from alexnet_resnet.evaluation.classification import Result
from alexnet_resnet.evaluation.ensemble import Member, Verdict
from alexnet_resnet.evaluation.intervals import wilson
from alexnet_resnet.parallel import hosts


@dataclasses.dataclass(frozen=True)
class Request:
    """Who is to judge what, and what is to be kept of it.

    Attributes:
      workdirs: folders of runs.
      weights: files of published weights.
      formats: theirs, one each or one for all.
      models: theirs, likewise.
      checkpoint: as `runs.restore`, of every run.
      dataset: that all judge; empty for each run's own, which published weights take of the first run.
      data_dir: where it is, likewise.
      split: a split or a slice of one; empty for the test split, or the validation split where a run has none.
      views: one of `config.EVALUATION_VIEWS`; empty for what each run judges, and 'centre' for published weights.
      batch_size: images at a time; 0 for as many as each run judges.
      precise_bn: as `runs.member`.
      results: the file that the result is appended to; empty for results.jsonl in the first run's folder.
      predictions: a .npz file for the softmax outputs; empty for none.
      top5_only: whether only the five most probable classes are kept there.
      figures: a folder for the errors of each class and the confusions; empty for none.
    """

    workdirs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    checkpoint: str = "last"
    dataset: str = ""
    data_dir: str = ""
    split: str = ""
    views: str = ""
    batch_size: int = 0
    precise_bn: int = 0
    results: str = ""
    predictions: str = ""
    top5_only: bool = False
    figures: str = ""


def judge(request: Request, shown: bool = False) -> list[str]:
    """Judges what is asked for, and keeps of it what is asked for.

    Args:
      request: who judges what.
      shown: whether progress is shown.

    Returns:
      Lines for people: what could not be read, what was found, and what was written. None but on the first process.

    Raises:
      UserError: whatever is wrong with the request, before anything is computed.
    """
    began = time.monotonic()
    with hosts.agreed():
        _check(request)
        split, members = _members(request)
        ensemble.check(members)
        strategy = runs.over_all_devices()
        if hosts.is_first():
            _check_files(request)
    keep = bool(request.predictions or request.figures)
    verdict = ensemble.judge(members, strategy, keep, shown)
    if not hosts.is_first():
        return []
    row = records.row(members, verdict, split, request.precise_bn, time.monotonic() - began)
    return [*verdict.news, *_said(members, verdict), *_write(request, members, verdict, row)]


def _check(request: Request) -> None:
    if not request.workdirs and not request.weights:
        raise UserError("--workdir is missing: expected one such as --workdir=runs/digits, or --weights=FILE.")
    if request.views:
        check_choice("--views", request.views, config_lib.EVALUATION_VIEWS)
    for flag, values in (("weights_format", request.formats), ("model", request.models)):
        given, count = len(values), len(request.weights)
        if given and not count:
            raise UserError(f"--{flag}={','.join(values)!r}: expected --weights with it.")
        if count and given not in {1, count}:
            example = "keras" if flag == "weights_format" else "resnet:50"
            many = f", or {count}, one for each of --weights" if count > 1 else ""
            raise UserError(f"--{flag}={','.join(values)!r}: expected one such as {example}{many}.")
    if request.weights and not request.workdirs and not request.dataset:
        raise UserError("--dataset='': expected the examples for --weights, such as --dataset=imagenet2012.")
    if request.weights and not request.workdirs and not request.split:
        raise UserError("--split='': expected a split for --weights, such as --split=validation.")
    if request.weights and request.precise_bn:
        raise UserError(
            f"--precise_bn={request.precise_bn}: expected 0 with --weights, whose training data is not here."
        )
    if request.top5_only and not request.predictions:
        raise UserError("--top5_only: expected --predictions=FILE with it.")


def _members(request: Request) -> tuple[str, list[Member]]:
    """The split, and everyone who judges it."""
    members = [
        runs.member(
            workdir,
            request.checkpoint,
            request.split,
            request.dataset,
            request.data_dir,
            request.precise_bn,
            request.views,
            request.batch_size,
        )
        for workdir in request.workdirs
    ]
    split = request.split or runs.default_split(members[0].config.data)
    dataset, data_dir = request.dataset, request.data_dir
    if members:
        dataset, data_dir = dataset or members[0].config.data.dataset, data_dir or members[0].config.data.data_dir
    count = len(request.weights)
    formats, models = (values * count if len(values) == 1 else values for values in (request.formats, request.models))
    for path, weights_format, model in zip(request.weights, formats, models, strict=True):
        view = request.views or "centre"
        members.append(
            published.member(path, weights_format, model, dataset, data_dir, split, view, request.batch_size)
        )
    return split, members


def _said(members: list[Member], verdict: Verdict) -> list[str]:
    """The errors: of several networks each by itself first."""
    lines = []
    several = len(members) > 1
    for member, step, result in zip(members, verdict.steps, verdict.results, strict=True):
        published_ = "weights" in member.origin
        name = member.name if several or published_ else ""
        who = " ".join(filter(None, (name, "" if published_ else f"step {step:,}")))
        lines += [f"{who} on {result.counted}: loss {result.loss:.4f}", _errors(result)]
    if several:
        result = verdict.result
        lines += [
            f"all {len(members)}, their mean softmax, on {result.counted}: loss {result.loss:.4f}",
            _errors(result),
        ]
    return lines


def _errors(result: Result) -> str:
    def of(errors: int) -> str:
        low, high = wilson(errors, result.examples)
        share = 100 * errors / result.examples
        return f"error {share:.2f}% ({errors:,} wrong; 95% interval {100 * low:.2f} to {100 * high:.2f}%)"

    return f"top-1 {of(result.top1_errors)}  top-5 {of(result.top5_errors)}"


def _check_files(request: Request) -> None:
    if request.results:
        records.check_file("results", request.results)
    if request.predictions:
        records.check_file("predictions", request.predictions, ".npz")
    if request.figures:
        try:
            os.makedirs(request.figures, exist_ok=True)
        except OSError as error:
            raise UserError(f"--figures={request.figures!r}: expected a folder ({error.strerror}).") from error
        if not os.access(request.figures, os.W_OK | os.X_OK):
            raise UserError(f"--figures={request.figures!r}: expected a folder that can be written.")


def _write(request: Request, members: list[Member], verdict: Verdict, row: dict) -> list[str]:
    """Writes the files that are asked for; a line about each."""
    lines, names = [], members[0].examples.label_names
    own = os.path.join(request.workdirs[0], records.RESULTS) if request.workdirs else ""
    if request.results or own:
        try:
            records.append(request.results or own, row)
            lines.append(f"appended to {request.results or own}")
        except UserError:
            # Somebody else's run may be looked at without a place to write.
            if request.results:
                raise
            lines.append(f"not recorded: {own} cannot be written; --results=FILE is another place")
    if request.predictions:
        verdict.outputs.save(request.predictions, names, json.dumps(row), request.top5_only)
        lines.append(f"predictions in {request.predictions}")
    if request.figures:
        title = f"{members[0].examples.name}, {row['views']}"
        lines += confusion.draw(verdict.outputs.answers(), labels.readable(names), title, request.figures)
    return lines
