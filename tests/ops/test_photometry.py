"""The mean taken from crops on the device is the mean taken from the whole image before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.ops.photometry import mirror, subtract_mean


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


def mirrored(images, flips):
    return np.stack([image[:, ::-1] if flip else image for image, flip in zip(images, flips, strict=True)])


@pytest.mark.parametrize("pad,size", [(0, (5, 4)), (2, (8, 9)), (4, (8, 9)), (3, (10, 6)), (0, (8, 9))])
@pytest.mark.parametrize("with_flips", [True, False])
def test_equals_subtracting_first_then_padding_cropping_and_flipping(pad, size, with_flips):
    images, mean, offsets, flips = examples(pad, size)
    if not with_flips:
        flips = np.zeros_like(flips)
    border = ((pad, pad), (pad, pad), (0, 0))
    # The papers' order, and this project's: bytes are padded and cropped, then lose the mean and are mirrored.
    want = [
        crop(np.pad(image.astype(np.float32) - mean, border), offset, flip, size)
        for image, offset, flip in zip(images, offsets, flips, strict=True)
    ]
    crops = [crop(np.pad(image, border), offset, False, size) for image, offset in zip(images, offsets, strict=True)]
    got = subtract_mean(
        jnp.asarray(np.stack(crops)),
        jnp.asarray(np.pad(mean, border)),
        jnp.asarray(offsets),
        jnp.asarray(flips) if with_flips else None,
    )
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.stack(want))


@pytest.mark.parametrize("size,corner", [((5, 4), (1, 2)), ((4, 5), (2, 2)), ((8, 9), (0, 0)), ((7, 8), (0, 0))])
@pytest.mark.parametrize("with_flips", [True, False])
def test_at_the_centre_every_crop_loses_the_means_centre_after_it_is_mirrored(size, corner, with_flips):
    images, mean, offsets, flips = examples(0, size)
    crops = np.stack([crop(image, offset, False, size) for image, offset in zip(images, offsets, strict=True)])
    centre = mean[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    want = (mirrored(crops, flips) if with_flips else crops).astype(np.float32) - centre
    flips = jnp.asarray(flips) if with_flips else None
    for where in (jnp.asarray(offsets), None):
        got = subtract_mean(jnp.asarray(crops), jnp.asarray(mean), where, flips, "centre")
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, want)


def test_the_positions_differ_by_what_the_mean_does_and_agree_where_a_crop_is_the_centre():
    images, mean, offsets, _ = examples(0, (4, 5))
    offsets[:8] = 2
    crops = np.stack([crop(image, offset, False, (4, 5)) for image, offset in zip(images, offsets, strict=True)])
    arguments = jnp.asarray(crops), jnp.asarray(mean), jnp.asarray(offsets), None
    own, centre = (np.asarray(subtract_mean(*arguments, position)) for position in ("own", "centre"))
    np.testing.assert_array_equal(own[:8], centre[:8])
    parts = np.stack([crop(mean, offset, False, (4, 5)) for offset in offsets])
    np.testing.assert_allclose(centre - own, parts - mean[2:6, 2:7], atol=1e-4)


def test_another_position_is_refused():
    with pytest.raises(UserError, match="data.mean_position='middle'"):
        subtract_mean(jnp.zeros((1, 2, 2, 1), jnp.uint8), jnp.zeros((2, 2, 1)), position="middle")


def test_the_whole_canvas_needs_no_offsets():
    images, mean, _, flips = examples(0, (8, 9))
    got = subtract_mean(jnp.asarray(images), jnp.asarray(mean))
    np.testing.assert_array_equal(got, images.astype(np.float32) - mean)


def test_an_image_that_is_its_canvas_is_mirrored_together_with_its_mean():
    images, mean, _, flips = examples(0, (8, 9))
    got = subtract_mean(jnp.asarray(images), jnp.asarray(mean), flips=jnp.asarray(flips))
    np.testing.assert_array_equal(got, mirrored(images.astype(np.float32) - mean, flips))


@pytest.mark.parametrize("position", ["own", "centre"])
def test_one_value_a_channel_is_subtracted_wherever_the_crop_is(position):
    images, _, offsets, flips = examples(2, (8, 9))
    mean = np.array([[[123.68, 116.779, 103.939]]], np.float32)
    plain = images.astype(np.float32) - mean
    for where, want in (
        ((None, None), plain),
        ((jnp.asarray(offsets), None), plain),
        ((jnp.asarray(offsets), jnp.asarray(flips)), mirrored(plain, flips)),
        ((None, jnp.asarray(flips)), mirrored(plain, flips)),
    ):
        np.testing.assert_array_equal(subtract_mean(jnp.asarray(images), jnp.asarray(mean), *where, position), want)


def test_mirroring_keeps_bytes_and_turns_left_to_right_only():
    images, _, _, flips = examples(0, (8, 9))
    got = mirror(jnp.asarray(images), jnp.asarray(flips))
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, mirrored(images, flips))
    np.testing.assert_array_equal(mirror(jnp.asarray(images), None), images)


def test_bytes_do_not_wrap_around_below_zero():
    got = subtract_mean(jnp.zeros((1, 2, 2, 1), jnp.uint8), jnp.full((2, 2, 1), 200.0))
    np.testing.assert_array_equal(got, np.full((1, 2, 2, 1), -200.0))


@pytest.mark.parametrize("position", ["own", "centre"])
def test_under_jit_and_spread_over_devices(position):
    images, mean, offsets, flips = examples(0, (5, 4))
    crops = np.stack([crop(i, o, False, (5, 4)) for i, o in zip(images, offsets, strict=True)])
    arrays = crops, mean, offsets, flips
    alone = subtract_mean(*map(jnp.asarray, arrays), position)
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    rows, everywhere = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    spread = [jax.device_put(a, place) for a, place in zip(arrays, (rows, everywhere, rows, rows), strict=True)]
    got = jax.jit(subtract_mean, static_argnums=4)(*spread, position)
    np.testing.assert_array_equal(got, alone)
    assert got.sharding.is_equivalent_to(rows, 4), "no device needs another's images"
