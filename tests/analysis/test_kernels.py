"""The colour of kernels by construction, and of columns against every division of them."""

import itertools

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.analysis import kernels
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classifier import Classifier, Forward

GREY, OPPONENT = np.ones(3), np.array([1.0, -1.0, 0.0])


def kernel(*colours, side=5):
    """A kernel for each colour, of the same random pattern."""
    pattern = np.random.default_rng(0).normal(size=(side, side, 1, 1))
    return (pattern * np.stack(colours, 1)).astype(np.float32)


class Weights(Forward):
    """Parameters without a network."""

    def __init__(self, params):
        self.params = params


def net(params, input_order="rgb"):
    return Classifier(("a",), 3, lambda picture: picture, Weights(params), {"name": "a net"}, input_order)


def test_grey_is_0_opponent_colours_are_1_and_what_is_between_is_the_square_of_the_sine():
    shares = kernels.chromatic_share(kernel(GREY, -3 * GREY, OPPONENT, [0, 0, 1], [1, 1, 0], np.zeros(3)))
    # A red, green or blue axis lies at an angle to grey whose cosine is 1 / sqrt(3).
    np.testing.assert_allclose(shares, [0, 0, 1, 2 / 3, 1 / 3, 0], atol=1e-12)
    assert shares[0] == 0 and shares[1] == 0


def test_shares_are_the_energy_orthogonal_to_the_grey_axis_whatever_the_scale():
    weights = np.random.default_rng(1).normal(0.3, 1, (7, 7, 3, 40)).astype(np.float32)
    axis = np.ones(3) / np.sqrt(3)
    pixels = np.moveaxis(weights.astype(np.float64), 2, -1)
    expected = 1 - ((pixels @ axis) ** 2).sum((0, 1)) / (pixels**2).sum((0, 1, 3))
    np.testing.assert_allclose(kernels.chromatic_share(weights), expected, rtol=1e-10)
    for factor in (1e-6, -20.0):
        np.testing.assert_allclose(kernels.chromatic_share(factor * weights), expected, rtol=1e-5)
    np.testing.assert_allclose(kernels.chromatic_share(weights[:, :, ::-1]), expected, rtol=1e-12)


def test_independent_channels_have_two_thirds():
    weights = np.random.default_rng(2).normal(size=(11, 11, 3, 500))
    assert kernels.chromatic_share(weights).mean() == pytest.approx(kernels.INDEPENDENT, abs=0.005)


def test_columns_are_described_by_their_own_kernels():
    first, second, third = kernels.describe(np.array([0.1, 0.2, 0.6, 0.5, 0.5, 0.8, 0, 1, 0]), 3)
    assert (first.number, first.kernels, first.median) == (1, 3, 0.2) and first.mean == pytest.approx(0.3)
    assert second.median == 0.5 and third.number == 3 and third.median == 0


def test_the_comparison_is_that_of_all_pairs_and_of_all_divisions():
    # With ties within and between the columns.
    shares = np.array([0.1, 0.4, 0.4, 0.2, 0.4, 0.9, 0.7, 0.2])
    (found,) = kernels.compare(shares, 2, permutations=20_000, seed=3)

    def probability(first, second):
        return np.mean([(b > a) + 0.5 * (b == a) for a in first for b in second])

    assert (found.first, found.second) == (1, 2)
    assert found.probability == pytest.approx(probability(shares[:4], shares[4:]), abs=1e-12)
    assert found.median_difference == pytest.approx(np.median(shares[4:]) - np.median(shares[:4]))
    far = abs(found.probability - 0.5)
    divisions = [set(rows) for rows in itertools.combinations(range(8), 4)]
    exact = np.mean(
        [
            abs(probability(shares[list(set(range(8)) - rows)], shares[list(rows)]) - 0.5) >= far - 1e-12
            for rows in divisions
        ]
    )
    assert found.p_value == pytest.approx(exact, abs=0.02)
    # The other way round it is as significant.
    (back,) = kernels.compare(np.roll(shares, 4), 2, permutations=20_000, seed=3)
    assert back.probability == pytest.approx(1 - found.probability) and back.p_value == pytest.approx(exact, abs=0.02)


def test_columns_apart_are_significant_and_columns_alike_are_not():
    random = np.random.default_rng(4)
    low, high = random.uniform(0, 0.3, 48), random.uniform(0.4, 0.9, 48)
    (apart,) = kernels.compare(np.concatenate([low, high]), 2, permutations=999)
    assert apart.probability == 1 and apart.p_value == 1 / 1000 and apart.median_difference > 0.3
    (alike,) = kernels.compare(np.concatenate([low, low]), 2, permutations=999)
    assert alike.probability == 0.5 and alike.p_value == 1 and alike.median_difference == 0
    (equal,) = kernels.compare(np.full(10, 0.5), 2, permutations=99)
    assert equal.probability == 0.5 and equal.p_value == 1


def test_p_values_are_those_of_the_seed_and_spread_evenly_where_nothing_differs():
    random = np.random.default_rng(5)
    values = [kernels.compare(random.random(24), 2, permutations=199)[0].p_value for _ in range(200)]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.06)
    shares = random.random(24)
    assert kernels.compare(shares, 2, 99, seed=1) == kernels.compare(shares, 2, 99, seed=1)


