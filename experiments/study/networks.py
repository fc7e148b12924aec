"""The network that a study looks into: a run's, one of published weights, or one that the study trains."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet import pretrained
from alexnet_resnet.errors import UserError, near_matches
from alexnet_resnet.evaluation.classifier import Classifier
from alexnet_resnet.training import workdir as workdir_lib
from experiments.study import imagenet, plan
from experiments.study.plan import Run, Settings
from experiments.study.report import Option
from experiments.study.training import Outcome

# What is trained where no other network is named: net 145, whose errors AlexNet's paper reports.
OWN = imagenet.alexnet("AlexNet as run")
IMAGENET_CLASSES, ANY_SIZE = 1000, 2**31 - 1
NAMES = dict(alexnet="AlexNet", resnet="ResNet", resnet_cifar="ResNet", vgg="VGG", lenet="LeNet-5")


@dataclasses.dataclass(frozen=True)
class Named:
    """A network and what a table says of it.

    Attributes:
      classifier: the network.
      title: such as 'ResNet-50 (keras weights)'.
      budget: how much of its training was done; empty for published weights.
    """

    classifier: Classifier
    title: str
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
        from alexnet_resnet.evaluation import runs as runs_lib

        runs_lib.check_checkpoint(workdir, checkpoint)


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

    given = outcome.options
    weights, workdir = given[f"{prefix}weights"], given[f"{prefix}workdir"]
    if weights:
        weights_format = given[f"{prefix}weights_format"]
        classifier = prediction.from_weights(weights, weights_format, given[f"{prefix}model"])
        return Named(classifier, f"{name_of(classifier.network)} ({weights_format} weights)")
    if workdir:
        classifier = prediction.from_workdir(workdir, given[f"{prefix}checkpoint"])
        config = workdir_lib.read_config(workdir)
        budget = f"checkpoint {given[f'{prefix}checkpoint']} of a training of {config.train.duration}"
        title = f"{name_of(classifier.network)} of {os.path.basename(os.path.normpath(workdir))}"
    elif not prefix and OWN.label in outcome.sound:
        one = outcome.sound[OWN.label]
        classifier, title, budget = prediction.from_workdir(one.workdir), OWN.label, one.budget
    else:
        return None
    return Named(classifier, title, budget)


def config_of(settings: Settings, prefix: str = "") -> ConfigDict | None:
    """The configuration of the network that `load` would give, trained or not; None where there is none.

    Of published weights it is what can be known without reading them, and their images are those of imagenet2012.
    """
    given = settings.options
    if given[f"{prefix}weights"]:
        weights_format = given[f"{prefix}weights_format"]
        network = pretrained.network_of(weights_format, given[f"{prefix}model"])
        config = config_lib.default(network["name"])
        config.model.update(network)
        config.data.update(dataset="imagenet2012", num_classes=IMAGENET_CLASSES, channels=3)
        config.data.update(validation_split="validation", test_split="")
        config.data.image_size = pretrained.FORMATS[weights_format].preprocessing.crop
        return config
    if given[f"{prefix}workdir"]:
        return workdir_lib.read_config(given[f"{prefix}workdir"])
    return None if prefix else plan.resolve(OWN, settings)


def layers(config: ConfigDict) -> list[str]:
    """The names of a network's activations in the order of computation. Nothing is computed."""
    import jax
    from flax import nnx

    from alexnet_resnet import models
    from alexnet_resnet.analysis import by_layer

    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    create = functools.partial(models.create, config.model, shape, config.data.num_classes)
    return by_layer.order(nnx.eval_shape(create, jax.random.key(0)), shape)


def check_layer(flag: str, layer: str, known: Sequence[str], title: str) -> None:
    """Refuses a layer that a network does not have.

    Raises:
      UserError: likewise.
    """
    if layer not in known:
        outside = [name for name in known if "/" not in name]
        blocks = ", or one inside of a block" if len(outside) < len(known) else ""
        hint = near_matches(layer, known)
        raise UserError(f"--{flag}={layer!r}: expected a layer of {title}, one of {', '.join(outside)}{blocks}.{hint}")


def data_of(settings: Settings, dataset: str = "") -> ConfigDict:
    """The images that the network is asked about: the `data` section of a configuration.

    Args:
      settings: the network, and where the images are.
      dataset: as `config.data.dataset`; empty for what the network was trained on.
    """
    config = config_of(settings)
    own, data = config.data.dataset, config.data.copy_and_resolve_references()
    if dataset and dataset != own:
        # Its classes are compared by name, and where the own ones are it is not.
        data.update(dataset=dataset, data_dir="", num_classes=0, view="canvas")
    if settings.options["weights"]:
        # Arrays of any size are resized, as files are; a prepared set may be too small.
        resize = pretrained.FORMATS[settings.options["weights_format"]].preprocessing.resize
        data.update(num_classes=0, canvas_size=resize if data.dataset == "prepared" else ANY_SIZE)
    data.data_dir = settings.data_dir or data.data_dir
    return data


def name_of(network: Mapping[str, Any]) -> str:
    """What people call a network.

    >>> name_of(dict(name="resnet", depth=50)), name_of(dict(name="cuda_convnet", variant="11pct"))
    ('ResNet-50', '11pct')
    """
    name = NAMES.get(network["name"]) or network.get("variant") or network["name"]
    if network.get("residual") is False:
        name = "plain"
    return f"{name}-{network['depth']}" if "depth" in network else name
