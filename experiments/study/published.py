"""Published weights that a study judges where it would else train: --weights='LABEL=FORMAT:FILE, ...'."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import published as evaluation_published
from alexnet_resnet.evaluation import records
from alexnet_resnet.evaluation.judging import Request
from alexnet_resnet.evaluation.views import check_views
from alexnet_resnet.pretrained import FORMATS, network_of
from experiments.study import imagenet, judged
from experiments.study.imagenet import Found, Pair
from experiments.study.plan import Run, Settings
from experiments.study.report import Option, Row
from experiments.study.training import Outcome

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


class Table:
    """The networks of a table, some of which are published weights.

    Args:
      outcome: what was trained; its option 'weights' says which networks are published weights.
      models: as `parse`.
      folder: of the report, where the results of published weights are kept.
    """

    def __init__(self, outcome: Outcome, models: Mapping[str, str], folder: str):
        self._outcome, self._folder = outcome, folder
        self._weights = parse(outcome.options["weights"], models)

    def judge(self, label: str, views: str) -> Found:
        """As `imagenet.judge`, of a network's published weights where they stand for it."""
        if label not in self._weights:
            return imagenet.judge(self._outcome, label, views)
        return judged.once(*_request(self._weights[label], views, self._outcome.settings, self._folder))

    def rows(self, label: str, views: str, paper: Pair, found: Found, note: str = "") -> list[Row]:
        """As `imagenet.rows`, with what has to be known of the network."""
        weights = self._weights.get(label)
        said = weights.note if weights else imagenet.diverged(self._outcome, label)
        note = "; ".join(filter(None, (note, said)))
        return imagenet.rows(label, views, paper, found, self._outcome.budget(label), note)

    def draw(self, name: str, paper: Mapping[str, Pair], found: Mapping[str, Found], views: str) -> str:
        """As `imagenet.draw`, with a star at what is published weights."""
        labels = [f"{label}*" if label in self._weights else label for label in paper]
        ours = [imagenet.pair(found[label]) for label in paper]
        said = f"error (%), {imagenet.SAID[views]}" + ("; * published weights" if self._weights else "")
        return imagenet.draw(self._folder, name, labels, list(paper.values()), ours, said)


def without(runs: Sequence[Run], options: Mapping[str, Any], models: Mapping[str, str]) -> list[Run]:
    """The runs that no published weights stand for."""
    weights = parse(options["weights"], models)
    return [run for run in runs if run.label not in weights]


def check_files(settings: Settings, models: Mapping[str, str], views: Sequence[str]) -> None:
    """Refuses weights that cannot be judged with these views, as `judged.check_files` does runs.

    Raises:
      UserError: likewise.
    """
    for one in parse(settings.options["weights"], models).values():
        for view in views:
            request, _ = _request(one, view, settings, "")
            member = evaluation_published.member(
                one.file, one.format, one.model, request.dataset, request.data_dir, request.split, view
            )
            check_views(member.config, member.network, [member.examples])


def _request(one: Weights, views: str, settings: Settings, folder: str) -> tuple[Request, list[dict]]:
    """The evaluation on the validation split of the study's dataset, and what a row has to say of the weights."""
    request = Request(
        weights=(one.file,),
        formats=(one.format,),
        models=(one.model,),
        dataset=settings.changes.get("data.dataset", "imagenet2012"),
        data_dir=settings.data_dir,
        split=settings.changes.get("data.validation_split", "validation"),
        views=views,
        batch_size=settings.changes.get("evaluation.batch_size", 0),
        results=os.path.join(folder, RESULTS),
    )
    return request, [dict(sha256=records.file_hash(one.file), format=one.format, model=one.model)]
