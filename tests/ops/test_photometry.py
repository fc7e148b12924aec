"""The mean taken from crops on the device is the mean taken from the whole image before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.ops.photometry import subtract_mean


def crop(image, offset, flip, size):
    part = image[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    return part[:, ::-1] if flip else part


def examples(pad, size, canvas=(8, 9), count=32, channels=3):
    random = np.random.default_rng(pad)
    images = random.integers(0, 256, (count, *canvas, channels), dtype=np.uint8)
    mean = random.uniform(0, 255, (*canvas, channels)).astype(np.float32)
    room = np.array(canvas) + 2 * pad - size
    offsets = random.integers(0, room, (count, 2), endpoint=True)
    offsets[0], offsets[1] = 0, room
    return images, mean, offsets, random.integers(0, 2, count).astype(bool)


@pytest.mark.parametrize("pad,size", [(0, (5, 4)), (2, (8, 9)), (4, (8, 9)), (3, (10, 6)), (0, (8, 9))])
@pytest.mark.parametrize("with_flips", [True, False])
def test_equals_subtracting_first_then_padding_cropping_and_flipping(pad, size, with_flips):
    images, mean, offsets, flips = examples(pad, size)
    if not with_flips:
        flips = np.zeros_like(flips)
    border = ((pad, pad), (pad, pad), (0, 0))
    # The papers' order, and the pipeline's: bytes are padded, cropped and flipped, and the mean comes after.
    want = [
        crop(np.pad(image.astype(np.float32) - mean, border), offset, flip, size)
        for image, offset, flip in zip(images, offsets, flips, strict=True)
    ]
    crops = [
        crop(np.pad(image, border), offset, flip, size)
        for image, offset, flip in zip(images, offsets, flips, strict=True)
    ]
    got = subtract_mean(
        jnp.asarray(np.stack(crops)),
        jnp.asarray(np.pad(mean, border)),
        jnp.asarray(offsets),
        jnp.asarray(flips) if with_flips else None,
    )
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.stack(want))


def test_the_whole_canvas_needs_no_offsets():
    images, mean, _, flips = examples(0, (8, 9))
    got = subtract_mean(jnp.asarray(images), jnp.asarray(mean))
    np.testing.assert_array_equal(got, images.astype(np.float32) - mean)


def test_a_flipped_image_loses_the_flipped_mean_without_offsets_too():
    images, mean, _, flips = examples(0, (8, 9))
    want = [crop(image - mean, (0, 0), flip, (8, 9)) for image, flip in zip(images, flips, strict=True)]
    flipped = [crop(image, (0, 0), flip, (8, 9)) for image, flip in zip(images, flips, strict=True)]
    got = subtract_mean(jnp.asarray(np.stack(flipped)), jnp.asarray(mean), flips=jnp.asarray(flips))
    np.testing.assert_array_equal(got, np.stack(want))


def test_one_value_a_channel_is_subtracted_wherever_the_crop_is():
    images, _, offsets, flips = examples(2, (8, 9))
    mean = jnp.asarray([[[123.68, 116.779, 103.939]]])
    want = images.astype(np.float32) - np.asarray(mean)
    for where in ((), (jnp.asarray(offsets),), (jnp.asarray(offsets), jnp.asarray(flips))):
        np.testing.assert_array_equal(subtract_mean(jnp.asarray(images), mean, *where), want)


def test_bytes_do_not_wrap_around_below_zero():
    got = subtract_mean(jnp.zeros((1, 2, 2, 1), jnp.uint8), jnp.full((2, 2, 1), 200.0))
    np.testing.assert_array_equal(got, np.full((1, 2, 2, 1), -200.0))


def test_under_jit_and_spread_over_devices():
    images, mean, offsets, flips = examples(0, (5, 4))
    crops = np.stack([crop(i, o, f, (5, 4)) for i, o, f in zip(images, offsets, flips, strict=True)])
    alone = subtract_mean(*(jnp.asarray(a) for a in (crops, mean, offsets, flips)))
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    rows, everywhere = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    places = (rows, everywhere, rows, rows)
    spread = [jax.device_put(a, place) for a, place in zip((crops, mean, offsets, flips), places, strict=True)]
    np.testing.assert_array_equal(jax.jit(subtract_mean)(*spread), alone)
