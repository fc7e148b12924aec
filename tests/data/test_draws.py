"""Random numbers as functions of (seed, epoch, example): the published generator, a fair shuffle, nothing related."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p
from scipy import stats

from alexnet_resnet.data import draws

COUNTS = (1, 2, 3, 10, 97, 1797, 50_000)


def assert_uniform(counts, freedom=None):
    """Chi-square of equally probable cells, from both sides: neither too uneven nor more even than chance."""
    counts = np.ravel(counts)
    expected = counts.sum() / counts.size
    assert expected >= 5
    share = stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), freedom or counts.size - 1)
    assert 1e-6 < share < 1 - 1e-6, share


def permutations(count, epochs, seed=0):
    """[epochs, count]: the order of each epoch."""
    places = np.tile(np.arange(count), epochs)
    return draws.shuffle(seed, np.repeat(np.arange(epochs), count), places, count).reshape(epochs, count).astype(int)


def pairs_of(orders, one, other):
    """How often two places have each pair of two examples."""
    count = orders.shape[1]
    pairs = np.bincount(orders[:, one] * count + orders[:, other], minlength=count**2).reshape(count, count)
    assert not np.diag(pairs).any()
    return pairs[~np.eye(count, dtype=bool)]


def threefry_of_the_paper(key, counter):
    """Threefry-2x32-20 word by word, in Python's integers, as Salmon et al. define it."""
    keys = (*key, 0x1BD11BDA ^ key[0] ^ key[1])
    x = [(word + extra) % 2**32 for word, extra in zip(counter, keys, strict=False)]
    for turn in range(20):
        distance = (13, 15, 26, 6, 17, 29, 16, 24)[turn % 8]
        x[0] = (x[0] + x[1]) % 2**32
        x[1] = ((x[1] << distance | x[1] >> (32 - distance)) % 2**32) ^ x[0]
        if turn % 4 == 3:
            group = turn // 4 + 1
            x[0] = (x[0] + keys[group % 3]) % 2**32
            x[1] = (x[1] + keys[(group + 1) % 3] + group) % 2**32
    return tuple(x)


@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers_of_random123(counter, key, result):
    assert threefry_of_the_paper(key, counter) == result
    for of in (np.array, jnp.array):
        words = draws.threefry(*(tuple(of([word], np.uint32) for word in pair) for pair in (key, counter)))
        assert tuple(int(word[0]) for word in words) == result


def test_threefry_is_that_of_jax():
    words = np.random.default_rng(0).integers(0, 2**32, (4, 5000), dtype=np.uint32)
    words[:, :3] = [0, 2**31, 2**32 - 1]
    wanted = threefry2x32_p.bind(*map(jnp.asarray, words))
    np.testing.assert_array_equal(draws.threefry(tuple(words[:2]), tuple(words[2:])), wanted)


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_word_is_one_call_with_the_seed_the_epoch_the_example_and_the_purpose(seed):
    epochs, examples = np.array([0, 3, 89, 2**31 - 1]), np.array([5, 0, 1_281_166, 2**32 - 1])
    for purpose in (draws.TOP, draws.FLIP, draws.ATTEMPTS + 19):
        first, second = draws.words(seed, epochs, examples, purpose)
        assert first.dtype == second.dtype == np.uint32
        for *words, epoch, example in zip(first, second, epochs, examples, strict=True):
            assert tuple(words) == threefry_of_the_paper((seed, int(epoch)), (int(example), purpose))


@pytest.mark.parametrize("count", [1, 3, 50_000])
def test_numpy_and_jax_draw_the_same_bits(count):
    random = np.random.default_rng(count)
    epochs, places = random.integers(0, 100, 200, np.int32), random.integers(0, count, 200, np.int32)

    @jax.jit
    def drawn(epochs, places):
        top, left = draws.words(2**32 - 5, epochs, places, draws.TOP)
        return draws.shuffle(2**32 - 5, epochs, places, count), top, left, draws.below(top, 33)

    got = drawn(epochs, places)
    top, left = draws.words(2**32 - 5, epochs, places, draws.TOP)
    wanted = draws.shuffle(2**32 - 5, epochs, places, count), top, left, draws.below(top, 33)
    for a, b in zip(got, wanted, strict=True):
        assert isinstance(a, jax.Array) and isinstance(b, np.ndarray) and a.dtype == b.dtype == np.uint32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [*COUNTS, *range(4, 10), 11, 16, 17, 100, 101, 143, 144, 145])
def test_each_epoch_is_a_permutation(count):
    for seed in (0, 12):
        orders = permutations(count, 3, seed)
        np.testing.assert_array_equal(np.sort(orders, 1), np.tile(np.arange(count), (3, 1)))


def test_places_at_the_far_end_of_the_largest_epoch():
    places = np.array([0, 1, 2**31 - 2, 2**31 - 1])
    rows = draws.shuffle(1, np.zeros(4, int), places, 2**31)
    assert len(set(rows.tolist())) == 4 and (rows < 2**31).all()


def test_each_epoch_and_each_seed_has_another_order():
    count = 10_000
    orders = np.concatenate([permutations(count, 4, seed) for seed in (0, 1, 2, 2**32 - 1)])
    for number, one in enumerate(orders):
        for other in orders[:number]:
            # Two unrelated orders agree in one place on average.
            assert (one == other).sum() < 10
            assert abs(np.corrcoef(one, other)[0, 1]) < 6 / count**0.5


