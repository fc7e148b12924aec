"""Norms of gradients, against differences in float64 and by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet import models
from alexnet_resnet.analysis import gradients
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context

SHAPE = (8, 8, 3)


def build(seed=0, **model):
    model = dict(name="resnet_cifar", depth=8, width=0.25) | model
    return nnx.jit(lambda: models.create(model, SHAPE, 4, jax.random.key(seed, impl="rbg")))()


def batch(n, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, *SHAPE)).astype(np.float32), random.integers(0, 4, n).astype(np.int32)


def shake(network, seed=0):
    random = np.random.default_rng(seed)
    for path, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        if path[-1] in ("scale", "bias"):
            leaf[...] = leaf[...] + jnp.asarray(random.uniform(-0.4, 0.4, leaf.shape), jnp.float32)
    return network


@pytest.fixture(scope="module")
def network():
    return shake(build())


def pulled(network, images, labels):
    """The gradient of every kernel by another way: a vector-Jacobian product of the logits, the loss's part by hand."""
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def logits(params):
        return nnx.merge(graphdef, params, rest, copy=True)(jnp.asarray(images), Context(train=True))

    out, pull = jax.vjp(logits, params)
    powers = np.exp(np.float64(out) - np.float64(out).max(1, keepdims=True))
    softmax = powers / powers.sum(1, keepdims=True)
    slope = (softmax - np.eye(4)[labels]) / len(labels)
    (found,) = pull(jnp.asarray(slope, jnp.float32))
    loss = -np.log(softmax[np.arange(len(labels)), labels]).mean()
    flat = nnx.to_flat_state(found)
    return {"/".join(map(str, p[:-1])): np.float64(v[...]) for p, v in flat if p[-1] == "kernel"}, loss


def test_norms_are_averages_over_the_batches(network):
    batches = [batch(6, 1), batch(4, 2)]
    before = jax.tree.map(np.array, nnx.state(network))
    found = gradients.norms(network, iter(batches))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(network)))
    convs = [f"stage{stage}/0/conv{layer}" for stage in (1, 2, 3) for layer in (1, 2)]
    assert list(found.kernels) == list(found.relative) == ["conv1", *convs, "fc"]
    assert list(found.outputs) == ["stage1/0", "stage2/0", "stage3/0"]
    each = [pulled(network, *one) for one in batches]
    parts = {"/".join(map(str, path)): part for path, part in nnx.iter_graph(network)}
    for name, norm in found.kernels.items():
        expected = np.mean([np.linalg.norm(slopes[name]) for slopes, _ in each])
        assert norm == pytest.approx(expected, rel=1e-4)
        size = np.linalg.norm(np.float64(parts[name].kernel[...]))
        assert found.relative[name] == pytest.approx(expected / size, rel=1e-4)
    assert found.loss == pytest.approx(np.mean([loss for _, loss in each]), rel=1e-5)


def test_a_blocks_output_has_the_gradient_of_what_follows_it(network):
    """The last block is followed by a mean over the places and fc alone, whose gradient is known."""
    images, labels = batch(6, 1)
    logits = np.float64(nnx.clone(network)(jnp.asarray(images), Context(train=True)))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    slope = powers / powers.sum(1, keepdims=True) - np.eye(4)[labels]
    # 2x2 places share the gradient of their mean; the norm over them is half of it.
    each = np.linalg.norm(slope @ np.float64(network.fc.kernel[...]).T, axis=1) / 2
    found = gradients.norms(network, [(images, labels)])
    assert found.outputs["stage3/0"] == pytest.approx(np.sqrt(np.mean(each**2)), rel=1e-5)


def test_outputs_do_not_depend_on_the_batch_size(network):
    images, labels = batch(4, 3)
    one = gradients.norms(network, [(images, labels)])
    twice = gradients.norms(network, [(np.concatenate([images] * 2), np.concatenate([labels] * 2))])
    for field in ("kernels", "outputs"):
        for name, norm in getattr(one, field).items():
            assert getattr(twice, field)[name] == pytest.approx(norm, rel=1e-3), (field, name)


