"""The networks, as Flax NNX modules that map NHWC images to logits.

`create` builds one from a configuration. Every module is called as `module(x, context)`; a network without a context
evaluates. `activations` returns what each layer made of its input, by name.
"""

import dataclasses
import inspect

from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_choice, near_matches
from alexnet_resnet.models.alexnet import AlexNet
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.cuda_convnet import CudaConvnet
from alexnet_resnet.models.draws import Draws
from alexnet_resnet.models.lenet import LeNet
from alexnet_resnet.models.resnet import CifarResNet, ResNet
from alexnet_resnet.models.vgg import VGG

__all__ = [
    "NETWORKS",
    "VGG",
    "AlexNet",
    "CifarResNet",
    "Context",
    "CudaConvnet",
    "LeNet",
    "ResNet",
    "activations",
    "create",
    "defaults",
]

NETWORKS = {
    "alexnet": AlexNet,
    "cuda_convnet": CudaConvnet,
    "lenet": LeNet,
    "resnet": ResNet,
    "resnet_cifar": CifarResNet,
    "vgg": VGG,
}


def defaults(name: str) -> dict:
    """The fields that a network's configuration may set besides its name, with their default values.

    Raises:
      UserError: no network has this name.
    """
    check_choice("model.name", name, tuple(NETWORKS))
    parameters = inspect.signature(NETWORKS[name].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "rngs"}


def create(model, image_shape: tuple[int, int, int], num_classes: int, key: Array) -> nnx.Module:
    """Builds the network that a configuration describes, with fresh parameters.

    Call it under `jax.jit` or `nnx.eval_shape`: initialisers run eagerly differ in their last bits.

    Args:
      model: `name` and any of the network's own fields (see `defaults`).
      image_shape: height, width, channels.
      num_classes: logits.
      key: decides the initial parameters.

    Raises:
      UserError: an unknown name, an unknown field or a value that the network refuses.
    """
    fields = dict(model)
    name = fields.pop("name")
    known = defaults(name)
    for field, value in fields.items():
        if field not in known:
            raise UserError(f"model.{field}: {name} has no such field.{near_matches(field, known)}")
        check_kind(f"model.{field}", value, known[field])
    return NETWORKS[name](tuple(image_shape), num_classes, **fields, rngs=Draws(key))


def check_kind(field: str, value, default) -> None:
    """Raises UserError unless `value` is of its default's kind: a whole number, a number, a text or a truth value."""
    kind = type(default)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{field}={value!r}: expected {kind.__name__}, such as {default!r}.")


def activations(
    network: nnx.Module, x: Float[Array, "N H W C"], context: Context = Context()
) -> tuple[Float[Array, "N K"], dict[str, Array]]:
    """The logits and every named activation of one forward pass, such as 'conv1' or 'stage2/0/bn1'.

    Under `jax.jit` whatever is not used of the dictionary is not computed for it.
    """
    named = {}
    logits = network(x, dataclasses.replace(context, activations=named))
    return logits, named
