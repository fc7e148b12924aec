"""The network that a study looks into: a run's, one of published weights, or one that the study trains."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet import pretrained
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classifier import Classifier
from alexnet_resnet.training import workdir as workdir_lib
from experiments.study import imagenet
from experiments.study.plan import Run
from experiments.study.report import Option
from experiments.study.training import Outcome

# What is trained where no other network is named: net 145, whose errors AlexNet's paper reports.
OWN = imagenet.alexnet("AlexNet as run")
NAMES = dict(alexnet="AlexNet", resnet="ResNet", resnet_cifar="ResNet", vgg="VGG", lenet="LeNet-5")


@dataclasses.dataclass(frozen=True)
class Named:
    """A network and what a table says of it.

    Attributes:
      classifier: the network.
      title: such as 'ResNet-50 (keras weights)'.
      data: the `data` section of what it was trained on; for published weights that of imagenet2012.
      budget: how much of its training was done; empty for published weights.
    """

    classifier: Classifier
    title: str
    data: ConfigDict
    budget: str = ""


def options(prefix: str = "", what: str = "the network") -> dict[str, Option]:
    """The options that name a network."""
    return {
        f"{prefix}workdir": Option("", f"The folder of a run, for {what}."),
        f"{prefix}checkpoint": Option("last", f"With --{prefix}workdir: 'last', 'best' or a step's number."),
        f"{prefix}weights": Option("", f"A file of published weights, for {what}."),
        f"{prefix}weights_format": Option("", f"With --{prefix}weights: keras, torchvision, timm or huggingface."),
        f"{prefix}model": Option("", f"With --{prefix}weights: such as resnet:50, vgg:16 or alexnet."),
    }


def check(given: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses options that contradict each other, and names of what is not there.

    Raises:
      UserError: likewise.
    """
    workdir, checkpoint, weights, weights_format, model = (given[name] for name in options(prefix))
    if workdir and weights:
        raise UserError(
            f"--{prefix}workdir={workdir!r} and --{prefix}weights={weights!r}: expected one of them, or neither."
        )
    if checkpoint != "last" and not workdir:
        raise UserError(f"--{prefix}checkpoint={checkpoint!r}: expected --{prefix}workdir with it.")
    for name, value in (("weights_format", weights_format), ("model", model)):
        if bool(value) != bool(weights):
            there, missing = (name, "weights") if value else ("weights", name)
            raise UserError(f"--{prefix}{there}={given[prefix + there]!r}: expected --{prefix}{missing} with it.")
    if weights:
        pretrained.network_of(weights_format, model)
        if not os.path.isfile(os.path.expanduser(weights)):
            raise UserError(f"--{prefix}weights={weights!r}: expected a file that exists.")
    if workdir:
        workdir_lib.read_config(workdir)


def is_given(given: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether the options name a network."""
    return bool(given[f"{prefix}workdir"] or given[f"{prefix}weights"])


def runs(given: Mapping[str, Any]) -> list[Run]:
    """What has to be trained: AlexNet, where no network is named."""
    return [] if is_given(given) else [OWN]


def load(outcome: Outcome, prefix: str = "") -> Named | None:
    """The network that the options name, or the one that was trained; None where there is none.

    Raises:
      UserError: as `prediction.from_workdir` and `prediction.from_weights`.
    """
    from alexnet_resnet.evaluation import prediction

    given, data_dir = outcome.options, outcome.settings.data_dir
    weights, workdir = given[f"{prefix}weights"], given[f"{prefix}workdir"]
    if weights:
        weights_format = given[f"{prefix}weights_format"]
        classifier = prediction.from_weights(weights, weights_format, given[f"{prefix}model"])
        return Named(classifier, f"{name_of(classifier.network)} ({weights_format} weights)", _imagenet(data_dir))
    if workdir:
        classifier = prediction.from_workdir(workdir, given[f"{prefix}checkpoint"])
        config = workdir_lib.read_config(workdir)
        budget = f"checkpoint {given[f'{prefix}checkpoint']} of a training of {config.train.duration}"
        title = f"{name_of(classifier.network)} of {os.path.basename(os.path.normpath(workdir))}"
    elif not prefix and OWN.label in outcome.sound:
        one = outcome.sound[OWN.label]
        classifier, config, title = prediction.from_workdir(one.workdir), one.config, OWN.label
        budget = one.budget
    else:
        return None
    data = config.data.copy_and_resolve_references()
    data.data_dir = data_dir or data.data_dir
    return Named(classifier, title, data, budget)


def name_of(network: Mapping[str, Any]) -> str:
    """What people call a network.

    >>> name_of(dict(name="resnet", depth=50)), name_of(dict(name="cuda_convnet", variant="11pct"))
    ('ResNet-50', '11pct')
    """
    name = NAMES.get(network["name"]) or network.get("variant") or network["name"]
    if network.get("residual") is False:
        name = "plain"
    return f"{name}-{network['depth']}" if "depth" in network else name


def _imagenet(data_dir: str) -> ConfigDict:
    """Where published weights look for images; of whatever classes and channels the dataset has."""
    data = config_lib.default("resnet").data
    data.dataset, data.data_dir, data.num_classes, data.channels = "imagenet2012", data_dir, 0, 0
    data.validation_split, data.test_split = "validation", ""
    return data
