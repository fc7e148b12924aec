"""Runs judged with other views, or together; what has been judged once is read from the run's results.jsonl."""

import json
import os
from collections.abc import Sequence
from typing import Any

from alexnet_resnet.evaluation import judging, records
from alexnet_resnet.evaluation.judging import Request
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
    """
    workdirs = tuple(one.workdir for one in members)
    path = os.path.join(workdirs[0], records.RESULTS)
    data = members[0].config.data
    wanted = dict(
        dataset=data.dataset,
        views=views,
        precise_bn=precise_bn,
        split=split or data.test_split or data.validation_split,
        members=[(records.config_hash(one.workdir), one.final["step"]) for one in members],
    )
    found = _find(path, wanted)
    if found is None:
        # Where the images are now, which may not be where they were.
        request = Request(workdirs=workdirs, views=views, split=split, precise_bn=precise_bn, data_dir=data.data_dir)
        judging.judge(request, shown=True)
        found = _find(path, wanted)
    return found


def _find(path: str, wanted: dict) -> dict[str, Any] | None:
    """The newest row that is of these members, views and split."""
    if not os.path.exists(path):
        return None
    with open(path) as file:
        rows = [json.loads(line) for line in file if line.endswith("}\n")]
    for row in reversed(rows):
        members = [(member.get("config_hash"), member["step"]) for member in row["members"]]
        if members == wanted["members"] and all(row[name] == wanted[name] for name in wanted if name != "members"):
            return row
    return None


def percent(row: dict[str, Any], k: int = 1) -> float:
    """The top-k error in percent."""
    return 100 * row[f"top{k}_error"]


def interval(row: dict[str, Any], k: int = 1) -> tuple[float, float]:
    """Its 95% interval in percent."""
    low, high = row[f"top{k}_interval"]
    return 100 * low, 100 * high
