"""Random numbers that are functions of (seed, epoch, example) and of nothing else, the same in NumPy and in JAX.

Each is one call of Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
the generator of `jax.random`: the key is (seed, epoch), the counter (example, what the number is for). There is no
state, so that any batch of any epoch is drawn without those before it, on any host or on the device.

Arrays are NumPy's or JAX's, and so is what comes back.
"""

import math

import jax
import numpy as np
from jax import lax

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = np.uint32(0x1BD11BDA)

# What a number is for: the second word of the counter. The shuffle's rounds take those from 0 to SHUFFLE_ROUNDS - 1.
SHUFFLE_ROUNDS = 8
TOP, LEFT, FLIP, SIDE = range(16, 20)
# The Inception crop's attempts each take two: one for area and aspect, one for the position.
ATTEMPTS = 32

Array = np.ndarray | jax.Array


def threefry(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two random words for each key and counter: arrays of uint32 that broadcast, at least one of them with an axis."""
    jax_has_it = any(isinstance(word, jax.Array) for word in (*key, *counter))
    return (_rounds_by_jax if jax_has_it else _rounds)(key, counter)


def _rounds(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    schedule = (*key, key[0] ^ key[1] ^ PARITY)
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x = x + y
            y = ((y << np.uint32(distance)) | (y >> np.uint32(32 - distance))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + (schedule[(group + 2) % 3] + np.uint32(group + 1))
    return x, y


# A batch takes twenty calls of a hundred operations each: jitted, they are traced once for all.
_rounds_by_jax = jax.jit(_rounds)


def words(seed: int, epochs: Array, examples: Array, purpose: int) -> tuple[Array, Array]:
    """Two random words (uint32) for each example of each epoch.

    Args:
      seed: the run's seed, from 0 to 2**32 - 1.
      epochs: [N], whole numbers.
      examples: [N], whole numbers below 2**32.
      purpose: what they are for; other purposes give independent words.
    """
    epochs, examples = epochs.astype(np.uint32), examples.astype(np.uint32)
    zero = examples ^ examples
    return threefry((zero + np.uint32(seed), epochs), (examples, zero + np.uint32(purpose)))


def uniform(word: Array) -> Array:
    """Words as float64 (NumPy) numbers in [0, 1)."""
    return word * 2.0**-32


def below(word: Array, bound: Array | int) -> Array:
    """Words as whole numbers from 0 to `bound` - 1, each but for one in 2**32 / `bound` equally probable."""
    return word % np.uint32(bound) if isinstance(bound, int) else word % bound.astype(np.uint32)


def shuffle(seed: int, epochs: Array, places: Array, count: int) -> Array:
    """Which example stands at each place of its epoch: for each epoch another permutation of 0 to `count` - 1.

    A Feistel network over pairs (quotient, remainder) of a little more than `count` numbers; a number that is too large
    is put through again until it is not, which keeps the map one to one.

    Args:
      seed: the run's seed.
      epochs: [N], the epoch of each place.
      places: [N], from 0 to `count` - 1.
      count: examples in an epoch, at most 2**31.

    Returns:
      [N] uint32.
    """
    rows = math.isqrt(count - 1) + 1
    columns = -(-count // rows)

    def once(values):
        high, low = values // np.uint32(columns), values % np.uint32(columns)
        for turn in range(0, SHUFFLE_ROUNDS, 2):
            high = (high + words(seed, epochs, low, turn)[0] % np.uint32(rows)) % np.uint32(rows)
            low = (low + words(seed, epochs, high, turn + 1)[0] % np.uint32(columns)) % np.uint32(columns)
        return high * np.uint32(columns) + low

    values = once(places.astype(np.uint32))
    if isinstance(values, np.ndarray):
        while (beyond := values >= count).any():
            values = np.where(beyond, once(values), values)
        return values
    walk = lambda values: jax.numpy.where(values >= count, once(values), values)  # noqa: E731
    return lax.while_loop(lambda values: (values >= count).any(), walk, values)
