"""Runs judged with other views, or together; what has been judged once is read from the run's results.jsonl."""

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alexnet_resnet.data import sources
from alexnet_resnet.evaluation import judging, records
from alexnet_resnet.evaluation import runs as runs_lib
from alexnet_resnet.evaluation.judging import Request
from alexnet_resnet.evaluation.views import check_views
from alexnet_resnet.training import state as state_lib
from experiments.study import plan
from experiments.study.plan import Run, Settings
from experiments.study.training import Trained


def judge(members: Sequence[Trained], views: str, split: str = "", precise_bn: int = 0) -> dict[str, Any]:
    """The errors of one run, or of several as an ensemble.

    Args:
      members: who is judged, by the mean of their softmax outputs.
      views: one of `config.EVALUATION_VIEWS`.
      split: a split or a slice of one; by default the test split, or the validation split where there is none.
      precise_bn: training batches that statistics are taken anew from; 0 for none.

    Returns:
      The row of results.jsonl (see `evaluation.records.row`).

    Raises:
      UserError: as `judging.judge`.
    """
    workdirs = tuple(one.workdir for one in members)
    data = members[0].config.data
    request = Request(
        workdirs=workdirs,
        dataset=data.dataset,
        # Where the images are now, which may not be where they were.
        data_dir=data.data_dir,
        split=split or runs_lib.default_split(data),
        views=views,
        precise_bn=precise_bn,
        results=os.path.join(workdirs[0], records.RESULTS),
    )
    known = [dict(config_hash=records.config_hash(one.workdir), step=one.final["step"]) for one in members]
    return once(request, known)


def once(request: Request, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest row of the request's file of results that answers it; it is judged now where there is none.

    Args:
      request: with its dataset, split, views and file of results named.
      members: what a row has to say of each member, in their order.

    Raises:
      UserError: as `judging.judge`.
    """
    wanted = {name: getattr(request, name) for name in ("dataset", "split", "views", "precise_bn")}
    found = _find(request.results, wanted, members)
    if found is None:
        judging.judge(request, shown=True)
        found = _find(request.results, wanted, members)
    return found


def _find(path: str, wanted: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not os.path.exists(path):
        return None
    with open(path) as file:
        # A line that was cut off, as the machine went down, is none.
        rows = [json.loads(line) for line in file if line.endswith("}\n")]
    for row in reversed(rows):
        same = len(row["members"]) == len(members) and wanted.items() <= row.items()
        if same and all(one.items() <= other.items() for one, other in zip(members, row["members"], strict=True)):
            return row
    return None


def check_files(runs: Iterable[Run], settings: Settings, views: Iterable[str]) -> None:
    """Refuses what `judge` would refuse once the runs are trained: no split to judge, or views that cannot be had.

    Raises:
      UserError: likewise.
    """
    checked = set()
    for run, view in itertools.product(runs, views):
        if settings.only and run.label not in settings.only:
            continue
        config = plan.resolve(run, settings)
        config.evaluation.views = view
        # Networks of one kind are alike in this, and deep ones take seconds to trace.
        kind = (config.model.name, config.data.to_json(), config.evaluation.to_json())
        if kind not in checked:
            examples = sources.load(config.data, runs_lib.default_split(config.data), "data.validation_split")
            check_views(config, state_lib.from_config(config), [examples])
            checked.add(kind)


def percent(row: dict[str, Any], k: int = 1) -> float:
    """The top-k error in percent."""
    return 100 * row[f"top{k}_error"]


def interval(row: dict[str, Any], k: int = 1) -> tuple[float, float]:
    """Its 95% interval in percent."""
    low, high = row[f"top{k}_interval"]
    return 100 * low, 100 * high
