"""The figures of PCA lighting show what the formula gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.analysis import colours
from alexnet_resnet.ops import lighting

LEVELS = {"as_run": lambda v: np.sqrt(v), "unit_range": lambda v: v / 255, "as_written": lambda v: v}


@pytest.fixture
def shown(monkeypatch):
    """What is drawn: the pixels of each panel, its title and its extent."""
    from matplotlib.axes import Axes

    panels, imshow = [], Axes.imshow

    def keep(self, pixels, **style):
        panels.append((np.array(pixels), self, style))
        return imshow(self, pixels, **style)

    monkeypatch.setattr(Axes, "imshow", keep)
    return panels


def inputs():
    picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return picture, lighting.normal_draws(jax.random.key(0), jnp.arange(8), jnp.zeros(8, int))


def expected(picture, draw, convention, statistics, strength, mean):
    shift = sum(
        strength * float(n) * LEVELS[convention](value) * axis for n, value, axis in zip(draw, *statistics, strict=True)
    )
    divisor = 1 + strength if convention == "as_run" else 1
    return np.clip((picture.astype(np.float64) - mean + shift) / divisor + mean, 0, 255)


@pytest.mark.parametrize("strength", [0.1, 0.3])
def test_a_row_for_each_convention_and_a_column_for_each_draw(tmp_path, shown, strength):
    picture, draws = inputs()
    colours.draw_lighting(picture, draws, str(tmp_path / "draws.png"), strength)
    assert Image.open(tmp_path / "draws.png").size == (1872, 780)
    assert len(shown) == 3 * 9
    for row, convention in enumerate(("as_run", "unit_range", "as_written")):
        statistics = lighting.TORCH if convention == "unit_range" else lighting.AUTHOR
        np.testing.assert_array_equal(shown[9 * row][0], picture)
        assert shown[9 * row][1].get_title() == "the picture"
        for column, draw in enumerate(np.asarray(draws, np.float64), 1):
            pixels, panel, _ = shown[9 * row + column]
            want = expected(picture, draw, convention, statistics, strength, np.array([123.68, 116.779, 103.939]))
            # Bytes: rounded to the nearest, and float32 against float64 where half way.
            assert pixels.dtype == np.uint8 and np.abs(pixels - want).max() < 0.501
            assert panel.get_title() == f"draw {column}"


def test_own_statistics_and_mean_and_no_strength(tmp_path, shown):
    picture, draws = inputs()
    own = lighting.principal_axes(np.cov(picture.reshape(-1, 3).T.astype(np.float64)))
    colours.draw_lighting(picture, draws[:2], str(tmp_path / "a.png"), 0.2, {"as_run": own}, mean=(10.0, 20.0, 30.0))
    assert len(shown) == 3
    want = expected(picture, draws[1], "as_run", own, 0.2, np.array([10.0, 20.0, 30.0]))
    assert np.abs(shown[2][0] - want).max() < 0.501
    for convention in lighting.CONVENTIONS:
        still = colours.lit(picture, draws, convention, own, 0.0)
        np.testing.assert_array_equal(still, np.broadcast_to(picture, still.shape))


def test_each_axis_is_a_strip_of_three_standard_deviations_around_grey(tmp_path, shown):
    named = {"a": lighting.AUTHOR, "t": lighting.TORCH}
    colours.draw_axes(named, str(tmp_path / "axes.png"))
    assert Image.open(tmp_path / "axes.png").size[0] == 1456
    assert len(shown) == 6
    order = [(name, number) for name in named for number in range(3)]
    for (pixels, panel, style), (name, number) in zip(shown, order, strict=True):
        deviation, axis = np.sqrt(named[name].eigenvalues[number]), named[name].eigenvectors[number]
        assert style["extent"] == (-3, 3, 0, 1)
        for place, steps in ((0, -3), (75, -1.5), (150, 0), (200, 1), (300, 3)):
            want = np.clip(127.5 + steps * deviation * axis, 0, 255)
            assert np.abs(pixels[0, place] - want).max() <= 0.5 + 1e-9
        title = panel.get_title()
        assert f"{name}, axis {number + 1} " in title and f"deviation {deviation:.2f} grey levels" in title
        assert f"eigenvalue {deviation**2:.1f}" in title
        assert sorted(line.get_xdata()[0] for line in panel.lines) == [-0.1, 0.1]
