"""Cross entropy and top-k answers, where numbers are huge, equal or not numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet import config_training
from alexnet_resnet.ops.losses import (
    LOSSES,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    in_top_k,
    softmax_cross_entropy,
)


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    loss = []
    for row, label in zip(logits, labels, strict=True):
        row = row - row.max()
        loss.append(np.log(np.sum(np.exp(row))) - row[label])
    return np.array(loss)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4, 1e30])
def test_cross_entropy_equals_float64_at_every_scale(scale):
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(32, 10)) * scale, jnp.float32)
    labels = random.integers(0, 10, 32)
    got = softmax_cross_entropy(logits, jnp.asarray(labels))
    assert got.shape == (32,)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)


def test_equal_logits_cost_the_logarithm_of_the_classes():
    loss = softmax_cross_entropy(jnp.full((2, 1000), 5e8), jnp.asarray([0, 999]))
    np.testing.assert_allclose(loss, np.log(1000), rtol=1e-6)


def test_certainty_is_free_and_certain_error_costs_the_distance():
    loss = softmax_cross_entropy(jnp.asarray([[1e6, 0.0], [1e6, 0.0]]), jnp.asarray([0, 1]))
    assert loss.tolist() == [0, 1e6]


def test_bfloat16_logits_are_widened_first():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 10)) * 5, jnp.bfloat16)
    labels = np.arange(8)
    got = softmax_cross_entropy(logits, jnp.asarray(labels))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, cross_entropy(logits.astype(jnp.float32), labels), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_softmax_minus_one_hot():
    random = np.random.default_rng(0)
    logits = random.normal(size=(8, 5)) * 3
    labels = random.integers(0, 5, 8)
    summed = jax.grad(lambda x: jnp.sum(softmax_cross_entropy(x, jnp.asarray(labels))))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(summed(jnp.asarray(logits, jnp.float32)), probabilities - np.eye(5)[labels], atol=1e-6)
    assert np.all(np.isfinite(summed(jnp.full((8, 5), 3e38))))


@pytest.mark.parametrize("k", [1, 2, 5, 9, 10])
def test_top_k_is_the_place_in_the_sorted_order(k):
    random = np.random.default_rng(k)
    logits = random.permuted(np.tile(np.arange(10.0), (50, 1)), axis=1)
    labels = random.integers(0, 10, 50)
    want = [label in np.argsort(row)[::-1][:k] for row, label in zip(logits, labels, strict=True)]
    got = in_top_k(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), k)
    assert got.dtype == bool
    assert got.tolist() == want


def test_the_boundary_is_exact():
    logits = jnp.asarray([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]] * 6)
    for k in range(1, 7):
        assert in_top_k(logits, jnp.arange(6), k).tolist() == [label < k for label in range(6)]


def test_ties_count_against_the_model():
    same = jnp.zeros((1, 10))
    assert not any(in_top_k(same, jnp.asarray([3]), k)[0] for k in range(1, 10))
    assert in_top_k(same, jnp.asarray([3]), 10)[0]
    tied = jnp.asarray([[2.0, 2.0, 1.0]])
    assert [bool(in_top_k(tied, jnp.asarray([label]), 1)[0]) for label in range(3)] == [False, False, False]
    assert [bool(in_top_k(tied, jnp.asarray([label]), 2)[0]) for label in range(3)] == [True, True, False]


def test_infinities_are_compared_and_tie_as_any_number():
    infinity = float("inf")
    logits = jnp.asarray([[infinity, 1.0, -infinity], [infinity, infinity, 0.0]])
    assert in_top_k(logits, jnp.asarray([0, 0]), 1).tolist() == [True, False]
    assert in_top_k(logits, jnp.asarray([2, 1]), 2).tolist() == [False, True]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_not_a_number_is_never_right(k):
    logits = jnp.asarray([[np.nan] * 3, [np.nan, 1.0, 2.0]])
    assert not np.any(in_top_k(logits, jnp.asarray([1, 0]), k))


def test_another_class_that_is_not_a_number_counts_as_above():
    logits = jnp.asarray([[np.nan, 1.0, 0.0]])
    assert [bool(in_top_k(logits, jnp.asarray([1]), k)[0]) for k in (1, 2, 3)] == [False, True, True]


SCALES = [1e-3, 1.0, 30.0, 1e4, 1e30]


def targets(labels, classes, smoothing):
    return np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", SCALES)
def test_smoothed_cross_entropy_equals_float64_at_every_scale(scale, smoothing):
    random = np.random.default_rng(0)
    logits, labels = np.float32(random.normal(size=(32, 10)) * scale), random.integers(0, 10, 32)
    wide = logits.astype(np.float64)
    wide = wide - wide.max(1, keepdims=True)
    log_probabilities = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    want = -(targets(labels, 10, smoothing) * log_probabilities).sum(1)
    got = softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rubbish", [0.1, 10.0, 200.0])
def test_rubbish_is_one_more_class_at_a_constant_distance(rubbish, smoothing):
    random = np.random.default_rng(0)
    distances, labels = np.float32(random.uniform(0, 150, (32, 10))), random.integers(0, 10, 32)
    z = distances.astype(np.float64)
    # Equation 9 of LeCun et al. 1998, of targets that may be smoothed over the ten classes that there are.
    want = (targets(labels, 10, smoothing) * z).sum(1) + np.logaddexp(-rubbish, np.logaddexp.reduce(-z, axis=1))
    got = softmax_cross_entropy(jnp.asarray(-distances), jnp.asarray(labels), smoothing, rubbish)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_far_from_every_class_rubbish_leaves_the_right_distance_alone():
    distances, labels = jnp.asarray([[80.0, 84.0, 90.0], [30.0, 2.0, 60.0]]), jnp.asarray([0, 1])
    summed = jax.grad(lambda z: jnp.sum(softmax_cross_entropy(-z, labels, rubbish=10.0)))
    np.testing.assert_allclose(summed(distances), [[1, 0, 0], [0, np.exp(-8) / (1 + np.exp(-8)), 0]], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [*SCALES, 3e37])
def test_binary_cross_entropy_of_logits_equals_float64_at_every_scale(scale, smoothing):
    random = np.random.default_rng(0)
    logits, labels = np.float32(random.normal(size=(32, 10)) * scale), random.integers(0, 10, 32)
    z, y = logits.astype(np.float64), targets(labels, 10, smoothing)
    # log s(z) = -log(1 + exp(-z)), without a power that is too large.
    want = (y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)).sum(1)
    got = binary_cross_entropy_with_logits(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(binary_cross_entropy_with_logits(x, jnp.asarray(labels), smoothing)))(logits)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(gradient, 1 / (1 + np.exp(-z)) - y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_of_probabilities_equals_float64_and_is_finite_at_the_ends(smoothing):
    random = np.random.default_rng(0)
    probabilities, labels = np.float32(random.uniform(size=(32, 10))), random.integers(0, 10, 32)
    p, y = probabilities.astype(np.float64), targets(labels, 10, smoothing)
    got = binary_cross_entropy(jnp.asarray(probabilities), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(got, -(y * np.log(p) + (1 - y) * np.log1p(-p)).sum(1), rtol=1e-5)

    ends = jnp.asarray([[0.0, 1.0, 1e-30, 1 - 2**-24]])
    summed = lambda x: jnp.sum(binary_cross_entropy(x, jnp.asarray([0]), smoothing))  # noqa: E731
    assert np.isfinite(summed(ends)) and np.all(np.isfinite(jax.grad(summed)(ends)))
    if not smoothing:
        np.testing.assert_allclose(summed(ends), 100 + 100 + 0 + 24 * np.log(2), rtol=1e-5)
        assert float(summed(jnp.asarray([[1.0, 0.0, 0.0, 0.0]]))) == 0


def test_probabilities_give_the_loss_of_their_logits():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(32, 10)) * 3, jnp.asarray(random.integers(0, 10, 32))
    with jax.enable_x64(True):
        by_probabilities, by_logits = (
            LOSSES[name](jnp.asarray(logits), labels, 0.1) for name in ("binary_probabilities", "binary")
        )
    np.testing.assert_allclose(by_probabilities, by_logits, rtol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_finite_differences(name, smoothing):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 5)) * 2, jnp.asarray(random.integers(0, 5, 6))
    direction, small = random.normal(size=logits.shape), 1e-6
    with jax.enable_x64(True):
        loss = lambda x: jnp.sum(LOSSES[name](x, labels, smoothing))  # noqa: E731
        gradient = jax.grad(loss)(jnp.asarray(logits))
        there, here = (float(loss(jnp.asarray(logits + sign * small * direction))) for sign in (1, -1))
    slope = np.sum(np.asarray(gradient, np.float64) * direction)
    np.testing.assert_allclose(slope, (there - here) / (2 * small), rtol=1e-7)


def test_the_losses_that_a_configuration_may_name_are_these():
    assert tuple(LOSSES) == config_training.LOSSES
