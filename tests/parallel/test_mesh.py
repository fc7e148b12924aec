"""Meshes that the devices can form, and batches that they can share."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.prefetch import prefetch


def parallel(data, model):
    return SimpleNamespace(data=data, model=model)


@pytest.mark.parametrize(
    ("asked", "formed"), [((-1, 1), (8, 1)), ((-1, 2), (4, 2)), ((2, 4), (2, 4)), ((-1, 8), (1, 8))]
)
def test_meshes_that_can_be_formed(asked, formed):
    mesh = mesh_lib.create(parallel(*asked))
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
        mesh_lib.create(parallel(*asked))


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    mesh_lib.check_batch("train.batch_size", 12, 4)
    with pytest.raises(UserError, match="train.batch_size=10: expected a multiple of 4"):
        mesh_lib.check_batch("train.batch_size", 10, 4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_prefetching_changes_neither_the_batches_nor_their_order(size):
    split = mesh_lib.split_batch(mesh_lib.create(parallel(-1, 1)))
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

    batches = prefetch(source(), mesh_lib.split_batch(mesh_lib.create(parallel(-1, 1))), 2)
    next(batches)
    assert taken == [0, 1]
    next(batches)
    assert taken == [0, 1, 2]
