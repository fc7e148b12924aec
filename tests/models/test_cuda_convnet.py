import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet.analysis.summary import rows
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import activations, create

SIDES = {"18pct": 32, "11pct": 24, "13pct": 24, "fig1": 32}


def build(variant, **fields):
    side = SIDES[variant]
    return create(
        dict(name="cuda_convnet", variant=variant, **fields), (side, side, 3), 10, jax.random.key(0, impl="rbg")
    )


def lively(network):
    """Kernels large enough for the normalisations to matter, and biases."""
    random = np.random.default_rng(0)
    for _, leaf in nnx.to_flat_state(nnx.state(network)):
        fan_in = np.prod(leaf.shape[:-1])
        leaf[...] = jnp.asarray(random.normal(0, 3 / np.sqrt(fan_in), leaf.shape), jnp.float32)
    return network


def images(variant, n=2):
    return jax.random.uniform(jax.random.key(1), (n, SIDES[variant], SIDES[variant], 3), minval=-128, maxval=127)


named = nnx.jit(lambda network, x: activations(network, x)[1])


@pytest.mark.parametrize(
    "variant, parameters", [("18pct", 89_578), ("fig1", 89_578), ("11pct", 2_112_970), ("13pct", 1_116_490)]
)
def test_counts(variant, parameters):
    side = SIDES[variant]
    table = rows(dict(name="cuda_convnet", variant=variant), (side, side, 3), 10)
    assert sum(row.parameters for row in table) == parameters


LAYERS = {
    "18pct": "conv1 32x32x32, pool1 16x16x32, norm1 16x16x32, conv2 16x16x32, pool2 8x8x32, norm2 8x8x32, "
    "conv3 8x8x64, pool3 4x4x64, fc10 10",
    "fig1": "conv1 32x32x32, pool1 16x16x32, conv2 16x16x32, pool2 8x8x32, conv3 8x8x64, pool3 4x4x64, fc10 10",
    "11pct": "conv1 24x24x64, pool1 12x12x64, norm1 12x12x64, conv2 12x12x64, norm2 12x12x64, pool2 6x6x64, "
    "local3 6x6x64, local4 6x6x32, fc10 10",
    "13pct": "conv1 24x24x64, pool1 12x12x64, conv2 12x12x64, pool2 6x6x64, local3 6x6x32, local4 6x6x32, fc10 10",
}


@pytest.mark.parametrize("variant", LAYERS)
def test_layers_and_their_order(variant):
    side = SIDES[variant]
    table = rows(dict(name="cuda_convnet", variant=variant), (side, side, 3), 10)
    assert ", ".join(f"{row.name} {'x'.join(map(str, row.output))}" for row in table) == LAYERS[variant]


def convolved(x, layer):
    kernel, bias = np.float64(layer.kernel[...]), np.float64(layer.bias[...])
    x, side = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), x.shape[1]
    return bias + sum(x[:, i : i + side, j : j + side] @ kernel[i, j] for i in range(5) for j in range(5))


def local(x, layer):
    kernel, bias = np.float64(layer.kernel[...]), np.float64(layer.bias[...])
    y = np.empty((x.shape[0], *bias.shape))
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(bias.shape[:2]):
        y[:, i, j] = bias[i, j] + np.tensordot(x[:, i : i + 3, j : j + 3], kernel[i, j], 3)
    return y


def pooled(x, reduce):
    """3x3, 2 apart, rounding up: a window that hangs over the edge is cut off, and the mean is over what is left."""
    side = 1 + -(-(x.shape[1] - 3) // 2)
    y = np.empty((x.shape[0], side, side, x.shape[-1]))
    for i, j in np.ndindex(side, side):
        y[:, i, j] = reduce(x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], (1, 2))
    return y


def within(x):
    y = np.empty_like(x)
    for i, j in np.ndindex(x.shape[1:3]):
        window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        y[:, i, j] = x[:, i, j] / (1 + 5e-5 / 9 * (window**2).sum((1, 2))) ** 0.75
    return y


def across(x):
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        window = x[..., max(c - 4, 0) : c + 5]
        y[..., c] = x[..., c] / (1 + 0.001 / 9 * (window**2).sum(-1)) ** 0.75
    return y


STEPS = {
    "18pct": dict(pool1=np.max, norm1=within, pool2=np.mean, norm2=within, pool3=np.mean),
    "fig1": dict(pool1=np.max, pool2=np.mean, pool3=np.mean),
    "11pct": dict(pool1=np.max, norm1=across, norm2=across, pool2=np.max),
    "13pct": dict(pool1=np.max, pool2=np.max),
}


@pytest.mark.parametrize("variant, activation", [*((v, "relu") for v in STEPS), ("fig1", "tanh")])
def test_every_layer_equals_numpy(variant, activation):
    network = lively(build(variant, activation=activation))
    out = named(network, images(variant))
    function = np.tanh if activation == "tanh" else lambda x: np.maximum(x, 0)
    x = np.float64(images(variant))
    for name in (layer.split()[0] for layer in LAYERS[variant].split(", ")):
        if name.startswith("conv"):
            expected = function(convolved(x, getattr(network, name)))
        elif name.startswith("local"):
            expected = function(local(x, getattr(network, name)))
        elif name == "fc10":
            layer = network.fc10
            expected = x.reshape(len(x), -1) @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])
        else:
            step = STEPS[variant][name]
            expected = pooled(x, step) if name.startswith("pool") else step(x)
        np.testing.assert_allclose(out[name], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=name)
        if name.startswith("norm"):
            assert np.abs(expected - x).max() > 0.01 * np.abs(x).max()
        x = np.float64(out[name])


@pytest.mark.parametrize(
    "variant, stds",
    [
        ("18pct", dict(conv1=1e-4, conv2=0.01, conv3=0.01, fc10=0.01)),
        ("11pct", dict(conv1=1e-4, conv2=0.01, local3=0.04, local4=0.04, fc10=0.01)),
    ],
)
def test_initial_kernels_have_the_authors_standard_deviations(variant, stds):
    network = build(variant)
    for name, std in stds.items():
        layer = getattr(network, name)
        np.testing.assert_allclose(jnp.std(layer.kernel[...]), std, rtol=0.05)
        assert not jnp.any(layer.bias[...])


@pytest.mark.parametrize("variant", ["18pct", "11pct"])
def test_bfloat16_computes_activations_only(variant):
    network = lively(build(variant, dtype="bfloat16"))
    out = named(network, images(variant))
    assert {name for name, value in out.items() if value.dtype != jnp.bfloat16} == {"fc10"}
    assert out["fc10"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}


def test_smallest_images_run():
    shapes = {row.name: row.output for row in rows(dict(name="cuda_convnet"), (8, 9, 1), 3)}
    assert (shapes["pool3"], shapes["fc10"]) == ((1, 1, 64), (3,))


@pytest.mark.parametrize(
    "model, message",
    [
        (dict(variant="12pct"), "model.variant='12pct': expected one of '18pct', '11pct', '13pct', 'fig1'."),
        (dict(activation="sigmoid"), "model.activation='sigmoid': expected one of 'relu', 'tanh'."),
        (dict(dtype="int8"), "model.dtype='int8': expected one of"),
        (dict(), "image_shape=(7, 32, 3): expected at least 8 pixels a side."),
    ],
)
def test_errors_name_the_field(model, message):
    with pytest.raises(UserError) as caught:
        create(dict(name="cuda_convnet", **model), (7, 32, 3), 10, jax.random.key(0))
    assert str(caught.value).startswith(message)
