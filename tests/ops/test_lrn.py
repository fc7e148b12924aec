"""Local response normalisation against the formula written as a loop, TensorFlow's and PyTorch's."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.ops.lrn import local_response_norm

CHANNELS = range(1, 13)
SIZES = range(1, 8)
# Far from the paper's, so that a channel too many or too few in a window shows at once.
CONSTANTS = {"k": 1.5, "alpha": 0.6, "beta": 0.75}


def formula(x, size=5, k=2.0, alpha=1e-4, beta=0.75, alpha_over="sum"):
    """Section 3.3 in float64, one activation and one neighbour at a time."""
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    channels = x.shape[-1]
    for place in np.ndindex(x.shape):
        i = place[-1]
        squares = 0.0
        for j in range(channels):
            if -(size // 2) <= j - i <= (size - 1) // 2:
                squares += x[place[:-1] + (j,)] ** 2
        weight = alpha / size if alpha_over == "mean" else alpha
        y[place] = x[place] / (k + weight * squares) ** beta
    return y


def each(size, **constants):
    """The normalisation of each array of a list, compiled once for all of them."""
    constants = CONSTANTS | constants
    return jax.jit(lambda xs: [local_response_norm(x, size, **constants) for x in xs])


@pytest.mark.parametrize("alpha_over", ["sum", "mean"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_formula_at_every_channel_count(size, alpha_over):
    random = np.random.default_rng(size)
    xs = [random.normal(size=(2, 3, channels)) * 3 for channels in CHANNELS]
    wants = [formula(x, size, **CONSTANTS, alpha_over=alpha_over) for x in xs]
    # Float32 is tested at the paper's size, and against TensorFlow at the other odd ones.
    for dtype, tolerance in (("float64", 1e-13), ("float32", 2e-6))[: 2 if size == 5 else 1]:
        with jax.enable_x64(dtype == "float64"):
            ys = each(size, alpha_over=alpha_over)([jnp.asarray(x, dtype) for x in xs])
        for y, want in zip(ys, wants, strict=True):
            assert y.dtype == dtype
            np.testing.assert_allclose(y, want, rtol=tolerance)


def test_defaults_are_the_papers_constants():
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 96)) * 50
    want = formula(x, size=5, k=2, alpha=1e-4, beta=0.75)
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x, jnp.float32)), want, rtol=2e-6)


def test_one_channel_sees_itself_alone():
    x = jnp.asarray([[1.0], [-2.0], [0.0]])
    np.testing.assert_allclose(local_response_norm(x, 7, 1.0, 2.0, 0.5), x / jnp.sqrt(1 + 2 * x * x), rtol=1e-6)


def test_the_authors_alpha_over_the_mean_is_a_fifth_of_the_papers():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 48)) * 50, jnp.float32)
    np.testing.assert_allclose(
        local_response_norm(x, alpha=1e-4, alpha_over="mean"), local_response_norm(x, alpha=2e-5), rtol=1e-6
    )


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_equals_tensorflow(size):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    random = np.random.default_rng(size)
    xs = [random.normal(size=(2, 2, 3, channels)).astype(np.float32) * 3 for channels in CHANNELS]
    for x, y in zip(xs, each(size)([jnp.asarray(x) for x in xs]), strict=True):
        want = tf.nn.local_response_normalization(
            x, depth_radius=size // 2, bias=CONSTANTS["k"], alpha=CONSTANTS["alpha"], beta=CONSTANTS["beta"]
        )
        np.testing.assert_allclose(y, want.numpy(), rtol=5e-6)


def values_and_gradients(xs, weights, size, **constants):
    """In float64, the values of `each` and the gradients of their sums by `weights`."""

    @jax.jit
    def both(xs, weights):
        ys, pull = jax.vjp(each(size, **constants), xs)
        return ys, pull(weights)[0]

    with jax.enable_x64(True):
        return both(*([jnp.asarray(a) for a in arrays] for arrays in (xs, weights)))


@pytest.mark.parametrize("size", SIZES)
def test_equals_pytorch_in_value_and_gradient(size):
    with np.load(pathlib.Path(__file__).with_name("torch_lrn.npz")) as file:
        recorded = dict(file)
    constants = {name: float(recorded[name]) for name in ("k", "alpha", "beta")}
    xs, weights = ([recorded[name][:, :channels] for channels in CHANNELS] for name in ("x", "weights"))
    ys, gradients = values_and_gradients(xs, weights, size, **constants, alpha_over="mean")
    for channels, y, gradient in zip(CHANNELS, ys, gradients, strict=True):
        place = size - 1, channels - 1, slice(None), slice(channels)
        np.testing.assert_allclose(y, recorded["outputs"][place], rtol=1e-12)
        np.testing.assert_allclose(gradient, recorded["gradients"][place], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("size", "beta"), [(1, 0.75), (2, 0.75), (4, 0.75), (5, 0.75), (5, 1.1)])
def test_gradient_is_the_formulas_central_difference(size, beta):
    random = np.random.default_rng(size)
    step = 1e-5
    xs, weights = ([random.normal(size=channels) for channels in CHANNELS] for _ in range(2))
    ys, gradients = values_and_gradients(xs, weights, size, beta=beta)
    constants = CONSTANTS | {"beta": beta}
    for x, y, weight, gradient in zip(xs, ys, weights, gradients, strict=True):
        np.testing.assert_allclose(y, formula(x, size, **constants), rtol=1e-13)
        shifted = [x + sign * step * np.eye(x.size) for sign in (1, -1)]
        above, below = (formula(s, size, **constants) for s in shifted)
        np.testing.assert_allclose(gradient, (above - below) @ weight / (2 * step), atol=1e-8)


def test_bfloat16_is_computed_in_float32():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(64, 48)) * 30, jnp.bfloat16)
    g = jnp.asarray(random.normal(size=x.shape), jnp.bfloat16)
    y, pull = jax.vjp(local_response_norm, x)
    wide_y, wide_pull = jax.vjp(local_response_norm, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide_y.astype(jnp.bfloat16))
    np.testing.assert_array_equal(pull(g)[0], wide_pull(g.astype(jnp.float32))[0].astype(jnp.bfloat16))
    # In bfloat16 throughout, k + 1e-4 * x^2 would often stay k.
    squares = jax.lax.reduce_window(x * x, jnp.bfloat16(0), jax.lax.add, (1, 5), (1, 1), "SAME")
    assert not np.array_equal(y, x / (2 + jnp.bfloat16(1e-4) * squares) ** jnp.bfloat16(0.75))


def test_columns_are_normalised_apart():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
    halves = [local_response_norm(half, **CONSTANTS) for half in jnp.split(x, 2, -1)]
    joined, whole = jnp.concatenate(halves, -1), local_response_norm(x, **CONSTANTS)
    differs = np.any(np.abs(joined - whole) > 1e-6, axis=0)
    assert differs.tolist() == [False, False, True, True, True, True, False, False]


def test_no_gather_forward_or_backward():
    x = jnp.ones((2, 5, 5, 16))

    def primitives(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from primitives(inner)

    def both(x):
        y, pull = jax.vjp(local_response_norm, x)
        return pull(y)

    names = set(primitives(jax.make_jaxpr(both)(x).jaxpr))
    assert {"mul", "slice"} <= names
    assert not [name for name in names if "gather" in name or "scatter" in name or "dynamic" in name]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_input_is_all_that_is_saved_for_the_gradient(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 16)), dtype)
    _, pull = jax.vjp(local_response_norm, x)
    (saved,) = jax.tree.leaves(pull)
    assert saved.dtype == dtype
    np.testing.assert_array_equal(saved, x)


@pytest.mark.parametrize("size", [0, -1])
def test_a_window_of_no_channels_is_an_error(size):
    with pytest.raises(ValueError, match=f"size={size}: expected at least 1"):
        local_response_norm(jnp.ones((2, 3)), size)


def test_an_unknown_convention_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="alpha_over='n': expected one of 'sum', 'mean'"):
        local_response_norm(jnp.ones((2, 3)), alpha_over="n")
