"""Which networks each format has, what they compute there and how their input is made."""

import dataclasses
from collections.abc import Mapping

from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.models import alexnet_variants
from alexnet_resnet.pretrained import files, tables
from alexnet_resnet.pretrained.preprocessing import CAFFE, HUGGINGFACE, TORCHVISION, Preprocessing

# Projections where the shape changes and a padded max-pool: all formats.
_RESNET = dict(name="resnet", shortcut="B", stem_pool="torchvision")
_DEPTHS = {"resnet": (18, 34, 50, 101, 152), "vgg": (16, 19), "alexnet": ()}


@dataclasses.dataclass(frozen=True)
class Format:
    """Where a kind of file comes from.

    Attributes:
      suffixes: of its files' names.
      networks: from 'resnet', 'vgg' or 'alexnet' to the fields that the format's network has in ours.
      depths: the depths it has, where they are not all of ours.
      preprocessing: what the weights expect of their input.
      description: the file beside the weights that may say otherwise; '' for none.
    """

    suffixes: tuple[str, ...]
    networks: Mapping[str, Mapping]
    preprocessing: Preprocessing
    depths: tuple[int, ...] = (16, 18, 19, 34, 50, 101, 152)
    description: str = ""


_V1_5 = _RESNET | dict(stride_in="3x3", bn_epsilon=1e-5)
_TORCH_FILES = files.SAFETENSORS + files.TORCH
_ALEXNET = dict(name="alexnet") | alexnet_variants.TORCHVISION
_VGG = dict(name="vgg", batch_norm=False)

FORMATS = {
    "keras": Format(
        files.HDF5,
        {"resnet": _RESNET | dict(stride_in="1x1", bn_epsilon=1.001e-5)},
        CAFFE,
        depths=(50, 101, 152),
    ),
    "torchvision": Format(_TORCH_FILES, {"resnet": _V1_5, "alexnet": _ALEXNET, "vgg": _VGG}, TORCHVISION),
    "timm": Format(_TORCH_FILES, {"resnet": _V1_5, "vgg": _VGG}, TORCHVISION, description="config.json"),
    "huggingface": Format(_TORCH_FILES, {"resnet": _V1_5}, HUGGINGFACE, description="preprocessor_config.json"),
}


def network_of(format: str, model: str) -> dict:
    """The configuration of our network that computes what `model` computes in a format.

    Args:
      format: a key of `FORMATS`.
      model: 'resnet:DEPTH', 'vgg:DEPTH' or 'alexnet'.

    Raises:
      UserError: an unknown format or model, or a model that the format does not have.
    """
    check_choice("weights_format", format, tuple(FORMATS))
    known = models_of(format)
    if model not in known:
        raise UserError(f"model={model!r}: expected one of {', '.join(known)} with weights_format={format!r}.")
    name, _, depth = model.partition(":")
    return dict(FORMATS[format].networks[name]) | ({"depth": int(depth)} if depth else {})


def models_of(format: str) -> list[str]:
    """The models that a format has, such as 'resnet:50'."""
    found = []
    for name in FORMATS[format].networks:
        depths = [depth for depth in _DEPTHS[name] if depth in FORMATS[format].depths]
        found += [f"{name}:{depth}" for depth in depths] if _DEPTHS[name] else [name]
    return found


def namings_of(format: str, network: Mapping) -> tuple[tables.Naming, ...]:
    """The names that files of a format may have for a network's tensors, the current ones first."""
    name = network["name"]
    if name == "alexnet":
        return (tables.TORCHVISION_ALEXNET,)
    if name == "vgg":
        return (tables.timm_vgg(network["depth"]) if format == "timm" else tables.torchvision_vgg(network["depth"]),)
    if format == "keras":
        return tables.KERAS_RESNET, tables.keras_2017_resnet(network["depth"])
    return (tables.HUGGINGFACE_RESNET if format == "huggingface" else tables.TORCHVISION_RESNET,)
