"""Published weights that a study judges where it would else train: --weights='LABEL=FORMAT:FILE, ...'."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import judging, records
from alexnet_resnet.evaluation.judging import Request
from alexnet_resnet.pretrained import FORMATS, network_of
from experiments.study.imagenet import Found
from experiments.study.plan import Settings
from experiments.study.report import Option

RESULTS = "weights.jsonl"
OPTION = Option(
    "", "LABEL=FORMAT:FILE,...: published weights that are judged in place of a training, as in ResNet-50=keras:FILE."
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file of published weights.

    Attributes:
      label: of the run in whose place they are judged.
      format: a key of `pretrained.FORMATS`.
      model: such as 'resnet:50'.
      file: its path.
    """

    label: str
    format: str
    model: str
    file: str

    @property
    def note(self) -> str:
        """What the table says of them."""
        network = network_of(self.format, self.model)
        later = network["name"] == "resnet" and network["depth"] >= 50 and network["stride_in"] == "3x3"
        stride = "; their bottlenecks have the stride in the 3x3 (v1.5)" if later else ""
        return f"published weights {os.path.basename(self.file)} ({self.format}), not trained here{stride}"


def parse(text: str, models: Mapping[str, str]) -> dict[str, Weights]:
    """The files of --weights by label.

    Args:
      text: the flag's value.
      models: the labels that weights may stand for, and the network of each.

    Raises:
      UserError: it cannot be read so, a format has no such network, or the file is not there.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        label, _, rest = part.partition("=")
        form, _, file = rest.partition(":")
        if label not in models or form not in FORMATS or not file:
            raise UserError(
                f"--weights={part!r}: expected LABEL=FORMAT:FILE with a label of {', '.join(models)} and a format of "
                f"{', '.join(FORMATS)}."
            )
        network_of(form, models[label])
        file = os.path.expanduser(file)
        if not os.path.isfile(file):
            raise UserError(f"--weights={part!r}: expected a file, found none at {file!r}.")
        found[label] = Weights(label, form, models[label], file)
    return found


def judge(one: Weights, views: str, settings: Settings, folder: str) -> Found:
    """The errors of published weights on the validation split of the study's dataset.

    Args:
      one: the weights.
      views: one of `config.EVALUATION_VIEWS`.
      settings: whose data_dir, data.dataset and data.validation_split say what is judged.
      folder: of the report, where the results are kept.

    Returns:
      The row of results, as `judged.judge`.
    """
    path = os.path.join(folder, RESULTS)
    dataset = settings.changes.get("data.dataset", "imagenet2012")
    split = settings.changes.get("data.validation_split", "validation")
    wanted = dict(dataset=dataset, split=split, views=views)
    member = dict(sha256=records.file_hash(one.file), format=one.format, model=one.model)
    found = _find(path, wanted, member)
    if found is None:
        request = Request(
            weights=(one.file,),
            formats=(one.format,),
            models=(one.model,),
            dataset=dataset,
            data_dir=settings.data_dir,
            split=split,
            views=views,
            batch_size=settings.changes.get("evaluation.batch_size", 0),
            results=path,
        )
        judging.judge(request, shown=True)
        found = _find(path, wanted, member)
    return found


def _find(path: str, wanted: Mapping, member: Mapping) -> Found:
    if not os.path.exists(path):
        return None
    with open(path) as file:
        rows: Sequence[dict] = [json.loads(line) for line in file if line.endswith("}\n")]
    for row in reversed(rows):
        if wanted.items() <= row.items() and member.items() <= row["members"][0].items():
            return row
    return None
