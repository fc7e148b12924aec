"""Convolution and matrix product against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.ops.linear import convolve, dense


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def correlate(x, kernel, stride, padding):
    """The sum over the kernel's cells of what each sees of x, padded with zeros; in float64."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    height, width, _, features = kernel.shape
    rows = (x.shape[1] - height) // stride + 1
    columns = (x.shape[2] - width) // stride + 1
    y = np.zeros((x.shape[0], rows, columns, features))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + height, j * stride : j * stride + width]
            for d in range(features):
                y[:, i, j, d] = np.sum(patch * kernel[..., d], axis=(1, 2, 3))
    return y


@pytest.mark.parametrize(
    "size,window,stride,padding",
    [
        ((6, 7), (3, 3), 1, ((1, 1), (1, 1))),
        ((9, 8), (3, 3), 2, ((0, 0), (0, 0))),
        ((14, 14), (11, 11), 4, ((0, 3), (0, 3))),
        ((7, 9), (3, 2), 2, ((2, 0), (1, 3))),
        ((6, 6), (1, 1), 2, ((0, 0), (0, 0))),
        ((7, 7), (5, 5), 3, ((0, 1), (2, 0))),
    ],
)
def test_convolution_equals_a_loop(size, window, stride, padding):
    x, kernel, bias = draw(2, *size, 3), draw(*window, 3, 4, seed=1), draw(4, seed=2)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, bias)]
    want = correlate(x, kernel, stride, padding)
    np.testing.assert_allclose(convolve(*arrays, stride, padding), want + bias, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(convolve(*arrays[:2], None, stride, padding), want, rtol=1e-4, atol=1e-4)


def test_defaults_are_stride_one_and_no_padding():
    x, kernel = draw(1, 5, 6, 2), draw(3, 3, 2, 3, seed=1)
    got = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(got, correlate(x, kernel, 1, ((0, 0), (0, 0))), rtol=1e-4, atol=1e-4)


def test_dense_equals_a_sum_of_products():
    x, kernel, bias = draw(3, 5), draw(5, 4, seed=1), draw(4, seed=2)
    want = np.zeros((3, 4))
    for n, f, g in np.ndindex(3, 5, 4):
        want[n, g] += x[n, f] * kernel[f, g]
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, bias)]
    np.testing.assert_allclose(dense(*arrays), want + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dense(*arrays[:2]), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["convolve", "dense"])
def test_the_type_is_the_activations_whatever_the_parameters_are(name):
    """Parameters stay float32 and are rounded to the compute type: the result is that of rounded parameters."""
    if name == "convolve":
        layer, x, kernel = convolve, draw(2, 5, 5, 3), draw(3, 3, 3, 4, seed=1)
    else:
        layer, x, kernel = dense, draw(2, 30), draw(30, 4, seed=1)
    x, kernel, bias = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32), jnp.asarray(draw(4), jnp.float32)
    y = layer(x, kernel, bias)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, layer(x, kernel.astype(jnp.bfloat16), bias.astype(jnp.bfloat16)))
    wide = layer(x.astype(jnp.float32), kernel, bias)
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=0.05, atol=0.1)


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(Exception, match="convolve|dimension"):
        convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 2, 4)))
    with pytest.raises(Exception, match="dense|dimension"):
        dense(jnp.zeros((1, 4)), jnp.zeros((3, 2)))
