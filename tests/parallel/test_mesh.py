"""Meshes that the devices can form, and batches that they can share."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.prefetch import prefetch


@pytest.mark.parametrize(
    ("asked", "formed"), [((-1, 1), (8, 1)), ((-1, 2), (4, 2)), ((2, 4), (2, 4)), ((-1, 8), (1, 8))]
)
def test_meshes_that_can_be_formed(asked, formed):
    mesh = mesh_lib.create(*asked)
    assert mesh.shape == {"data": formed[0], "model": formed[1]}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((-1, 3), "parallel.model=3: expected a divisor of the number of devices, 8"),
        ((-1, 0), "parallel.model=0"),
        ((3, 1), "parallel.data=3: expected 8, or -1"),
        ((4, 1), "parallel.data=4: expected 8, or -1"),
        ((0, 1), "parallel.data=0"),
    ],
)
def test_meshes_that_cannot_be_formed_are_refused(asked, message):
    with pytest.raises(UserError, match=message):
        mesh_lib.create(*asked)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    mesh_lib.check_batch("train.batch_size", 12, 4)
    with pytest.raises(UserError, match="train.batch_size=10: expected a multiple of 4"):
        mesh_lib.check_batch("train.batch_size", 10, 4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_prefetching_changes_neither_the_batches_nor_their_order(size):
    split = mesh_lib.split_batch(mesh_lib.create(-1, 1))
    batches = [{"x": np.full((8, 2), i)} for i in range(4)]
    out = list(prefetch(iter(batches), split, size))
    assert [int(batch["x"][0, 0]) for batch in out] == [0, 1, 2, 3]
    assert all(isinstance(batch["x"], jax.Array) and len(batch["x"].addressable_shards) == 8 for batch in out)
    assert out[0]["x"].addressable_shards[0].data.shape == (1, 2)


def test_prefetching_is_ahead_by_no_more_than_asked():
    taken = []

    def source():
        for i in range(6):
            taken.append(i)
            yield {"x": np.zeros((8, 1))}

    batches = prefetch(source(), mesh_lib.split_batch(mesh_lib.create(-1, 1)), 2)
    next(batches)
    assert taken == [0, 1]
    next(batches)
    assert taken == [0, 1, 2]


def held(*parts):
    """A sharding of which this process holds these slices of a batch."""
    sharding = mock.Mock(spec=NamedSharding)
    sharding.addressable_devices_indices_map.return_value = {n: (slice(*part),) for n, part in enumerate(parts)}
    return sharding


@pytest.mark.parametrize(
    ("parts", "places"),
    [
        ([(0, 2), (2, 4)], [0, 1, 2, 3]),
        ([(4, 8), (4, 8)], [4, 5, 6, 7]),  # two columns of the same examples
        ([(6, 8), (0, 2)], [0, 1, 6, 7]),  # a TPU pod's order
        ([(None, None)], list(range(8))),
    ],
)
def test_a_host_reads_what_its_devices_hold_once(parts, places):
    assert mesh_lib.share(8, held(*parts)).tolist() == places


@pytest.mark.parametrize("data", [1, 2, 4, 8])
def test_a_batch_lies_where_its_sharding_says(data):
    mesh = mesh_lib.create(data, 8 // data)
    sharding = mesh_lib.split_batch(mesh)
    batch = {"x": np.arange(48).reshape(16, 3), "y": np.arange(16)}
    placed = mesh_lib.put_batch(batch, sharding)
    for name, array in batch.items():
        assert placed[name].sharding == sharding and placed[name].shape == array.shape
        for shard in placed[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, array[shard.index])


def test_examples_that_do_not_follow_each_other_find_their_places(monkeypatch):
    """This process holds places 0, 1, 6 and 7 of eight: its array has only these."""
    asked = {}

    def make(shape, sharding, part):
        asked[shape] = [part((slice(begin, begin + 2),)).tolist() for begin in (6, 0)]
        return jnp.zeros(shape)

    monkeypatch.setattr(mesh_lib.jax, "make_array_from_callback", make)
    mesh_lib.put_batch({"x": np.array([10, 11, 16, 17])}, held((6, 8), (0, 2)), 8)
    assert asked == {(8,): [[16, 17], [10, 11]]}


@pytest.mark.parametrize(("data", "model", "axes"), [(8, 1, ("data",)), (4, 2, ("data",)), (4, 2, ("data", "model"))])
def test_own_rows_are_those_that_were_put(data, model, axes):
    """Also where devices along the other axis hold the same."""
    sharding = mesh_lib.split_batch(mesh_lib.create(data, model), axes)
    batch = {"x": np.arange(48).reshape(16, 3), "y": np.arange(16)}
    for name, array in mesh_lib.put_batch(batch, sharding).items():
        np.testing.assert_array_equal(mesh_lib.own_rows(array), batch[name])
