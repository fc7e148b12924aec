"""The convolution with gradients of its own against the one of `lax`, in float64, and where it may not fall back."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_resnet.ops import conv_gradient
from alexnet_resnet.ops.conv_gradient import PIXELS, SMALL, applies, convolve_cpu, kernel_gradient

# x, kernel, stride, padding.
CASES = {
    "cifar 3x3": ((4, 8, 8, 3), (3, 3, 3, 5), 1, ((1, 1), (1, 1))),
    "cifar 3x3/2": ((4, 8, 8, 3), (3, 3, 3, 6), 2, ((1, 1), (1, 1))),
    "odd sizes, stride 2": ((3, 9, 7, 2), (3, 3, 2, 4), 2, ((1, 1), (1, 1))),
    "1x1": ((4, 5, 6, 3), (1, 1, 3, 2), 1, ((0, 0), (0, 0))),
    "1x1/2": ((4, 7, 6, 3), (1, 1, 3, 2), 2, ((0, 0), (0, 0))),
    "1x1 padded": ((2, 4, 4, 3), (1, 1, 3, 2), 1, ((1, 0), (0, 2))),
    "asymmetric padding": ((2, 6, 7, 3), (3, 3, 3, 4), 1, ((0, 2), (1, 0))),
    "asymmetric padding, stride 2": ((2, 6, 7, 3), (3, 3, 3, 4), 2, ((0, 1), (2, 0))),
    "padding wider than the kernel": ((2, 3, 3, 2), (2, 2, 2, 3), 1, ((3, 2), (2, 4))),
    "a kernel that is not square": ((2, 8, 6, 3), (2, 5, 3, 4), 1, ((1, 0), (2, 2))),
    "an even kernel, stride 3": ((2, 11, 10, 2), (4, 2, 2, 3), 3, ((1, 1), (0, 1))),
    "stride past the kernel": ((2, 9, 9, 2), (2, 2, 2, 3), 4, ((0, 0), (0, 0))),
    "alexnet conv1": ((1, 15, 15, 1), (11, 11, 1, 2), 4, ((0, 1), (0, 1))),
    "the kernel covers the image": ((3, 4, 4, 2), (4, 4, 2, 3), 1, ((0, 0), (0, 0))),
    "channels past a small product": ((2, 4, 4, 43), (3, 3, 43, 43), 1, ((1, 1), (1, 1))),
    "one image, one channel": ((1, 5, 5, 1), (3, 3, 1, 1), 1, ((1, 1), (1, 1))),
    "a prime batch": ((13, 3, 3, 2), (3, 3, 2, 2), 1, ((1, 1), (1, 1))),
    "negative padding": ((2, 8, 8, 3), (3, 3, 3, 4), 1, ((-1, 1), (0, -2))),
    "an empty output": ((2, 2, 2, 3), (3, 3, 3, 4), 1, ((0, 0), (0, 0))),
}


def stock(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def operands(x_shape, kernel_shape, dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in (x_shape, kernel_shape)]


def gradients(convolve, x, kernel, stride, padding):
    """Of a function with a different slope at every output, with respect to both operands."""

    def loss(x, kernel):
        y = convolve(x, kernel, stride, padding)
        return jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape)))

    return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_lax(case, monkeypatch):
    # The products are right for windows of any size.
    monkeypatch.setattr(conv_gradient, "CELLS", 1000)
    x_shape, kernel_shape, stride, padding = CASES[case]
    with jax.enable_x64(True):
        x, kernel = operands(x_shape, kernel_shape, jnp.float64)
        np.testing.assert_array_equal(convolve_cpu(x, kernel, stride, padding), stock(x, kernel, stride, padding))
        expected = gradients(stock, x, kernel, stride, padding)
        actual = gradients(convolve_cpu, x, kernel, stride, padding)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


def test_the_cases_have_products_on_both_sides_of_small():
    sizes = [h * c * w * d for _, (h, w, c, d), stride, _ in CASES.values() if stride == 1]
    assert min(sizes) < SMALL < max(sizes)


def test_kernel_gradient_is_the_sum_it_says():
    with jax.enable_x64(True):
        x, _ = operands((2, 5, 6, 2), (1,), jnp.float64)
        g, _ = operands((2, 3, 3, 3), (1,), jnp.float64)
        actual = kernel_gradient(x, g, (3, 2), 2, ((1, 1), (0, 0)))
        padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
        expected = np.zeros((3, 2, 2, 3))
        for a, b, i, j in np.ndindex(3, 2, 3, 3):
            expected[a, b] += np.einsum("nc,nd->cd", padded[:, 2 * i + a, 2 * j + b], g[:, i, j])
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [int(PIXELS**0.5) // 4, int(PIXELS**0.5) + 1])
def test_the_number_of_images_a_product_takes_does_not_show(size):
    """Many small images share a product; one image of more than PIXELS has its own."""
    with jax.enable_x64(True):
        x, kernel = operands((6, size, size, 1), (3, 3, 1, 2), jnp.float64)
        expected = gradients(stock, x, kernel, 1, ((1, 1), (1, 1)))
        actual = gradients(convolve_cpu, x, kernel, 1, ((1, 1), (1, 1)))
        np.testing.assert_allclose(actual[1], expected[1], rtol=1e-9)


def test_bfloat16_is_summed_in_float32():
    with jax.enable_x64(True):
        x, kernel = operands((64, 8, 8, 3), (3, 3, 3, 4), jnp.bfloat16)
        g, _ = operands((64, 8, 8, 4), (1,), jnp.bfloat16)
        actual = kernel_gradient(x, g, (3, 3), 1, ((1, 1), (1, 1)))
        assert actual.dtype == jnp.bfloat16
        exact = kernel_gradient(x.astype("float64"), g.astype("float64"), (3, 3), 1, ((1, 1), (1, 1)))
        np.testing.assert_array_equal(actual, exact.astype("float32").astype("bfloat16"))


def test_second_derivatives_equal_those_of_lax():
    with jax.enable_x64(True):
        x, kernel = operands((2, 5, 5, 2), (3, 3, 2, 2), jnp.float64)

        def slope(convolve):
            def norm(x, kernel):
                dx, dk = gradients(convolve, x, kernel, 2, ((1, 1), (1, 1)))
                return jnp.sum(dx**2) + jnp.sum(dk**3)

            return jax.grad(norm, (0, 1))(x, kernel)

        for a, e in zip(slope(convolve_cpu), slope(stock), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9)


def test_large_windows_negative_padding_and_empty_outputs_are_left_to_lax():
    assert not applies((128, 16, 16, 32), (5, 5, 32, 32), 1, ((2, 2), (2, 2)))
    assert not applies((16, 224, 224, 3), (11, 11, 3, 48), 4, ((0, 3), (0, 3)))
    assert applies((16, 56, 56, 64), (1, 1, 64, 256), 1, ((0, 0), (0, 0)))
    assert not applies((2, 8, 8, 3), (3, 3, 3, 4), 1, ((-1, 1), (0, 0)))
    assert not applies((2, 2, 2, 3), (3, 3, 3, 4), 1, ((0, 0), (0, 0)))
    assert applies((128, 32, 32, 16), (3, 3, 16, 16), 1, ((1, 1), (1, 1)))


SHARDED = """
import json, re
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from alexnet_resnet.ops.conv_gradient import convolve_cpu

jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
x = rng.normal(size=(16, 6, 6, 3))
kernels = [rng.normal(size=(3, 3, 3, 4)), rng.normal(size=(3, 3, 4, 4)), rng.normal(size=(1, 1, 4, 5))]

def loss(kernels, x):
    for kernel, stride, pad in zip(kernels, (1, 2, 1), (1, 1, 0)):
        x = jnp.tanh(convolve_cpu(x, kernel, stride, ((pad, pad), (pad, pad))))
    return jnp.sum(x)

@partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
def sharded_loss(kernels, x):
    return jax.lax.psum(loss(kernels, x), "data")

expected = jax.grad(loss)(kernels, x)
here, there = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
kernels, x = jax.device_put(kernels, here), jax.device_put(x, there)
out = {}
for name, f in (("jit", loss), ("shard_map", sharded_loss)):
    step = jax.jit(jax.grad(f), out_shardings=here).lower(kernels, x).compile()
    actual = step(kernels, x)
    out[name] = {
        "error": max(float(jnp.max(jnp.abs(a - e))) for a, e in zip(actual, expected)),
        "collectives": sorted(set(re.findall(
            r"\\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\\(", step.as_text()))),
    }
print(json.dumps(out))
"""


def test_a_sharded_batch_gives_the_same_gradients_and_only_sums_cross_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for result in json.loads(run.stdout.splitlines()[-1]).values():
        assert result["error"] < 1e-10
        assert result["collectives"] == ["all-reduce"]
