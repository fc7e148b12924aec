import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.ops.spatial_norm import within_map_norm


def by_loop(x, size, k, alpha, beta):
    """The formula pixel by pixel in float64, windows cut off at the borders."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            rows = slice(max(0, i - size // 2), i + (size - 1) // 2 + 1)
            columns = slice(max(0, j - size // 2), j + (size - 1) // 2 + 1)
            squares = (x[:, rows, columns] ** 2).sum((1, 2))
            y[:, i, j] = x[:, i, j] / (k + alpha * squares) ** beta
    return y


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 1, 4, 1)])
def test_equals_the_formula_at_borders_too(size, shape):
    x = np.random.default_rng(size).normal(0, 3, shape).astype(np.float32)
    y = within_map_norm(jnp.asarray(x), size, k=1.5, alpha=0.7, beta=0.75, alpha_over="sum")
    np.testing.assert_allclose(y, by_loop(x, size, 1.5, 0.7, 0.75), rtol=2e-6)


def test_mean_divides_alpha_by_the_whole_window():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2)) * 50
    np.testing.assert_allclose(within_map_norm(x), by_loop(x, 3, 1.0, 5e-5 / 9, 0.75), rtol=2e-6)


def test_maps_do_not_meet():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3)) * 100
    alone = within_map_norm(x[..., 1:2], alpha=0.1)
    assert jnp.array_equal(within_map_norm(x, alpha=0.1)[..., 1:2], alone)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_gradient_is_the_slope_of_the_formula(size):
    random = np.random.default_rng(1)
    x, direction, weight = random.normal(0, 2, (3, 2, 5, 4, 2))
    gradient = jax.grad(lambda x: jnp.sum(weight * within_map_norm(x, size, 1.0, 0.3, 0.75, "sum")))(
        jnp.asarray(x, jnp.float32)
    )
    above, below = (np.sum(weight * by_loop(x + h * direction, size, 1.0, 0.3, 0.75)) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(np.sum(gradient * direction), (above - below) / 2e-5, rtol=1e-4)


def test_bfloat16_is_the_float32_result_rounded():
    x = (jax.random.normal(jax.random.key(0), (2, 5, 5, 3)) * 100).astype(jnp.bfloat16)
    y = within_map_norm(x)
    assert y.dtype == jnp.bfloat16
    assert jnp.array_equal(y, within_map_norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_refuses_what_it_cannot_do():
    x = jnp.ones((1, 2, 2, 1))
    with pytest.raises(ValueError, match="size=0: expected at least 1"):
        within_map_norm(x, 0)
    with pytest.raises(ValueError, match="alpha_over='max': expected one of 'sum', 'mean'"):
        within_map_norm(x, alpha_over="max")
