"""Columns on one device and one to a device are the same network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from alexnet_resnet.ops.columns import Columns, Layout
from alexnet_resnet.ops.linear import dense


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def mesh(**axes):
    devices = np.array(jax.devices()[: np.prod(list(axes.values()))])
    return jax.sharding.Mesh(devices.reshape(list(axes.values())), tuple(axes))


def on_two(function, in_specs, out_specs):
    return jax.jit(
        jax.shard_map(function, mesh=mesh(column=2), in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


@pytest.mark.parametrize("total", [1, 2, 4])
@pytest.mark.parametrize("axis", [-1, 0])
def test_split_gives_each_column_its_own_successive_part(total, axis):
    x = draw(8, 12)
    columns = Columns(total)
    parts = columns.split(x, axis)
    assert columns.here == len(parts) == total
    assert columns.indices() == list(range(total))
    share = x.shape[axis] // total
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, np.take(x, range(i * share, (i + 1) * share), axis))


def test_channels_that_columns_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="equal division"):
        Columns(2).split(draw(2, 5))


@pytest.mark.parametrize("total", [1, 2, 4])
def test_join_undoes_split(total):
    x = draw(2, 3, 3, 8)
    columns = Columns(total)
    np.testing.assert_array_equal(columns.join(columns.split(x)), x)


@pytest.mark.parametrize("total", [1, 2, 4])
def test_add_is_the_sum_over_columns(total):
    x = draw(3, 8)
    want = np.asarray(x).reshape(3, total, 8 // total).sum(1)
    np.testing.assert_allclose(Columns(total).add(Columns(total).split(x)), want, rtol=1e-6)


def test_a_device_of_a_split_holds_one_column_and_knows_which():
    columns = Columns(2, "column")
    assert columns.here == 1

    def local(x):
        (part,) = columns.split(x)
        (index,) = columns.indices()
        return part + 100 * index

    x = draw(3, 8)
    want = np.concatenate([x[:, :4], x[:, 4:] + 100], axis=1)
    np.testing.assert_array_equal(on_two(local, P(None, "column"), P(None, "column"))(x), want)


def test_join_between_devices_gives_both_the_whole_in_order():
    columns = Columns(2, "column")
    x = draw(2, 3, 3, 8)
    joined = on_two(lambda x: columns.join(columns.split(x))[None], P(None, None, None, "column"), P("column"))(x)
    for copy in joined:
        np.testing.assert_array_equal(copy, x)


def test_add_between_devices_gives_both_the_sum():
    columns = Columns(2, "column")
    x = draw(3, 8)
    total = on_two(lambda x: columns.add(columns.split(x))[None], P(None, "column"), P("column"))(x)
    for copy in total:
        np.testing.assert_allclose(copy, x[:, :4] + x[:, 4:], rtol=1e-6)


def network(columns, x, first, second, last):
    """Two layers in columns, a join between them, and a sum over partial products at the end."""
    hidden = [jnp.tanh(dense(x, kernel)) for kernel in columns.split(first)]
    everything = columns.join(hidden)
    hidden = [jnp.tanh(dense(everything, kernel)) for kernel in columns.split(second)]
    return columns.add([dense(h, kernel) for h, kernel in zip(hidden, columns.split(last, axis=0), strict=True)])


def test_a_network_in_columns_has_the_same_value_and_gradient_on_one_device_and_on_two():
    x, kernels = draw(5, 6), (draw(6, 8, seed=1), draw(8, 4, seed=2), draw(4, 3, seed=3))

    def loss(columns, kernels):
        return jnp.sum(jnp.sin(network(columns, x, *kernels)))

    specs = (P(None, "column"), P(None, "column"), P("column"))
    split = jax.shard_map(
        functools.partial(loss, Columns(2, "column")), mesh=mesh(column=2), in_specs=(specs,), out_specs=P()
    )
    one, one_gradient = jax.value_and_grad(functools.partial(loss, Columns(2)))(kernels)
    two, two_gradient = jax.jit(jax.value_and_grad(split))(kernels)
    whole = jnp.sum(jnp.sin(jnp.tanh(jnp.tanh(x @ kernels[0]) @ kernels[1]) @ kernels[2]))
    np.testing.assert_allclose(one, whole, atol=1e-5)
    np.testing.assert_allclose(two, one, atol=1e-5)
    for a, b in zip(two_gradient, one_gradient, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_layout_shows_the_fully_connected_layers_the_same_batch_unless_told():
    x = draw(4, 3)
    assert Layout().to_fc(x) is x
    assert Layout().conv == Layout().fc == Columns(1, None)


def test_a_layout_with_a_batch_axis_gathers_the_batch_in_order():
    layout = Layout(batch_axis="data")
    x = draw(8, 3)
    gather = jax.shard_map(
        lambda x: layout.to_fc(x)[None], mesh=mesh(data=4), in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    for copy in jax.jit(gather)(x):
        np.testing.assert_array_equal(copy, x)
