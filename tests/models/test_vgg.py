import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet.analysis.summary import rows
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context, activations, create

TINY = dict(name="vgg", width=1 / 64)


def build(**fields):
    return create(TINY | fields, (32, 32, 3), 5, jax.random.key(0, impl="rbg"))


def images(n=2):
    return jax.random.normal(jax.random.key(1), (n, 32, 32, 3))


@nnx.jit
def evaluate(network, x):
    return network(x)


@pytest.mark.parametrize(
    "depth, parameters, multiply_adds", [(16, 138_357_544, 15_470_264_320), (19, 143_667_240, 19_632_062_464)]
)
def test_counts(depth, parameters, multiply_adds):
    table = rows(dict(name="vgg", depth=depth), (224, 224, 3), 1000)
    assert sum(row.parameters for row in table) == parameters
    assert sum(row.multiply_adds for row in table) == multiply_adds
    assert sum(row.multiply_adds > 0 for row in table) == depth
    assert {row.name: row.output for row in table}["pool5"] == (7, 7, 512)


def test_batch_norm_replaces_the_biases_of_the_convolutions():
    names = [row.name for row in rows(TINY | dict(batch_norm=True), (32, 32, 3), 5)]
    assert names[:4] == ["conv1_1", "bn1_1", "conv1_2", "bn1_2"]
    network = nnx.eval_shape(lambda: build(batch_norm=True))
    biased = {path[0] for path, _ in nnx.to_flat_state(nnx.state(network, nnx.Param)) if path[-1] == "bias"}
    assert biased == {name for name in names if name.startswith(("bn", "fc"))}


def convolved(x, conv):
    """A 3x3 convolution with padding 1 in float64, and its ReLU."""
    kernel, bias = np.float64(conv.kernel[...]), np.float64(conv.bias[...])
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = x.shape[1]
    return np.maximum(
        bias + sum(padded[:, i : i + size, j : j + size] @ kernel[i, j] for i in range(3) for j in range(3)), 0
    )


def test_the_network_is_its_layers_in_turn():
    network = build()
    for _, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        if leaf.ndim == 1:
            leaf[...] = jnp.linspace(0.1, 0.5, leaf.size)
    x = np.float64(images())
    for stage, layers in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, layers + 1):
            x = convolved(x, getattr(network, f"conv{stage}_{layer}"))
        n, side, _, maps = x.shape
        x = x.reshape(n, side // 2, 2, side // 2, 2, maps).max((2, 4))
    x = x.reshape(len(x), -1)
    for name in ("fc6", "fc7", "fc8"):
        layer = getattr(network, name)
        x = np.maximum(x, 0 if name != "fc6" else -np.inf) @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])
    np.testing.assert_allclose(evaluate(network, images()), x, rtol=1e-4, atol=1e-5)


def test_dropout_belongs_to_the_example():
    network, x, order = build(width=1 / 16), images(4), jnp.array([2, 0, 3, 1])

    @functools.partial(nnx.jit, static_argnames="train")
    def logits(network, x, examples, train):
        return network(x, Context(train=train, key=jax.random.key(7), examples=examples))

    dropped = logits(network, x, jnp.arange(4), train=True)
    permuted = logits(network, x[order], order, train=True)
    np.testing.assert_allclose(permuted, dropped[order], rtol=1e-4, atol=1e-5)
    assert not jnp.allclose(logits(network, x, order, train=True), dropped)
    still = evaluate(network, x)
    assert not jnp.allclose(dropped, still)
    np.testing.assert_allclose(logits(network, x, order, train=False), still, rtol=1e-5, atol=1e-6)
    kept = logits(build(width=1 / 16, dropout=0.0), x, order, train=True)
    np.testing.assert_allclose(kept, still, rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_activations_only():
    network = build(dtype="bfloat16", batch_norm=True)
    out = nnx.jit(lambda network, x: activations(network, x, Context(train=True))[1])(network, images(4))
    assert {name for name, value in out.items() if value.dtype != jnp.bfloat16} == {"fc8"}
    assert out["fc8"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(depth=11), "model.depth=11: expected one of 16, 19."),
        (dict(dropout=1.0), "model.dropout=1.0: expected a share of at least 0 and below 1."),
        (dict(ghost_batch=-1), "model.ghost_batch=-1: expected a number of at least 0."),
        (dict(width=0.0), "model.width=0.0: expected a number above 0."),
        (dict(dtype="int8"), "model.dtype='int8': expected one of"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(UserError) as caught:
        build(**fields)
    assert str(caught.value).startswith(message)


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match=r"image_shape=\(31, 40, 3\): expected at least 32 pixels a side"):
        create(TINY, (31, 40, 3), 5, jax.random.key(0))