def test_every_two_of_several_columns_are_compared_and_a_single_one_with_none():
    shares = np.repeat([0.1, 0.5, 0.3], 6) + np.linspace(0, 0.05, 18)
    found = kernels.compare(shares, 3, 99)
    assert [(pair.first, pair.second) for pair in found] == [(1, 2), (1, 3), (2, 3)]
    assert [pair.probability for pair in found] == [1, 1, 0]
    assert "column 2 is more colourful than one of column 1 with probability 1 " in kernels.sentence(found)
    assert "the furthest of 3 pairs" in kernels.sentence(found)
    assert "column 2 is more colourful than one of column 3" in kernels.sentence(found[2:])
    assert kernels.compare(shares, 1) == () and kernels.sentence(()) == ""


def test_pictures_are_scaled_jointly_or_each_by_itself():
    weights = kernel(GREY, 0.1 * OPPONENT, np.full(3, 2.0))
    weights = np.concatenate([weights, np.full((5, 5, 3, 1), 0.3, np.float32)], -1)
    joint, own = kernels.pictures(weights), kernels.pictures(weights, "own")
    assert joint.shape == own.shape == (4, 5, 5, 3)
    assert joint.min() == 0 and joint.max() == 1
    np.testing.assert_allclose(joint[0], (weights[..., 0] - weights.min()) / (weights.max() - weights.min()), atol=1e-6)
    for picture in own[:3]:
        assert picture.min() == 0 and picture.max() == 1
    np.testing.assert_array_equal(own[3], 0.5)
    grey = kernels.pictures(weights[:, :, :1])
    assert grey.shape == (4, 5, 5, 3) and np.ptp(grey, axis=-1).max() == 0


@pytest.mark.parametrize(("count", "columns"), [(96, 2), (64, 1), (6, 2), (12, 4)])
@pytest.mark.parametrize("scale", kernels.RANGES)
def test_the_figure_shows_every_kernel_above_or_below_by_its_column(count, columns, scale, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    sheets, imshow = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **style: sheets.append((self, x)) or imshow(self, x, **style))
    weights = np.random.default_rng(0).normal(size=(4, 4, 3, count)).astype(np.float32)
    kernels.draw(weights, columns, str(tmp_path / "a.png"), "a net", scale, permutations=9)
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert min(image.shape[:2]) > 200 and max(image.shape[:2]) < 2000 and image.std() > 10
    assert len(sheets) == columns
    pictures = kernels.pictures(weights, scale)
    for number, (axes, sheet) in enumerate(sheets):
        assert axes.get_title().startswith(f"column {number + 1}: " if columns > 1 else f"{count} kernels")
        first = number * count // columns
        np.testing.assert_array_equal(sheet[:4, :4], pictures[first])
        np.testing.assert_array_equal(sheet[:4, 5:9], pictures[first + 1])


def test_kernels_of_a_network_are_in_the_order_rgb():
    weights = np.random.default_rng(0).normal(size=(3, 3, 3, 4))
    params = {"conv1": {"kernel": weights}, "conv2": {"kernel": np.zeros((3, 3, 4, 4))}}
    np.testing.assert_array_equal(kernels.of(net(params)), weights)
    np.testing.assert_array_equal(kernels.of(net(params, input_order="bgr")), weights[:, :, ::-1])
    assert kernels.of(net(params, input_order="bgr"), "conv2").shape == (3, 3, 4, 4)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"layer='conv1': expected a convolution of a net, 'conv1_1'. Did you mean"):
        kernels.of(net({"conv1_1": {"kernel": np.zeros((3, 3, 3, 4))}, "fc": {"kernel": np.zeros((3, 4))}}))
    with pytest.raises(UserError, match="layer='conv1': expected a convolution of a net, which has none"):
        kernels.of(net({"fc": {"kernel": np.zeros((3, 4))}, "blocks": {"0": {}}}))
    with pytest.raises(UserError, match=r"expected 3 channels \(RGB\), found 1"):
        kernels.chromatic_share(np.zeros((5, 5, 1, 6)))
    with pytest.raises(UserError, match="expected 3 channels or 1 to be drawn, found 4"):
        kernels.pictures(np.zeros((5, 5, 4, 6)))
    with pytest.raises(UserError, match="scale='each': expected one of 'joint', 'own'"):
        kernels.pictures(np.zeros((5, 5, 3, 6)), "each")
    with pytest.raises(UserError, match="columns=4: expected a number that divides the 6 kernels"):
        kernels.describe(np.zeros(6), 4)
    with pytest.raises(UserError, match="columns=0: expected a number of at least 1"):
        kernels.compare(np.zeros(6), 0)
    with pytest.raises(UserError, match="permutations=0"):
        kernels.compare(np.zeros(6), 2, 0)
    with pytest.raises(UserError, match="figure='a.txt': expected a name that ends in"):
        kernels.draw(np.zeros((5, 5, 3, 6)), 2, "a.txt")
