import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.ops.linear import convolve
from alexnet_resnet.ops.local import locally_connect


def operands(shape, places, window, features, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=shape).astype(np.float32)
    kernel = random.normal(size=(*places, *window, shape[-1], features)).astype(np.float32)
    bias = random.normal(size=(*places, features)).astype(np.float32)
    return x, kernel, bias


@pytest.mark.parametrize(
    "padding, window, places", [(1, (3, 3), (5, 4)), (0, (3, 3), (3, 2)), (0, (1, 1), (5, 4)), (1, (2, 3), (6, 4))]
)
def test_equals_a_loop_over_places(padding, window, places):
    x, kernel, bias = operands((2, 5, 4, 3), places, window, 2)
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    expected = np.empty((2, *places, 2))
    for n in range(2):
        for i in range(places[0]):
            for j in range(places[1]):
                for d in range(2):
                    patch = padded[n, i : i + window[0], j : j + window[1]]
                    expected[n, i, j, d] = (patch * kernel[i, j, ..., d]).sum() + bias[i, j, d]
    y = locally_connect(*map(jnp.asarray, (x, kernel, bias)), padding=padding)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_one_kernel_everywhere_is_a_convolution():
    x, kernel, _ = operands((2, 6, 6, 3), (1, 1), (3, 3), 4)
    shared = locally_connect(jnp.asarray(x), jnp.broadcast_to(kernel, (6, 6, 3, 3, 3, 4)), padding=1)
    np.testing.assert_allclose(
        shared, convolve(jnp.asarray(x), jnp.asarray(kernel[0, 0]), padding=((1, 1), (1, 1))), rtol=1e-4, atol=1e-5
    )


def test_a_kernel_learns_from_its_own_place_alone():
    x, kernel, bias = map(jnp.asarray, operands((2, 4, 4, 1), (4, 4), (3, 3), 1))
    gradient = jax.grad(lambda kernel: locally_connect(x, kernel, bias, 1)[:, 2, 3].sum())(kernel)
    touched = np.argwhere(np.abs(gradient).sum((2, 3, 4, 5)) > 0)
    assert touched.tolist() == [[2, 3]]


def test_computes_in_the_type_of_x():
    x, kernel, bias = map(jnp.asarray, operands((1, 4, 4, 2), (4, 4), (3, 3), 2))
    assert locally_connect(x.astype(jnp.bfloat16), kernel, bias, 1).dtype == jnp.bfloat16


def test_refuses_a_kernel_of_other_places():
    x, kernel, bias = map(jnp.asarray, operands((1, 4, 4, 2), (4, 4), (3, 3), 2))
    with pytest.raises(ValueError, match="kernel of 4x4 places: expected 2x2"):
        locally_connect(x, kernel, bias)
