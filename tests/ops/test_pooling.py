"""Pooling against loops over windows that read only what lies inside the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from alexnet_resnet.ops.pool_gradient import largest, max_pool_compared
from alexnet_resnet.ops.pooling import avg_pool, ceil_padding, global_avg_pool, max_pool

NONE = ((0, 0), (0, 0))
CASES = [
    ((7, 7), 3, 2, NONE),
    ((6, 9), 2, 2, NONE),
    ((8, 8), 3, 2, ((0, 1), (0, 1))),
    ((5, 6), 3, 1, ((1, 1), (1, 1))),
    ((7, 4), 3, 2, ((1, 1), (0, 1))),
    ((9, 5), 2, 3, ((0, 0), (1, 0))),
    ((4, 4), 4, 1, NONE),
]


def windows(x, window, stride, padding, reduce):
    """`reduce` of the cells of each window that lie inside x, [N, H, W, C], in float64."""
    x = np.asarray(x, np.float64)
    (top, bottom), (left, right) = padding
    n, height, width, channels = x.shape
    rows = (height + top + bottom - window) // stride + 1
    columns = (width + left + right - window) // stride + 1
    y = np.zeros((n, rows, columns, channels))
    for i in range(rows):
        for j in range(columns):
            above, before = i * stride - top, j * stride - left
            cells = x[:, max(above, 0) : above + window, max(before, 0) : before + window]
            y[:, i, j] = reduce(cells, axis=(1, 2))
    return y


@pytest.mark.parametrize("size,window,stride,padding", CASES)
def test_max_pool_equals_a_loop_and_padding_never_wins(size, window, stride, padding):
    # All below zero: a padding of zeros would win every window at an edge.
    x = jnp.asarray(-1 - np.random.default_rng(0).uniform(size=(2, *size, 3)), jnp.float32)
    got = max_pool(x, window, stride, padding)
    np.testing.assert_array_equal(got, windows(x, window, stride, padding, np.max))


@pytest.mark.parametrize("size,window,stride,padding", CASES)
def test_avg_pool_divides_by_the_cells_inside(size, window, stride, padding):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    got = avg_pool(x, window, stride, padding)
    np.testing.assert_allclose(got, windows(x, window, stride, padding, np.mean), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(avg_pool(jnp.full_like(x, 3), window, stride, padding), 3, rtol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize("size,window,stride,padding", [CASES[2], CASES[3], CASES[5]])
def test_gradients(pool, size, window, stride, padding):
    with jax.enable_x64(True):
        # Well apart, so that a small step does not change which cell is the largest.
        x = jnp.asarray(np.random.default_rng(0).permutation(2 * size[0] * size[1]).reshape(1, *size, 2) / 10.0)
        check_grads(lambda x: pool(jnp.asarray(x), window, stride, padding), (x,), 1, ["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size,window,stride,padding", CASES)
def test_the_gradient_for_processors_is_that_of_xla_also_where_values_are_equal(size, window, stride, padding):
    # Four values only, zeros above all, as after a ReLU: most windows hold their largest value several times.
    random = np.random.default_rng(0)
    x = jnp.asarray(np.maximum(random.integers(-4, 4, size=(3, *size, 2)), 0), jnp.float32)

    @jax.jit
    def gradients(x):
        y = largest(x, window, stride, padding)
        slopes = jnp.asarray(random.integers(-9, 9, size=y.shape), jnp.float32)

        def loss(x, pool):
            return jnp.sum(slopes * pool(x, window, stride, padding))

        return [jax.grad(loss)(x, pool) for pool in (largest, max_pool_compared)]

    # Whole numbers: no order of summation rounds.
    theirs, ours = gradients(x)
    np.testing.assert_array_equal(ours, theirs)


def test_a_window_of_padding_alone_and_bfloat16():
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    got = jax.grad(lambda x: jnp.sum(max_pool_compared(x, 2, 2, ((0, 2), (0, 0))).astype(jnp.float32)[:, :1]))(x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got[0, :, :, 0].astype(jnp.float32), [[1, 0], [0, 0]])


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_overlapping_pooling_of_alexnet(pool):
    """Section 3.4's 3 and 2: 55 -> 27 -> 13 -> 6, with nothing to pad though the author's sizes round up."""
    x = jnp.zeros((1, 55, 55, 1))
    for side in (27, 13, 6):
        padding = [ceil_padding(size, 3, 2) for size in x.shape[1:3]]
        assert padding == [(0, 0), (0, 0)]
        x = pool(x, 3, 2, padding)
        assert x.shape == (1, side, side, 1)


def test_ceil_padding_of_alexnets_first_convolution():
    pad = ceil_padding(224, window=11, stride=4)
    assert pad == (0, 3)
    assert (224 + sum(pad) - 11) // 4 + 1 == 55
    assert ceil_padding(227, window=11, stride=4) == (0, 0)


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_ceil_padding_rounds_the_output_up_and_adds_no_more(pad):
    for size in range(1, 40):
        for window in range(1, 12):
            for stride in range(1, 6):
                if size + 2 * pad < window:
                    continue
                before, after = ceil_padding(size, window, stride, pad)
                assert before == pad
                assert (size + before + after - window) // stride == -(-(size + 2 * pad - window) // stride)
                assert pad <= after < pad + stride
                exact = (size + 2 * pad - window) % stride == 0
                assert (after == pad) == exact


def test_the_last_window_of_an_even_size_hangs_over_the_edge():
    x = jnp.arange(32.0)[None, :, None, None] * jnp.ones((1, 32, 32, 1))
    padding = [ceil_padding(32, 3, 2)] * 2
    largest, mean = max_pool(x, 3, 2, padding), avg_pool(x, 3, 2, padding)
    assert largest.shape == mean.shape == (1, 16, 16, 1)
    assert largest[0, -1, -1, 0] == 31
    assert mean[0, -1, -1, 0] == 30.5


def test_global_avg_pool_is_the_mean_of_all_positions():
    x = np.random.default_rng(0).normal(size=(3, 7, 5, 4))
    np.testing.assert_allclose(global_avg_pool(jnp.asarray(x, jnp.float32)), x.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["window", "hanging", "global"])
def test_bfloat16_means_are_summed_in_float32(name):
    pool = {
        "window": lambda x: avg_pool(x, 5, 2),
        "hanging": lambda x: avg_pool(x, 5, 2, ((0, 1), (0, 1))),
        "global": global_avg_pool,
    }[name]
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (2, 16, 16, 3)), jnp.bfloat16)
    y = pool(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, pool(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_the_mean_of_many_bfloat16_ones_is_one():
    """In bfloat16 256 + 1 is 256: sums would stop there."""
    x = jnp.ones((1, 33, 33, 2), jnp.bfloat16)
    for y in (avg_pool(x, 33, 1), avg_pool(x, 33, 1, ((1, 1), (1, 1))), global_avg_pool(x)):
        np.testing.assert_array_equal(y, jnp.ones_like(y))


def test_max_pool_keeps_bfloat16():
    x = jnp.asarray(-np.random.default_rng(0).uniform(1, 2, (1, 6, 6, 2)), jnp.bfloat16)
    y = max_pool(x, 3, 2, ((0, 1), (0, 1)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, windows(x, 3, 2, ((0, 1), (0, 1)), np.max))
