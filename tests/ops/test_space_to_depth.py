"""A strided convolution over blocks of pixels against the plain one, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_resnet.ops import linear
from alexnet_resnet.ops.space_to_depth import applies, convolve_blocks

# Side, window, stride, padding: AlexNet's conv1 both ways, ResNet's, and what fits badly.
SHAPES = {
    "alexnet": (224, 11, 4, ((0, 3), (0, 3))),
    "torchvision": (64, 11, 4, ((2, 2), (2, 2))),
    "resnet": (64, 7, 2, ((3, 3), (3, 3))),
    "pixels that no window sees": (17, 3, 4, ((0, 0), (0, 0))),
    "window of a stride": (12, 4, 4, ((0, 0), (1, 0))),
    "window below the stride": (13, 2, 3, ((1, 2), (0, 1))),
    "as small as the window": (5, 5, 3, ((0, 0), (0, 0))),
    "no output": (3, 5, 2, ((0, 0), (0, 1))),
}


def plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_the_plain_convolution(name):
    side, window, stride, padding = SHAPES[name]
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(random.normal(size=(2, side, side + 3, 3)))
        kernel = jnp.asarray(random.normal(size=(window, window, 3, 4)))
        wanted = plain(x, kernel, stride, padding)
        found = convolve_blocks(x, kernel, stride, padding)
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)
        weights = jnp.asarray(random.normal(size=wanted.shape))
        slopes = [
            jax.grad(lambda x, k, f=f: jnp.sum(weights * f(x, k, stride, padding)), (0, 1))(x, kernel)
            for f in (convolve_blocks, plain)
        ]
        for ours, theirs in zip(*slopes, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_it_is_for_strided_kernels_of_images_alone():
    room = ((0, 0), (0, 0))
    assert applies((11, 11, 3, 96), 4, room) and applies((7, 7, 1, 8), 2, room)
    assert not applies((11, 11, 3, 96), 1, room)
    assert not applies((3, 3, 64, 64), 2, room)
    assert not applies((7, 7, 3, 64), 2, ((0, -1), (0, 0)))


@pytest.mark.parametrize("platform,called", [("cpu", False), ("gpu", True), ("tpu", True)])
def test_accelerators_take_it_and_processors_do_not(monkeypatch, platform, called):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    x, kernel = jnp.zeros((1, 16, 16, 3)), jnp.zeros((7, 7, 3, 2))
    text = str(jax.make_jaxpr(lambda x, k: linear.convolve(x, k, stride=2, padding=((3, 3), (3, 3))))(x, kernel))
    assert ("window_strides=(1, 1)" in text) == called