def emptied(network, stages=("stage1", "stage2", "stage3")):
    """The network with branches of zeros, and a stem whose output is above zero everywhere."""
    network.bn1.bias[...] = jnp.full_like(network.bn1.bias[...], 20)
    for stage in stages:
        for block in getattr(network, stage):
            block.bn2.scale[...] = jnp.zeros_like(block.bn2.scale[...])
    return network


def test_a_shortcut_hands_the_gradient_on_unchanged():
    network = emptied(build(depth=20))
    found = gradients.norms(network, [batch(4)])
    first, second = found.outputs["stage1/0"], found.outputs["stage1/2"]
    assert first == second == found.outputs["stage1/1"] > 0
    # The second stage's shortcut takes every other pixel of what is above zero, and so do its identities.
    assert found.outputs["stage2/0"] == found.outputs["stage2/1"] > 0
    # Of an empty branch only the last scale would learn; its kernels have no gradient, the stem has.
    assert all(norm == 0 for name, norm in found.kernels.items() if name.startswith("stage"))
    assert found.kernels["conv1"] > 0 and found.kernels["fc"] > 0


def test_without_a_shortcut_nothing_passes_an_empty_block():
    network = emptied(build(depth=14, residual=False), ["stage2"])
    # Above zero, so that the stages after it have something to work with.
    for block in network.stage2:
        block.bn2.bias[...] = jnp.ones_like(block.bn2.bias[...])
    found = gradients.norms(network, [batch(4)])
    assert found.outputs["stage1/0"] == found.outputs["stage1/1"] == found.outputs["stage2/0"] == 0
    assert found.outputs["stage2/1"] > 0 and found.kernels["conv1"] == 0


def test_networks_without_blocks_have_kernels_only():
    model = dict(name="lenet")
    network = nnx.jit(lambda: models.create(model, (32, 32, 1), 4, jax.random.key(0, impl="rbg")))()
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
    found = gradients.norms(network, [(images, np.array([0, 3], np.int32))])
    assert list(found.kernels) == ["c1", "c3", "c5", "f6"] and not found.outputs
    assert all(norm > 0 for norm in found.kernels.values())


def test_no_batches(network):
    with pytest.raises(UserError, match="batches: expected at least one, found none"):
        gradients.norms(network, [])


def test_the_figure_has_a_panel_for_each_norm(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    plain = gradients.Gradients({"a": 1.0, "b": 0.0}, {"a": 0.1, "b": 0.0}, {"s": 2.0}, 1.5)
    bare = gradients.Gradients({"a": 1.0}, {"a": 0.1}, {}, 1.5)
    gradients.draw({"plain-8": plain, "ResNet-8": bare}, str(tmp_path / "both.png"))
    gradients.draw({"LeNet": bare}, str(tmp_path / "bare.png"))
    assert [len(figure.axes) for figure in drawn] == [3, 2]
    kernels, relative, outputs = drawn[0].axes
    assert kernels.get_yscale() == "log"
    np.testing.assert_array_equal(kernels.lines[0].get_ydata(), [1, np.nan])
    assert [line.get_linestyle() for line in kernels.lines] == ["--", "-"]
    assert list(relative.lines[1].get_ydata()) == [0.1] and list(outputs.lines[0].get_ydata()) == [2]
    monkeypatch.undo()
    gradients.draw({"plain-8": plain, "ResNet-8": bare}, str(tmp_path / "both.png"), note="at $initialisation")
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_checkpoints_of_one_network_compile_once(network):
    images, labels = batch(4)
    gradients.norms(network, [(images, labels)])
    compiled = gradients._of_batch._cache_size()
    other = build(seed=3)
    assert gradients.norms(other, [(images, labels)]) != gradients.norms(network, [(images, labels)])
    assert gradients._of_batch._cache_size() == compiled
