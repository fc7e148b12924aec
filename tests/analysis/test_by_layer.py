"""The order of a network's layers, and how networks are told apart in a figure."""

import jax
import pytest
from flax import nnx

from alexnet_resnet import models
from alexnet_resnet.analysis import by_layer
from alexnet_resnet.errors import UserError


def traced(shape, **model):
    return nnx.eval_shape(lambda: models.create(model, shape, 4, jax.random.key(0)))


def test_layers_stand_in_the_order_of_computation():
    names = by_layer.order(traced((8, 8, 3), name="resnet_cifar", depth=74, width=0.0625, shortcut="B"), (8, 8, 3))
    expected = ["conv1", "bn1"]
    for stage in (1, 2, 3):
        for block in range(12):
            own = ["conv1", "bn1", "conv2", "bn2"]
            own += ["shortcut_conv", "shortcut_bn"] if stage > 1 and block == 0 else []
            expected += [f"stage{stage}/{block}/{layer}" for layer in own] + [f"stage{stage}/{block}"]
        expected.append(f"stage{stage}")
    assert names == [*expected, "pool", "fc"], "block 10 comes after block 9, and bn1 after conv1"


@pytest.mark.parametrize(
    "model, shape",
    [
        (dict(name="resnet", depth=50, width=0.0625), (32, 32, 3)),
        (dict(name="alexnet", width=0.125), (224, 224, 3)),
        (dict(name="cuda_convnet", variant="11pct"), (24, 24, 3)),
        (dict(name="lenet"), (32, 32, 1)),
        (dict(name="vgg", width=0.125), (64, 64, 3)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_every_kernel_has_its_place(model, shape):
    network = traced(shape, **model)
    kernels = {
        "/".join(map(str, path[:-1]))
        for path, _ in nnx.to_flat_state(nnx.state(network, nnx.Param))
        if path[-1] == "kernel"
    }
    assert kernels and kernels <= set(by_layer.order(network, shape))
    assert kernels <= by_layer.modules(network).keys()


def test_plain_nets_are_dashed_and_one_depth_has_one_colour():
    found = by_layer.styles(["plain-20", "Plain-56", "ResNet-20", "ResNet-56", "ResNet-110"])
    assert [style["linestyle"] for style in found.values()] == ["--", "--", "-", "-", "-"]
    assert [style["color"] for style in found.values()] == ["C0", "C1", "C0", "C1", "C2"]
    assert all(style["label"] == name for name, style in found.items())
    chosen = by_layer.styles(["a", "plain-b"], dashed=["a"])
    assert [style["linestyle"] for style in chosen.values()] == ["--", "-"]


def test_no_networks_and_unknown_ones():
    with pytest.raises(UserError, match="curves: expected at least one network, found none"):
        by_layer.styles([])
    with pytest.raises(UserError, match="dashed='plain-2': expected one of 'plain-20'.* Did you mean 'plain-20'"):
        by_layer.styles(["plain-20"], ["plain-2"])
