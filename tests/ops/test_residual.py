"""The parameter-free shortcut and the sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.ops.residual import pad_shortcut, residual_add


def draw(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("features", [4, 7, 8])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_option_a_takes_every_stride_th_pixel_and_pads_channels_with_zeros(size, features, stride):
    x = draw(2, *size, 4)
    y = pad_shortcut(x, features, stride)
    rows, columns = range(0, size[0], stride), range(0, size[1], stride)
    assert y.shape == (2, len(rows), len(columns), features)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            np.testing.assert_array_equal(y[:, i, j, :4], x[:, row, column])
    assert not np.any(y[..., 4:])


def test_option_a_is_the_identity_where_nothing_changes():
    x = draw(2, 4, 4, 3)
    np.testing.assert_array_equal(pad_shortcut(x, 3), x)


def test_option_a_has_the_size_of_a_strided_convolution_with_padding_one():
    """Otherwise the sum with F(x) would not exist: 1 + floor((size + 2 - 3) / 2) outputs, also for odd sizes."""
    for size in range(1, 20):
        assert pad_shortcut(jnp.zeros((1, size, size, 1)), 2, 2).shape[1] == 1 + (size - 1) // 2


def test_option_a_keeps_the_type():
    assert pad_shortcut(draw(1, 4, 4, 2, dtype=jnp.bfloat16), 4, 2).dtype == jnp.bfloat16


def test_fewer_features_than_channels_is_an_error():
    with pytest.raises(ValueError, match="features=3: expected at least x's 4 channels"):
        pad_shortcut(draw(1, 2, 2, 4), 3)


def test_the_nonlinearity_stands_after_the_sum():
    residual, shortcut = draw(2, 3, 3, 4), draw(2, 3, 3, 4, seed=1)
    want = np.maximum(np.asarray(residual) + np.asarray(shortcut), 0)
    np.testing.assert_array_equal(residual_add(residual, shortcut), want)


def test_without_a_shortcut_the_block_is_plain_and_a_zero_shortcut_is_the_same():
    residual = draw(2, 3, 3, 4)
    np.testing.assert_array_equal(residual_add(residual, None), np.maximum(residual, 0))
    np.testing.assert_array_equal(residual_add(residual, None), residual_add(residual, jnp.zeros_like(residual)))


def test_the_gradient_passes_the_sum_unchanged_to_both_sides():
    residual, shortcut, g = (draw(2, 3, 3, 4, seed=seed) for seed in range(3))
    y, pull = jax.vjp(residual_add, residual, shortcut)
    to_residual, to_shortcut = pull(g)
    np.testing.assert_array_equal(to_residual, np.where(np.asarray(y) > 0, g, 0))
    np.testing.assert_array_equal(to_shortcut, to_residual)
