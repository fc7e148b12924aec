"""Which example stands where: every epoch a permutation, every batch reachable without those before it."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from alexnet_resnet.data import plan

DATA = SimpleNamespace(canvas_size=40, image_size=32, random_crop=True, random_flip=True)


def take(batches, count):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("batch_size", [1, 7, 10, 25])
def test_each_epoch_shows_every_example_once_without_a_gap_between_epochs(batch_size):
    batches = take(plan.training_batches(DATA, 10, batch_size, seed=3), 20)
    rows = np.concatenate([batch.rows for batch in batches])
    for epoch in range(len(rows) // 10):
        assert sorted(rows[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert not np.array_equal(rows[:10], rows[10:20]), "two epochs in the same order"


@pytest.mark.parametrize("start", [1, 4, 9, 33])
def test_a_resumed_plan_goes_on_with_the_very_same_batches(start):
    whole = take(plan.training_batches(DATA, 23, 8, seed=5), start + 4)[start:]
    resumed = take(plan.training_batches(DATA, 23, 8, seed=5, start_step=start), 4)
    for a, b in zip(whole, resumed, strict=True):
        for field in ("rows", "offsets", "flips", "valid"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_seeds_and_epochs_draw_different_crops():
    first, second = (take(plan.training_batches(DATA, 64, 64, seed), 1)[0] for seed in (0, 1))
    assert not np.array_equal(first.rows, second.rows)
    assert not np.array_equal(first.offsets, second.offsets)
    one, two = take(plan.training_batches(DATA, 64, 64, 0), 2)
    assert not np.array_equal(one.offsets, two.offsets)


def test_offsets_are_uniform_over_every_position_and_flips_are_fair():
    batch = take(plan.training_batches(DATA, 81_000, 81_000, seed=0), 1)[0]
    assert batch.offsets.min() == 0 and batch.offsets.max() == 8
    counts = np.bincount(batch.offsets[:, 0] * 9 + batch.offsets[:, 1], minlength=81)
    # Chi-square with 80 degrees of freedom: mean 80, standard deviation 12.6; 160 is beyond six of them.
    assert ((counts - 1000) ** 2 / 1000).sum() < 160
    assert abs(batch.flips.mean() - 0.5) < 6 * 0.5 / 81_000**0.5
    # The draws of one example do not hang together.
    draws = np.column_stack([batch.offsets, batch.flips, batch.rows])
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 6 / 81_000**0.5


def test_without_augmentation_the_centre_is_taken_and_the_order_stays():
    plain = SimpleNamespace(**{**vars(DATA), "random_crop": False, "random_flip": False})
    augmented = take(plan.training_batches(DATA, 50, 50, seed=2), 1)[0]
    batch = take(plan.training_batches(plain, 50, 50, seed=2), 1)[0]
    np.testing.assert_array_equal(batch.offsets, 4)
    assert not batch.flips.any()
    np.testing.assert_array_equal(batch.rows, augmented.rows)


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 3), (10, 10), (10, 16), (1, 4)])
def test_an_evaluation_holds_every_example_once(examples, batch_size):
    batches = list(plan.evaluation_batches(DATA, examples, batch_size))
    assert all(len(batch.rows) == batch_size for batch in batches)
    rows = np.concatenate([batch.rows[batch.valid] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(examples))
    for batch in batches:
        np.testing.assert_array_equal(batch.offsets, 4)
        assert not batch.flips.any()
