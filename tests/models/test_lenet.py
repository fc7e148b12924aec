import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet.analysis.summary import rows
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context, activations, create
from alexnet_resnet.models.lenet import C3_SEES, codes, squash

FULL = dict(connections="full", subsampling="average", output="linear")


def build(classes=10, seed=0, **fields):
    return create(dict(name="lenet", **fields), (32, 32, 1), classes, jax.random.key(seed, impl="rbg"))


def images(n=2):
    return jax.random.uniform(jax.random.key(1), (n, 32, 32, 1), minval=-0.1, maxval=1.175)


@pytest.mark.parametrize(
    "fields, layers",
    [
        ({}, dict(c1=156, s2=12, c3=1516, s4=32, c5=48_120, f6=10_164, output=0)),
        (FULL, dict(c1=156, s2=0, c3=2416, s4=0, c5=48_120, f6=10_164, output=850)),
    ],
)
def test_counts(fields, layers):
    found = {row.name: row.parameters for row in rows(dict(name="lenet", **fields), (32, 32, 1), 10)}
    assert found == layers
    assert sum(found.values()) == (61_706 if fields else 60_000)


def test_connections_are_those_of_table_1():
    assert [len(seen) for seen in C3_SEES] == [3] * 6 + [4] * 9 + [6]
    assert len({frozenset(seen) for seen in C3_SEES}) == 16
    # Every map of s2 is seen by ten maps of c3.
    assert [sum(i in seen for seen in C3_SEES) for i in range(6)] == [10] * 6


def test_sparse_maps_see_only_their_own():
    c3 = build().c3
    x = np.random.default_rng(2).normal(size=(2, 7, 6, 6)).astype(np.float32)
    kernel, bias = np.float64(c3.kernel[...]), np.arange(16.0)
    c3.bias[...] = jnp.asarray(bias, jnp.float32)
    expected, connection = np.zeros((2, 3, 2, 16)), 0
    for number, seen in enumerate(C3_SEES):
        for i in seen:
            for row in range(3):
                for column in range(2):
                    patch = x[:, row : row + 5, column : column + 5, i]
                    expected[:, row, column, number] += (patch * kernel[..., connection]).sum((1, 2))
            connection += 1
    np.testing.assert_allclose(c3(jnp.asarray(x), Context()), expected + bias, rtol=1e-5, atol=1e-5)


def test_squash_keeps_plus_and_minus_one():
    np.testing.assert_allclose(squash(jnp.array([-1.0, 0.0, 1.0, 100.0])), [-1, 0, 1, 1.7159], atol=1e-5)


@pytest.mark.parametrize("fields", [{}, FULL])
def test_layers_compute_what_the_paper_writes(fields):
    network = build(**fields)
    out = nnx.jit(lambda network, x: activations(network, x)[1])(network, images())

    def subsampled(x, layer):
        n, height, breadth, maps = x.shape
        cells = np.float64(x).reshape(n, height // 2, 2, breadth // 2, 2, maps)
        if layer is None:
            return cells.mean((2, 4))
        layer.scale[...] = jnp.linspace(-0.5, 0.5, maps)
        layer.bias[...] = jnp.linspace(1, 2, maps)
        sums = cells.sum((2, 4)) * np.linspace(-0.5, 0.5, maps) + np.linspace(1, 2, maps)
        return 1.7159 * np.tanh(2 / 3 * sums)

    for before, name in (("c1", "s2"), ("c3", "s4")):
        layer = getattr(network, name)
        expected = subsampled(out[before], layer)
        again = out[name] if layer is None else layer(out[before], Context())
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
    flat = np.float64(out["s4"]).reshape(2, -1)
    c5 = 1.7159 * np.tanh(2 / 3 * (flat @ np.float64(network.c5.kernel[...])))
    np.testing.assert_allclose(out["c5"], c5, rtol=1e-4, atol=1e-5)
    f6 = 1.7159 * np.tanh(2 / 3 * (c5 @ np.float64(network.f6.kernel[...])))
    np.testing.assert_allclose(out["f6"], f6, rtol=1e-4, atol=1e-5)
    if fields:
        expected = f6 @ np.float64(network.output.kernel[...])
    else:
        expected = np.array([[-sum((row - word) ** 2) for word in codes(10)] for row in f6])
    np.testing.assert_allclose(out["output"], expected, rtol=1e-4, atol=1e-4)


def test_code_words_differ_in_half_their_components():
    words = codes(84)
    assert set(np.unique(words)) == {-1, 1}
    np.testing.assert_array_equal(words @ words.T, 84 * np.eye(84))


def test_weights_start_uniform_over_their_fan_in():
    network = build()
    for kernel, fan_in in [(network.c1.kernel, 25), (network.c5.kernel, 400), (network.f6.kernel, 120)]:
        largest = 2.4 / fan_in
        assert 0.9 * largest < jnp.max(jnp.abs(kernel[...])) <= largest
        np.testing.assert_allclose(jnp.mean(kernel[...]), 0, atol=0.2 * largest)
    last = network.c3.kernel[..., -6:]  # those of the map that sees all six
    assert 0.9 * 2.4 / 150 < jnp.max(jnp.abs(last)) <= 2.4 / 150


def test_other_sizes_and_channels_run():
    shapes = {row.name: row.output for row in rows(dict(name="lenet"), (28, 20, 3), 4)}
    assert (shapes["s4"], shapes["output"]) == ((4, 2, 16), (4,))


def test_bfloat16_computes_activations_only():
    network = build(dtype="bfloat16")
    out = nnx.jit(lambda network, x: activations(network, x)[1])(network, images())
    assert {name for name, value in out.items() if value.dtype != jnp.bfloat16} == {"output"}
    assert out["output"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(connections="dense"), "model.connections='dense': expected one of 'sparse', 'full'."),
        (dict(subsampling="max"), "model.subsampling='max': expected one of 'trainable', 'average'."),
        (dict(output="softmax"), "model.output='softmax': expected one of 'rbf', 'linear'."),
        (dict(dtype="int8"), "model.dtype='int8': expected one of"),
        (dict(classes=85), "model.output='rbf': expected 'linear' for 85 classes"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(UserError) as caught:
        build(**fields)
    assert str(caught.value).startswith(message)


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match=r"image_shape=\(15, 32, 1\): expected at least 16 pixels a side."):
        create(dict(name="lenet"), (15, 32, 1), 10, jax.random.key(0))
