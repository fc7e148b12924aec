"""Dropout's masks: whom they depend on, and how often they are one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from alexnet_resnet.ops.dropout import dropout

KEY = jax.random.key(7)


def mask(rate=0.5, key=KEY, examples=range(16), column=0, features=64):
    examples = jnp.asarray(examples)
    return np.asarray(dropout(jnp.ones((len(examples), features)), rate, key, examples, column)) > 0


def test_units_are_either_zero_or_divided_by_what_is_kept():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 64)), jnp.float32)
    for rate in (0.1, 0.5, 0.8):
        y = dropout(x, rate, KEY, jnp.arange(16))
        kept = mask(rate)
        np.testing.assert_array_equal(np.asarray(y)[~kept], 0)
        np.testing.assert_allclose(np.asarray(y)[kept], np.asarray(x, np.float64)[kept] / (1 - rate), rtol=1e-6)


def test_rate_zero_is_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
    np.testing.assert_array_equal(dropout(x, 0.0, KEY, jnp.arange(4)), x)


def test_permuted_and_smaller_batches_draw_the_same_rows():
    whole = mask()
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(mask(examples=order), whole[order])
    for start in range(0, 16, 2):
        np.testing.assert_array_equal(mask(examples=range(start, start + 2)), whole[start : start + 2])
    # The same example twice in a batch is the same mask twice: the row's own place plays no part.
    np.testing.assert_array_equal(mask(examples=[5, 5]), whole[[5, 5]])


def test_masks_are_not_a_matter_of_the_values():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (16, 64)), jnp.float32)
    np.testing.assert_array_equal(np.asarray(dropout(x, 0.5, KEY, jnp.arange(16))) > 0, mask())


def agreement(a, b):
    """How often two masks agree, in standard deviations from what independent masks of rate 1/2 would do."""
    return (np.mean(a == b) - 0.5) / np.sqrt(0.25 / a.size)


def test_examples_columns_and_keys_have_masks_of_their_own():
    first = mask(features=4096)
    others = {
        "examples": mask(examples=range(16, 32), features=4096),
        "column": mask(column=1, features=4096),
        "key": mask(key=jax.random.key(8), features=4096),
        "shifted": np.roll(first, 1, axis=0),
    }
    for name, other in others.items():
        assert abs(agreement(first, other)) < 5, name
    # Example 1 of column 0 and example 0 of column 1 differ too: the two numbers are not summed.
    assert abs(agreement(mask(examples=[1], features=4096), mask(examples=[0], column=1, features=4096))) < 5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_share_kept_is_one_minus_the_rate(rate):
    kept = mask(rate, examples=range(128), features=1024)
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_expected_activation_is_kept(rate):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8)), jnp.float32)
    keys = jax.random.split(KEY, 4000)
    mean = jax.vmap(lambda key: dropout(x, rate, key, jnp.arange(2)))(keys).mean(0)
    deviation = np.abs(x) * np.sqrt(rate / (1 - rate) / len(keys))
    assert np.all(np.abs(mean - x) < 5 * deviation + 1e-6)


def test_the_gradient_wears_the_same_mask():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 64)), jnp.float32)
    g = jnp.asarray(np.random.default_rng(1).normal(size=(16, 64)), jnp.float32)
    _, pull = jax.vjp(lambda x: dropout(x, 0.75, KEY, jnp.arange(16)), x)
    np.testing.assert_allclose(pull(g)[0], np.where(mask(0.75), g * 4, 0), rtol=1e-6)


def test_bfloat16_has_the_mask_of_float32():
    x = jnp.ones((16, 64), jnp.bfloat16)
    y = dropout(x, 0.5, KEY, jnp.arange(16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y > 0, mask())


def test_two_columns_on_two_devices_and_batches_on_four_draw_what_one_device_draws():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "column"))

    def local(x, examples):
        return dropout(x, 0.5, KEY, examples, jax.lax.axis_index("column"))

    specs = {"in_specs": (P("data", "column"), P("data")), "out_specs": P("data", "column")}
    split = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(jnp.ones((16, 128)), jnp.arange(16))
    np.testing.assert_array_equal(np.asarray(split) > 0, np.concatenate([mask(), mask(column=1)], axis=1))