@pytest.mark.parametrize(("count", "epochs"), [(2, 4000), (3, 6000), (10, 6000), (97, 3000)])
def test_each_place_gets_each_example_equally_often(count, epochs):
    orders = permutations(count, epochs, seed=3)
    cells = np.zeros((count, count), int)
    np.add.at(cells, (np.broadcast_to(np.arange(count), orders.shape), orders), 1)
    # Each row and column of the table is full: as many are free as in a table with one less on each side.
    expected = epochs / count
    # Cells of a permutation hang together: their deviations are larger by count / (count - 1) than independent ones'.
    square = ((cells - expected) ** 2 / expected).sum() * (count - 1) / count
    share = stats.chi2.sf(square, (count - 1) ** 2)
    assert 1e-6 < share < 1 - 1e-6


@pytest.mark.parametrize("count", [3, 20, 37])
def test_two_places_get_each_pair_equally_often(count):
    orders = permutations(count, 9000, seed=4)
    for one, other in ((0, 1), (0, count - 1), (count // 2, count // 2 + 1)):
        assert_uniform(pairs_of(orders, one, other))


@pytest.mark.parametrize("count", [4, 5, 6, 9, 12])
def test_in_the_smallest_sets_no_pair_is_far_more_probable_than_another(count):
    # Eight rounds do not mix so few numbers to perfection: 15% for five, nothing that can be seen for twenty.
    orders = permutations(count, 30_000)
    for other in (1, count // 2, count - 1):
        pairs = pairs_of(orders, 0, other)
        noise = 6 / pairs.mean() ** 0.5
        assert np.abs(pairs / pairs.mean() - 1).max() < 0.18 + noise


def test_all_orders_of_four_are_equally_probable():
    orders = permutations(4, 6000)
    assert_uniform(np.unique(orders, axis=0, return_counts=True)[1])
    assert len(np.unique(orders, axis=0)) == 24


@pytest.mark.parametrize("count", [1797, 50_000])
def test_neighbours_in_an_order_are_unrelated_and_few_stay_in_their_place(count):
    epochs = 400_000 // count
    orders = permutations(count, epochs, seed=5)
    for lag in (1, 2, round(count**0.5), count // 2):
        assert abs(np.corrcoef(orders[:, :-lag].ravel(), orders[:, lag:].ravel())[0, 1]) < 6 / orders.size**0.5
        # How far apart they stand: each distance is equally probable, but none is zero.
        apart = (orders[:, lag:] - orders[:, :-lag]) % count
        assert apart.min() > 0
        assert_uniform(np.histogram(apart, np.linspace(1, count, 65))[0] * 1.0)
    # The number of those that stay is Poisson's, with mean 1 for each epoch.
    stay = (orders == np.arange(count)).sum()
    assert stats.poisson.cdf(stay, epochs) > 1e-6 and stats.poisson.sf(stay - 1, epochs) > 1e-6
    # A batch is spread over the whole set, which may lie sorted by class.
    assert_uniform(np.histogram(orders[:, : count // 10], np.linspace(0, count, 11))[0], freedom=9)


def test_words_of_other_purposes_epochs_seeds_and_examples_are_independent():
    count = 8000
    examples, zeros = np.arange(count), np.zeros(count, int)
    columns = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for purpose in (*range(8), *range(16, 20), 32, 33, 50, 51):
            columns += draws.words(seed, zeros + epoch, examples, purpose)
    columns += draws.words(0, zeros, examples + 1, draws.TOP)
    columns += draws.words(0, zeros, examples + 2**16, draws.TOP)
    columns += draws.words(0, examples + 2, zeros, draws.TOP)
    table = np.array(columns, np.float64)
    assert np.abs(np.corrcoef(table) - np.eye(len(table))).max() < 6 / count**0.5
    # Whether crops are odd, and flips, are the last bits.
    assert np.abs(np.corrcoef(table % 2) - np.eye(len(table))).max() < 6 / count**0.5


def test_every_bit_and_every_byte_of_the_words_is_fair():
    epochs, examples = np.divmod(np.arange(30_000), 1000)
    for word in draws.words(9, epochs, examples, draws.FLIP):
        bits = (word[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        assert np.abs(bits.mean(0) - 0.5).max() < 6 * 0.5 / len(word) ** 0.5
        assert np.abs(np.corrcoef(bits.T) - np.eye(32)).max() < 6 / len(word) ** 0.5
        for shift in (0, 8, 16, 24):
            assert_uniform(np.bincount((word >> np.uint32(shift)) & 255, minlength=256))


def test_numbers_below_a_bound_and_in_the_unit_interval_are_uniform():
    word, _ = draws.words(0, np.zeros(90_000, int), np.arange(90_000), draws.SIDE)
    for bound in (1, 2, 9, 33, 225):
        numbers = draws.below(word, bound)
        np.testing.assert_array_equal(numbers, draws.below(word, np.full(word.shape, bound)))
        counts = np.bincount(numbers)
        assert len(counts) == bound
        if bound > 1:
            assert_uniform(counts)
    unit = draws.uniform(word)
    assert unit.dtype == np.float64 and unit.min() >= 0 and unit.max() < 1
    assert_uniform(np.histogram(unit, 100, (0, 1))[0])
    assert draws.uniform(np.array([0, 2**32 - 1], np.uint32)).tolist() == [0.0, 1 - 2**-32]
