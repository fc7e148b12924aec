"""PCA lighting moves images as each convention's formula says, and the same image in the same epoch always alike."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.ops.lighting import (
    AUTHOR,
    CONVENTIONS,
    IMAGENET_FIRST_AXIS,
    IMAGENET_STANDARD_DEVIATIONS,
    STATISTICS,
    TORCH,
    TORCH_AXES,
    TORCH_UNIT_EIGENVALUES,
    colour_shifts,
    complete_axes,
    image_scale,
    light,
    normal_draws,
    principal_axes,
    shift_axes,
)

# The s_i of each convention for an eigenvalue in grey levels squared.
SIZES = {
    "as_run": lambda value: value**0.5,
    # In [0, 1] the eigenvalue is value / 255^2, and a shift of 1 there is one of 255 grey levels.
    "unit_range": lambda value: 255 * (value / 255**2),
    "as_written": lambda value: value,
}
DRAWS = 200_000


def covariance_of(convention, eigenvalues, eigenvectors, strength):
    """The formula in a loop: the variances of independent draws add up along their axes."""
    total = np.zeros((len(eigenvalues),) * 2)
    for value, axis in zip(eigenvalues, eigenvectors, strict=True):
        total += (strength * SIZES[convention](value)) ** 2 * np.outer(axis, axis)
    return total


def measured(seed, count=DRAWS, channels=3):
    examples = jnp.arange(count) // 4
    return normal_draws(jax.random.key(seed), jnp.arange(count) % 4, examples, channels)


@pytest.fixture(scope="module")
def draws():
    return measured(1)


@pytest.mark.parametrize("strength", [0.1, 0.5])
@pytest.mark.parametrize("statistics", STATISTICS.values(), ids=STATISTICS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_shifts_have_the_covariance_of_the_formula(draws, convention, statistics, strength):
    want = covariance_of(convention, *statistics, strength)
    shifts = np.asarray(colour_shifts(draws, shift_axes(convention, *statistics, strength)), np.float64)
    variance = np.diag(want)
    # Five standard errors of the covariance, and of the mean, of that many normal draws.
    error = np.sqrt((np.outer(variance, variance) + want**2) / DRAWS)
    assert np.all(np.abs(np.cov(shifts.T) - want) < 5 * error)
    assert np.all(np.abs(shifts.mean(0)) < 5 * np.sqrt(variance / DRAWS))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_statistics_of_other_data_and_channels(channels):
    mixing = np.random.default_rng(channels).normal(0, 30, (channels, channels))
    colours = principal_axes(mixing @ mixing.T)
    # With the data's own statistics, the shifts as run are the data's colours, strength times as far from the mean.
    want = 0.01 * mixing @ mixing.T
    shifts = np.asarray(colour_shifts(measured(2, channels=channels), shift_axes("as_run", *colours, 0.1)), np.float64)
    error = np.sqrt((np.outer(np.diag(want), np.diag(want)) + want**2) / DRAWS)
    assert np.all(np.abs(np.cov(shifts.T).reshape(want.shape) - want) < 5 * error)


def test_draws_are_standard_normal(draws):
    values = np.asarray(draws, np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert np.all(np.abs((values**power).mean(0) - moment) < 5 * np.sqrt(variance / DRAWS)), power
    # Four epochs of one image are next to each other, and so are the images: neither tells of the next.
    for lag in (1, 4):
        correlation = values[lag:].T @ values[:-lag] / DRAWS
        assert np.all(np.abs(correlation) < 5 / np.sqrt(DRAWS))


@pytest.mark.parametrize(
    "convention,statistics,levels",
    [("as_run", AUTHOR, 12.178), ("unit_range", TORCH, 5.546), ("as_written", AUTHOR, 1483.04)],
)
def test_the_first_axis_moves_by_the_documented_grey_levels(convention, statistics, levels):
    axes = shift_axes(convention, *statistics, 0.1)
    assert np.linalg.norm(axes[0]) == pytest.approx(levels, rel=1e-3)
    for number in range(3):
        size = 0.1 * SIZES[convention](statistics.eigenvalues[number])
        np.testing.assert_allclose(axes[number], size * statistics.eigenvectors[number], rtol=1e-12)


def test_the_named_statistics():
    assert AUTHOR.eigenvalues == pytest.approx([121.78**2, 37.09**2, 19.72**2])
    assert AUTHOR.eigenvalues**0.5 == pytest.approx(IMAGENET_STANDARD_DEVIATIONS)
    assert TORCH.eigenvalues / 255**2 == pytest.approx(TORCH_UNIT_EIGENVALUES)
    # The published digits: four behind the point.
    np.testing.assert_allclose(AUTHOR.eigenvectors[0], IMAGENET_FIRST_AXIS, atol=5e-5)
    np.testing.assert_allclose(AUTHOR.eigenvectors @ AUTHOR.eigenvectors.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(TORCH.eigenvectors @ TORCH.eigenvectors.T, np.eye(3), atol=1e-4)
    # Two measurements of the same data: the axes are the same but for their signs.
    agreement = np.abs(np.sum(AUTHOR.eigenvectors * TORCH.eigenvectors, axis=1))
    assert np.all(np.degrees(np.arccos(agreement)) < [0.7, 0.5, 0.5])


def test_completed_axes_are_the_nearest_that_begin_with_the_first():
    like = np.array(TORCH_AXES)
    axes = complete_axes(np.array([1.0, 2.0, 2.0]), like)
    np.testing.assert_allclose(axes[0], [1 / 3, 2 / 3, 2 / 3], rtol=1e-14)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-14)
    distance = np.sum((axes[1:] - like[1:]) ** 2)
    # All other completions: the two axes turned in their plane, and mirrored in it.
    for angle in np.linspace(0, 2 * np.pi, 721):
        cosine, sine = np.cos(angle), np.sin(angle)
        for mirror in (1, -1):
            other = np.array([[cosine, sine], [-mirror * sine, mirror * cosine]]) @ axes[1:]
            assert np.sum((other - like[1:]) ** 2) >= distance - 1e-12


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_principal_axes_take_the_covariance_apart(channels):
    random = np.random.default_rng(channels)
    pixels = random.normal(0, 50, (1000, channels)) @ random.normal(0, 1, (channels, channels))
    covariance = np.cov(pixels.T).reshape(channels, channels)
    values, axes = principal_axes(covariance)
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(values, np.linalg.svd(covariance, compute_uv=False), rtol=1e-10)
    np.testing.assert_allclose(axes @ axes.T, np.eye(channels), atol=1e-12)
    np.testing.assert_allclose((axes.T * values) @ axes, covariance, atol=1e-10 * values[0])
    assert np.all(axes[range(channels), np.abs(axes).argmax(1)] > 0)
    # Eigenvalues are the variances of the pixels along the axes.
    np.testing.assert_allclose(np.var(pixels @ axes.T, axis=0, ddof=1), values, rtol=1e-10)


def test_principal_axes_of_grey_pixels_have_no_negative_variance():
    values, axes = principal_axes(np.full((3, 3), 4000.1))
    assert values[0] == pytest.approx(12000.3) and np.all(values >= 0)
    np.testing.assert_allclose(axes[0], np.full(3, 3**-0.5))
    assert np.all(np.isfinite(shift_axes("as_run", values, axes, 0.1)))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_all_pixels_of_an_image_move_alike_and_are_scaled_after(convention):
    random = np.random.default_rng(0)
    images = random.normal(0, 60, (5, 4, 6, 3)).astype(np.float32)
    draws = measured(3, 5)
    axes = shift_axes(convention, *AUTHOR, 0.1)
    got = light(jnp.asarray(images), colour_shifts(draws, axes), image_scale(convention, 0.1))
    want = np.empty(images.shape)
    for number, image in enumerate(images.astype(np.float64)):
        colour = sum(float(draws[number, i]) * axes[i] for i in range(3))
        want[number] = (image + colour) / (1.1 if convention == "as_run" else 1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    assert got.dtype == jnp.float32
    moved = np.asarray(got) / image_scale(convention, 0.1) - images
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=2e-3)
    # One colour an image, another for each.
    assert len(np.unique(moved[:, 0, 0].round(2), axis=0)) == 5


def test_images_keep_their_type():
    images = jnp.ones((2, 3, 3, 3), jnp.bfloat16)
    assert light(images, jnp.ones((2, 3)), 1 / 1.1).dtype == jnp.bfloat16


def test_no_strength_leaves_images_as_they_are():
    images = jax.random.normal(jax.random.key(0), (2, 3, 3, 3))
    for convention in CONVENTIONS:
        shifts = colour_shifts(measured(4, 2), shift_axes(convention, *AUTHOR, 0))
        np.testing.assert_array_equal(light(images, shifts, image_scale(convention, 0)), images)


def test_a_draw_belongs_to_its_epoch_and_example_whatever_the_batch():
    key = jax.random.key(7)
    epochs, examples = (part.ravel() for part in np.meshgrid(np.arange(6), np.arange(40)))
    whole = np.asarray(normal_draws(key, jnp.asarray(epochs), jnp.asarray(examples)))
    assert len(np.unique(whole, axis=0)) == len(whole)
    order = np.random.default_rng(0).permutation(len(whole))
    jitted = jax.jit(normal_draws)
    for places in (order, order[:7], order[100:101]):
        got = jitted(key, jnp.asarray(epochs[places]), jnp.asarray(examples[places]))
        np.testing.assert_array_equal(got, whole[places])
    other = normal_draws(jax.random.key(8), jnp.asarray(epochs), jnp.asarray(examples))
    assert not np.any(np.asarray(other) == whole)


def test_a_draw_does_not_depend_on_the_device_that_makes_it():
    key, count = jax.random.key(7), 64
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    epochs, examples = jnp.full(count, 3), jnp.arange(count)
    got = jax.jit(normal_draws)(key, jax.device_put(epochs, spread), jax.device_put(examples, spread))
    np.testing.assert_array_equal(got, normal_draws(key, epochs, examples))


@pytest.mark.parametrize("call", [lambda name: shift_axes(name, *AUTHOR, 0.1), lambda name: image_scale(name, 0.1)])
def test_an_unknown_convention_is_refused(call):
    with pytest.raises(UserError, match="^data.lighting='as_runn': expected one of 'as_run', .*Did you mean 'as_run'"):
        call("as_runn")


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("call", [lambda s: shift_axes("as_run", *AUTHOR, s), lambda s: image_scale("as_run", s)])
def test_a_negative_strength_is_refused(call, strength):
    with pytest.raises(UserError, match=r"^data.lighting_strength=.*: expected a number of at least 0\.$"):
        call(strength)


@pytest.mark.parametrize("worst", [-1.0, np.nan, np.inf])
def test_what_is_no_variance_is_refused(worst):
    with pytest.raises(UserError, match="^eigenvalues=.*at least 0"):
        shift_axes("as_run", np.array([2.0, 1.0, worst]), AUTHOR.eigenvectors, 0.1)


# Unwrapped: the tests' own check of shapes, which users do not have, would come first.
def test_colours_on_a_grey_image_are_refused():
    with pytest.raises(UserError, match="data.lighting: colour shifts"):
        jax.eval_shape(lambda: inspect.unwrap(light)(jnp.ones((2, 4, 4, 1)), jnp.ones((2, 3))))


def test_axes_that_do_not_fit_the_eigenvalues_are_refused():
    with pytest.raises(UserError, match="^eigenvectors of shape"):
        inspect.unwrap(shift_axes)("as_run", np.ones(1), np.eye(3), 0.1)
