"""Batch normalisation's moments and map against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.test_util import check_grads

from alexnet_resnet.ops.batch_norm import batch_moments, batch_normalise, one_pass, split_batch_moments, two_passes


@pytest.fixture(autouse=True, params=["cpu", "gpu"])
def platform(request, monkeypatch):
    """Processors and accelerators take the moments in different ways."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


def draw(*shape, scale=1.0, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(size=shape) * scale + shift


@pytest.mark.parametrize("shape", [(12, 3), (12, 5, 4), (12, 4, 5, 3)])
@pytest.mark.parametrize("group", [0, 1, 3, 4, 12])
def test_moments_of_each_group_of_successive_examples(shape, group):
    x = draw(*shape, scale=2, shift=1)
    mean, variance = batch_moments(jnp.asarray(x, jnp.float32), group)
    size = group or 12
    assert mean.shape == variance.shape == (12 // size, shape[-1])
    for i in range(12 // size):
        part = x[i * size : (i + 1) * size].reshape(-1, shape[-1])
        np.testing.assert_allclose(mean[i], part.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[i], np.square(part - part.mean(0)).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group", [5, 13, 24, -1, -4])
def test_a_group_that_does_not_divide_the_batch_is_an_error(group):
    with pytest.raises(ValueError, match=f"group={group}: expected a divisor of the batch size 12"):
        batch_moments(jnp.zeros((12, 3)), group)


def test_variance_survives_a_mean_far_above_the_spread():
    """A one-pass variance in float32, E[x^2] - E[x]^2, is off by far more than itself here."""
    x = jnp.asarray(draw(64, 4, 4, 3, shift=10000.0), jnp.float32)
    _, variance = batch_moments(x)
    want = np.asarray(x, np.float64).var((0, 1, 2))
    np.testing.assert_allclose(variance[0], want, rtol=1e-4)
    one_pass = jnp.mean(x * x, (0, 1, 2)) - jnp.square(jnp.mean(x, (0, 1, 2)))
    assert np.max(np.abs(one_pass - want) / want) > 0.1


def test_one_pass_has_the_values_and_gradients_of_two():
    x = draw(3, 8, 5, 5, 4, scale=np.array([0.1, 1, 10, 3]), shift=np.array([30, 0, -200, 1]))
    with jax.enable_x64(True):
        weights = draw(2, 3, 4, seed=1)
        found = [
            (
                moments(jnp.asarray(x)),
                jax.grad(lambda x, m=moments: sum(jnp.sum(w * v) for w, v in zip(weights, m(x), strict=True)))(x),
            )
            for moments in (one_pass, two_passes)
        ]
        for one, two in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
    # Channels without spread, at any height: a variance of zero to rounding, and no gradient that is no number.
    flat = jnp.broadcast_to(jnp.asarray([0.1, 1e4, -3.0, 0.0], jnp.float32), (1, 8, 5, 5, 4))
    mean, variance = one_pass(flat)
    np.testing.assert_allclose(mean[0], flat[0, 0, 0, 0], rtol=1e-6)
    assert np.all(np.asarray(variance) <= 1e-6) and np.all(np.asarray(variance) >= 0)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(one_pass(x)[1]))(flat)))


@pytest.mark.parametrize("dtype,wide", [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_types(dtype, wide):
    with jax.enable_x64(True):
        x = jnp.asarray(draw(8, 3), dtype)
        mean, variance = batch_moments(x)
        assert mean.dtype == variance.dtype == wide
        one, zero = jnp.ones(3, wide), jnp.zeros(3, wide)
        y = batch_normalise(x, mean, variance, one, zero, 1e-5)
        assert y.dtype == dtype
        # The moments are of the values as they are, not rounded again.
        exact = np.asarray(x, np.float64)
        np.testing.assert_allclose(mean[0], exact.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(variance[0], exact.var(0), rtol=1e-5)
        want = jnp.asarray((exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5))
        np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=8e-3 if dtype == "bfloat16" else 1e-5)


@pytest.mark.parametrize("shape", [(12, 3), (12, 4, 5, 3)])
@pytest.mark.parametrize("group", [0, 4])
def test_normalise_is_the_formula_with_each_groups_own_moments(shape, group):
    x, scale, bias = draw(*shape, scale=3, shift=2), draw(3, seed=1), draw(3, seed=2)
    mean, variance = batch_moments(jnp.asarray(x, jnp.float32), group)
    args = (jnp.asarray(a, jnp.float32) for a in (scale, bias))
    got = batch_normalise(jnp.asarray(x, jnp.float32), mean, variance, *args, 1e-3)
    size = group or 12
    for i in range(12 // size):
        part = x[i * size : (i + 1) * size]
        axes = tuple(range(part.ndim - 1))
        want = (part - part.mean(axes)) / np.sqrt(part.var(axes) + 1e-3) * scale + bias
        np.testing.assert_allclose(got[i * size : (i + 1) * size], want, rtol=1e-4, atol=1e-5)


def test_running_moments_are_one_group():
    x = draw(5, 2, 2, 3)
    mean, variance, scale, bias = draw(3, seed=1), np.square(draw(3, seed=2)) + 0.1, draw(3, seed=3), draw(3, seed=4)
    wide = [jnp.asarray(a, jnp.float32) for a in (x, mean[None], variance[None], scale, bias)]
    want = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(batch_normalise(*wide, 1e-5), want, rtol=1e-4, atol=1e-5)


def test_a_constant_channel_becomes_its_bias():
    x = jnp.full((8, 2, 2, 1), 7.0)
    y = batch_normalise(x, *batch_moments(x), jnp.asarray([3.0]), jnp.asarray([0.5]), 1e-5)
    np.testing.assert_allclose(y, 0.5, atol=1e-5)


def test_gradients_pass_through_the_moments():
    with jax.enable_x64(True):
        x, scale, bias = (jnp.asarray(a) for a in (draw(6, 2, 2, 3), draw(3, seed=1), draw(3, seed=2)))

        def normalise(*arrays):
            x, scale, bias = map(jnp.asarray, arrays)
            return batch_normalise(x, *batch_moments(x, 3), scale, bias, 1e-3)

        check_grads(normalise, (x, scale, bias), 1, ["rev"], atol=1e-5, rtol=1e-5)


def test_groups_do_not_depend_on_how_many_devices_share_the_batch():
    x = jnp.asarray(draw(16, 2, 2, 3), jnp.float32)
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    for one, many in zip(batch_moments(x, 4), jax.jit(batch_moments, static_argnums=1)(spread, 4), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("group", [0, 1, 2, 4, 8, 16])
def test_a_split_batch_has_the_moments_of_the_whole_and_their_gradient(group):
    """Sixteen examples on two times two devices, four on each: groups within one, over two, over all."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    with jax.enable_x64(True):
        x = jnp.asarray(draw(16, 2, 3, 5, scale=2, shift=1))

        def normalise(x, moments):
            mean, variance = moments(x)
            return batch_normalise(x, mean, variance, jnp.arange(5.0), jnp.ones(5), 1e-3)

        whole = lambda x: normalise(x, lambda x: batch_moments(x, group))  # noqa: E731
        split = jax.shard_map(
            lambda x: normalise(x, lambda x: split_batch_moments(x, ("a", "b"), group)),
            mesh=mesh,
            in_specs=jax.P(("a", "b")),
            out_specs=jax.P(("a", "b")),
        )
        np.testing.assert_allclose(jax.jit(split)(x), whole(x), rtol=1e-12, atol=1e-12)
        ours, expected = (jax.jit(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))))(x) for f in (split, whole))
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("group", [3, 6, -1, 32])
def test_groups_that_do_not_nest_in_the_parts_are_an_error(group):
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    moments = jax.shard_map(
        lambda x: split_batch_moments(x, ("a",), group)[0], mesh=mesh, in_specs=jax.P("a"), out_specs=jax.P("a")
    )
    with pytest.raises(ValueError, match=f"group={group}: expected groups that nest in parts of 4 examples"):
        moments(jnp.zeros((16, 3)))
