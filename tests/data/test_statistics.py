"""The colour statistics are numpy's over all pixels, and the same bits however the images are shared out."""

import io

import numpy as np
import pytest

from alexnet_resnet.data import statistics
from alexnet_resnet.data.statistics import Sums
from alexnet_resnet.errors import UserError

SIZE = 12


@pytest.fixture(scope="module")
def images():
    """Colours that vary together, as natural ones do; different shapes; the last one larger than a chunk."""
    random = np.random.default_rng(0)
    shapes = [(SIZE, 17), (13, SIZE), (SIZE, SIZE), (30, 31), (15, 16), (SIZE, 400), (1030, 1025)]
    return [
        np.clip(
            random.normal(120, 60, (*shape, 1)) + random.normal(0, 15, (*shape, 3)) * [1, 0.5, 2] + [5, 0, -20], 0, 255
        ).astype(np.uint8)
        for shape in shapes
    ]


def counted(images):
    sums = Sums(SIZE)
    for image in images:
        sums.add(image)
    return sums


def bits(sums):
    result = sums.statistics()
    return [np.asarray(getattr(result, name)).tobytes() for name in result.__dataclass_fields__]


def test_the_statistics_are_numpys_over_all_pixels(images):
    assert max(image.shape[0] * image.shape[1] for image in images) > statistics.CHUNK
    result = counted(images).statistics()
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)
    assert (result.images, result.pixels) == (len(images), len(pixels))
    np.testing.assert_allclose(result.mean_colour, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(pixels.T, bias=True), rtol=1e-9)
    squares = []
    for image in images:
        top, left = (image.shape[0] - SIZE) // 2, (image.shape[1] - SIZE) // 2
        squares.append(image[top : top + SIZE, left : left + SIZE].astype(np.float64))
    np.testing.assert_allclose(result.mean_image, np.mean(squares, 0), rtol=1e-12)


def test_the_principal_axes_diagonalise_the_covariance(images):
    sums = counted(images)
    values, axes = sums.principal_axes()
    assert values[0] > values[1] > values[2] > 0
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(axes.T @ np.diag(values) @ axes, sums.covariance(), rtol=1e-9)
    assert all(row[np.abs(row).argmax()] > 0 for row in axes)
    assert (axes[0] > 0).all(), "what varies most in these images is their brightness"


@pytest.mark.parametrize("seed", range(4))
def test_any_sharding_in_any_order_gives_the_same_bits(images, seed):
    random = np.random.default_rng(seed)
    shuffled = [images[i] for i in random.permutation(len(images))]
    cuts = np.sort(random.integers(0, len(images) + 1, 3))
    shards = [counted(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(images)], strict=True)]
    total = Sums(SIZE)
    for place in random.permutation(len(shards)):
        total = total + shards[place]
    assert bits(total) == bits(counted(images))
    assert bits((shards[0] + shards[1]) + (shards[2] + shards[3])) == bits(counted(images))


def test_sums_beyond_64_bits_stay_exact():
    """ImageNet's size at full resolution: the products of sums in the covariance have more than 64 bits."""
    one = Sums(2)
    one.add(np.array([[[255, 255, 255], [255, 0, 255]], [[255, 255, 0], [255, 255, 255]]], np.uint8))
    total, doubling = Sums(2), one
    copies = 1_281_167 * 500 * 375 // 4
    for bit in range(copies.bit_length()):
        if copies >> bit & 1:
            total = total + doubling
        doubling = doubling + doubling
    assert total.images == copies
    assert total.products[0][0] == 4 * copies * 255**2 > 2**53
    np.testing.assert_array_equal(total.covariance(), one.covariance())
    np.testing.assert_array_equal(total.mean_image(), one.mean_image())
    again = Sums.from_arrays(total.arrays())
    assert (again.pixels, again.colours, again.products) == (total.pixels, total.colours, total.products)


def test_a_variance_that_float64_would_cancel_is_right():
    """One pixel in four million differs by one level: E[x**2] - E[x]**2 in float64 has lost most of its digits."""
    image = np.full((2048, 2048, 3), 255, np.uint8)
    image[0, 0, 0] = 254
    sums = Sums(1)
    sums.add(image)
    share = 1 / 2048**2
    np.testing.assert_allclose(sums.covariance()[0, 0], share * (1 - share), rtol=1e-15)
    assert sums.covariance()[1, 1] == 0


def test_grey_pixels_have_one_axis_and_no_negative_eigenvalues():
    sums = Sums(4)
    sums.add(np.repeat(np.random.default_rng(0).integers(0, 256, (9, 7, 1), np.uint8), 3, 2))
    values, axes = sums.principal_axes()
    assert (values >= 0).all()
    assert values[1] < 1e-9 * values[0]
    np.testing.assert_allclose(axes[0], [3**-0.5] * 3, rtol=1e-12)


def test_statistics_survive_a_file(images, tmp_path):
    before = counted(images).statistics()
    path = tmp_path / "train-statistics.npz"
    with open(path, "wb") as file:
        statistics.write(file, before)
    after = statistics.read(str(path))
    for name in before.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    again = io.BytesIO()
    statistics.write(again, before)
    assert again.getvalue() == path.read_bytes(), "the same statistics are the same bytes"


def test_a_damaged_or_missing_file_is_refused_by_name(images, tmp_path):
    path = tmp_path / "statistics.npz"
    with pytest.raises(UserError, match=r"statistics '.*statistics.npz': expected .* \(No such file"):
        statistics.read(str(path))
    with open(path, "wb") as file:
        statistics.write(file, counted(images).statistics())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an archive"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="statistics '.*statistics.npz': expected the .npz file"):
            statistics.read(str(path))
    np.savez(path, mean_image=np.zeros((2, 2, 3)))
    with pytest.raises(UserError, match="expected the .npz file .*(images|not a file)"):
        statistics.read(str(path))


@pytest.mark.parametrize("shape", [(SIZE - 1, SIZE, 3), (SIZE, SIZE - 1, 3), (SIZE, SIZE, 1)])
def test_an_image_that_does_not_fill_the_square_is_refused(shape):
    with pytest.raises(ValueError, match="expected an image of at least 12, 3 channels"):
        Sums(SIZE).add(np.zeros(shape, np.uint8))


def test_nothing_has_no_mean_and_different_squares_do_not_add_up():
    for result in ("mean_image", "mean_colour", "covariance", "principal_axes", "statistics"):
        with pytest.raises(ValueError, match="expected at least one image"):
            getattr(Sums(4), result)()
    with pytest.raises(ValueError, match="expected the same squares"):
        Sums(4) + Sums(5)
