"""Which example stands where: every epoch a permutation, every batch reachable without those before it."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p
from scipy import stats

from alexnet_resnet.data import draws, plan

DATA = SimpleNamespace(canvas_size=40, image_size=32, random_crop=True, random_flip=True)
FIELDS = [field.name for field in dataclasses.fields(plan.Batch)]


def data(**fields):
    return SimpleNamespace(**{**vars(DATA), **fields})


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(one, other):
    for field in FIELDS:
        a, b = getattr(one, field), getattr(other, field)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def joined(parts):
    parts = list(parts)
    return plan.Batch(*(np.concatenate([getattr(part, field) for part in parts]) for field in FIELDS))


def shares(batch_size, hosts):
    """Contiguous parts of a batch, as even as they can be."""
    ends = [batch_size * host // hosts for host in range(hosts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def assert_uniform(counts):
    """Chi-square of equally probable cells, from both sides: neither too uneven nor more even than chance."""
    share = stats.chisquare(np.ravel(counts)).pvalue
    assert 1e-6 < share < 1 - 1e-6, share


@pytest.mark.parametrize("examples", [1, 2, 10, 23])
@pytest.mark.parametrize("batch_size", [1, 7, 10, 25])
def test_each_epoch_shows_every_example_once_without_a_gap_between_epochs(examples, batch_size):
    steps = -(-6 * examples // batch_size)
    every = joined(plan.training_batches(DATA, examples, batch_size, 3, stop_step=steps))
    assert len(every.rows) == steps * batch_size and every.valid.all()
    np.testing.assert_array_equal(every.epochs, np.arange(steps * batch_size) // examples)
    orders = [every.rows[every.epochs == epoch] for epoch in range(6)]
    for order in orders:
        assert sorted(order) == list(range(examples))
    if examples >= 10:
        assert len(set(map(tuple, orders))) == 6, "two epochs in the same order"


@pytest.mark.parametrize("batch_size", [1, 8, 100, 4096, 5000])
def test_a_resumed_plan_goes_on_with_the_very_same_batches(batch_size):
    # So many steps that the whole run's blocks of draws and the resumed one's begin at different steps.
    block = max(1, plan.BLOCK // batch_size)
    last = 2 * block + 3
    whole = take(plan.training_batches(DATA, 1797, batch_size, 5), last)
    starts = {start for start in (1, 2, block - 1, block, block + 1, 2 * block - 1) if start >= 1}
    for start in starts:
        resumed = list(plan.training_batches(DATA, 1797, batch_size, 5, start, last))
        assert len(resumed) == last - start
        # All of them where they are few; else the ends of blocks.
        steps = range(len(resumed)) if last < 200 else (0, 1, block - 1, block, len(resumed) - 1)
        for step in steps:
            if step < len(resumed):
                assert_same(whole[start + step], resumed[step])


def test_a_plan_stops_where_it_is_told_to():
    assert list(plan.training_batches(DATA, 10, 4, 0, 3, 3)) == []
    assert len(list(plan.training_batches(DATA, 10, 4, 0, 3, 8))) == 5
    assert len(list(plan.training_batches(DATA, 10, 4, 0, 5000, 7000))) == 2000


def test_a_far_step_of_imagenet_needs_none_before_it():
    # Step 45 million at batch 256, in epoch 8,991: the places no longer fit in 32 bits.
    step, examples = 45_000_000, 1_281_167
    (batch,) = take(plan.training_batches(DATA, examples, 256, 2**32 - 1, step), 1)
    places = np.arange(step * 256, (step + 1) * 256)
    np.testing.assert_array_equal(batch.epochs, places // examples)
    np.testing.assert_array_equal(batch.rows, draws.shuffle(2**32 - 1, places // examples, places % examples, examples))
    assert len(set(batch.rows)) == 256 and batch.rows.min() >= 0 and batch.rows.max() < examples


@pytest.mark.parametrize("hosts", [1, 2, 3, 4])
@pytest.mark.parametrize(("examples", "batch_size"), [(10, 4), (23, 7), (1797, 128), (97, 1001)])
def test_the_shares_of_several_hosts_make_up_the_whole_batches(hosts, examples, batch_size):
    count = 12 if batch_size < 1000 else 10
    whole = take(plan.training_batches(DATA, examples, batch_size, 1, 2), count)
    parts = [take(plan.training_batches(DATA, examples, batch_size, 1, 2, None, part), count)
             for part in shares(batch_size, hosts)]  # fmt: skip
    for batch, *of_hosts in zip(whole, *parts, strict=True):
        assert_same(batch, joined(of_hosts))


@pytest.mark.parametrize("hosts", [1, 2, 3, 4])
@pytest.mark.parametrize(("examples", "batch_size"), [(10, 4), (10, 10), (10, 16), (1, 4), (97, 32), (96, 32)])
def test_an_evaluation_holds_every_example_once_for_any_number_of_hosts(hosts, examples, batch_size):
    parts = [list(plan.evaluation_batches(examples, batch_size, 4, part)) for part in shares(batch_size, hosts)]
    # All hosts take the same number of steps, or the last would wait for the others for ever.
    batches = [joined(of_hosts) for of_hosts in zip(*parts, strict=True)]
    assert len(batches) == -(-examples // batch_size)
    for batch, whole in zip(batches, plan.evaluation_batches(examples, batch_size, 4), strict=True):
        assert_same(batch, whole)
        assert len(batch.rows) == batch_size
        np.testing.assert_array_equal(batch.offsets, 4)
        assert batch.offsets.shape == (batch_size, 2)
        assert not batch.flips.any() and not batch.epochs.any()
        assert batch.rows.max() < examples, "what fills up must be readable"
    rows = np.concatenate([batch.rows[batch.valid] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(examples))


def test_crops_and_flips_are_the_generators_words():
    batch = take(plan.training_batches(data(canvas_size=256, image_size=224), 5000, 300, 77, 49), 1)[0]
    assert set(batch.epochs) == {2}
    word = {}
    for purpose in (16, 17, 18):
        arguments = np.full(300, 77), batch.epochs, batch.rows, np.full(300, purpose)
        word[purpose] = np.asarray(threefry2x32_p.bind(*(jnp.asarray(a, jnp.uint32) for a in arguments))[0])
    np.testing.assert_array_equal(batch.offsets, np.stack([word[16] % 33, word[17] % 33], 1))
    np.testing.assert_array_equal(batch.flips, word[18] % 2 == 1)


def test_seeds_and_epochs_draw_different_crops():
    first, second = (take(plan.training_batches(DATA, 640, 640, seed), 2) for seed in (0, 1))
    by_row = lambda batch: batch.offsets[np.argsort(batch.rows)]  # noqa: E731
    for one, other in ((first[0], first[1]), (first[0], second[0]), (first[1], second[0])):
        assert not np.array_equal(one.rows, other.rows)
        agree = (by_row(one) == by_row(other)).all(1).sum()
        assert agree < 640 / 81 + 6 * (640 / 81) ** 0.5


@pytest.mark.parametrize(
    ("canvas", "size", "examples", "epochs"),
    [(40, 32, 810, 60), (256, 224, 1089, 50), (33, 32, 50, 60), (5, 2, 16, 300)],
)
def test_offsets_are_uniform_over_every_position_and_flips_are_fair(canvas, size, examples, epochs):
    side = canvas - size + 1
    count = examples * epochs
    of = data(canvas_size=canvas, image_size=size)
    batch = joined(plan.training_batches(of, examples, examples, 11, stop_step=epochs))
    assert batch.offsets.min() == 0 and batch.offsets.max() == side - 1
    position = batch.offsets[:, 0] * side + batch.offsets[:, 1]
    assert_uniform(np.bincount(position, minlength=side**2))
    assert_uniform(np.bincount(2 * position + batch.flips, minlength=2 * side**2))
    assert abs(batch.flips.mean() - 0.5) < 6 * 0.5 / count**0.5
    # The draws of one example do not hang together, nor with its number, its epoch or its place in the epoch.
    places = np.tile(np.arange(examples), epochs)
    drawn = np.column_stack([batch.offsets, batch.flips, batch.rows, batch.epochs, places]).astype(float)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 6 / count**0.5
    # Nor those of one example in successive epochs, nor those of neighbours.
    by_row = drawn[np.lexsort([batch.epochs, batch.rows])][:, :3].reshape(examples, epochs, 3)
    for a, b in ((by_row[:, 1:], by_row[:, :-1]), (by_row[1:], by_row[:-1])):
        together = np.corrcoef(a.reshape(-1, 3).T, b.reshape(-1, 3).T)
        assert np.abs(together - np.eye(6)).max() < 6 / (count * 0.9) ** 0.5


@pytest.mark.parametrize(("crop", "flip"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("canvas", "middle"), [(40, 4), (41, 4), (32, 0), (33, 0)])
def test_without_crops_or_flips_the_order_and_the_other_draws_stay(crop, flip, canvas, middle):
    both = take(plan.training_batches(data(canvas_size=canvas), 50, 120, 2), 1)[0]
    batch = take(plan.training_batches(data(canvas_size=canvas, random_crop=crop, random_flip=flip), 50, 120, 2), 1)[0]
    np.testing.assert_array_equal(batch.rows, both.rows)
    np.testing.assert_array_equal(batch.epochs, both.epochs)
    np.testing.assert_array_equal(batch.offsets, both.offsets if crop else middle)
    np.testing.assert_array_equal(batch.flips, both.flips if flip else False)
    assert batch.offsets.shape == (120, 2) and batch.flips.dtype == bool
