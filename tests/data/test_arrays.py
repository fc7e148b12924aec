"""The resident loader: its batches, made on the device, are numpy's and the tf.data pipeline's; so is a training."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import arrays, loaders, plan
from alexnet_resnet.data.examples import EncodedExamples, Examples, InMemory
from alexnet_resnet.data.pipeline import Pipeline
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib

FIELDS = {"image", "label", "valid", "row", "epoch", "offset", "flip"}


def make_config(canvas=12, image=8, **fields):
    config = config_lib.default("resnet_cifar")
    config.data.update(canvas_size=canvas, image_size=image, random_crop=True, random_flip=True, loader="resident")
    config.data.update(fields)
    return config


def make_examples(count=13, height=6, width=7, channels=3):
    images = np.random.default_rng(count).integers(0, 256, (count, height, width, channels)).astype(np.uint8)
    return Examples(images, (np.arange(count) % 5).astype(np.int32), tuple("abcde"), "random")


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(devices, 1), ("data", "model"))


def batch_of(data, batch_size, seed):
    return jax.jit(functools.partial(arrays.batch, data, seed=seed, batch_size=batch_size))


def assert_same(one, other):
    assert one.keys() == other.keys() == FIELDS
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("canvas", "image"), [(12, 8), (9, 9), (11, 4)])
def test_views_are_numpys(canvas, image, channels):
    data, examples = make_config(canvas, image).data, make_examples(channels=channels)
    above, left_of = (canvas - 6) // 2, (canvas - 7) // 2
    wanted = plan.training_batches(data, 13, 5, seed=3)
    batches = arrays.Resident(data, examples).training_batches(5, 3, 0, 6)
    for batch, expected in itertools.zip_longest(batches, itertools.islice(wanted, 6)):
        assert batch.keys() == FIELDS and batch["valid"].all() and batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(batch["row"], expected.rows)
        for view, row, (top, left) in zip(batch["image"], expected.rows, expected.offsets, strict=True):
            canvas_of_one = np.zeros((canvas, canvas, channels), np.uint8)
            canvas_of_one[above : above + 6, left_of : left_of + 7] = examples.images[row]
            np.testing.assert_array_equal(view, canvas_of_one[top : top + image, left : left + image])


@pytest.mark.parametrize(
    ("fields", "shape", "batch_size"),
    [
        (dict(), (13, 6, 7, 3), 5),
        (dict(canvas=11, image=4, random_crop=False), (3, 11, 10, 1), 8),
    ],
)
def test_the_device_the_host_and_tensorflow_make_the_same_batches(fields, shape, batch_size):
    data, examples, seed = make_config(**fields).data, make_examples(*shape), 2**32 - 1
    resident = arrays.Resident(data, examples)
    held, on_device = resident.on_device(mesh_lib.replicated(mesh_of(1))), batch_of(data, batch_size, seed)
    # From before the end of one epoch to beyond the end of the next.
    first, last = 1, 2 * len(examples) // batch_size + 3
    hosts = resident.training_batches(batch_size, seed, first, last)
    streamed = Pipeline(data, examples).training_batches(batch_size, seed, first, last)
    epochs = []
    for step, (host, stream) in enumerate(zip(hosts, streamed, strict=True), first):
        epoch, place = divmod(step * batch_size, len(examples))
        device = on_device(held, epoch=np.int32(epoch), place=np.int32(place))
        assert_same(host, stream)
        assert_same(jax.device_get(device), host)
        # The same batch, counted from an epoch before: as the second and later steps of one call are.
        if epoch:
            again = on_device(held, epoch=np.int32(epoch - 1), place=np.int32(place + len(examples)))
            assert_same(jax.device_get(again), host)
        epochs += host["epoch"].tolist()
    assert step == last - 1 and max(epochs) >= 2


def test_the_device_draws_the_same_with_64_bit_numbers():
    data, examples = make_config().data, make_examples()
    (wanted,) = arrays.Resident(data, examples).training_batches(5, 1, 2, 3)
    with jax.enable_x64(True):
        held = arrays.Resident(data, examples).on_device(mesh_lib.replicated(mesh_of(1)))
        assert_same(jax.device_get(batch_of(data, 5, 1)(held, epoch=np.int32(0), place=np.int32(10))), wanted)


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_the_shares_of_hosts_make_up_the_batches(hosts):
    data, examples = make_config().data, make_examples()
    ends = [7 * host // hosts for host in range(hosts + 1)]
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    resident = arrays.Resident(data, examples)
    for batches in (
        lambda share: resident.training_batches(7, 0, 1, 5, share),
        lambda share: resident.evaluation_batches(7, share),
    ):
        for whole, *of_hosts in zip(batches(slice(None)), *map(batches, parts), strict=True):
            joined = {name: np.concatenate([part[name] for part in of_hosts]) for name in FIELDS}
            assert_same(joined, whole)


@pytest.mark.parametrize("batch_size", [1, 4, 13, 32])
@pytest.mark.parametrize("whole_canvas", [False, True])
@pytest.mark.parametrize("rows", [None, [12, 0, 5, 5, 3]])
def test_an_evaluation_is_tensorflows_and_shows_every_example_once(batch_size, whole_canvas, rows):
    data, examples = make_config(13, 8).data, make_examples()
    rows = None if rows is None else np.array(rows)
    arguments = dict(whole_canvas=whole_canvas, rows=rows)
    batches = list(arrays.Resident(data, examples).evaluation_batches(batch_size, **arguments))
    for one, other in zip(batches, Pipeline(data, examples).evaluation_batches(batch_size, **arguments), strict=True):
        assert_same(one, other)
    seen = {name: np.concatenate([batch[name][batch["valid"]] for batch in batches]) for name in FIELDS}
    chosen = np.arange(13) if rows is None else rows
    np.testing.assert_array_equal(seen["row"], chosen)
    np.testing.assert_array_equal(seen["label"], examples.labels[chosen])
    # The image, 6 by 7, stands in the middle of a canvas of 13, of which the centre's 8 begin at 2.
    canvases = np.pad(examples.images, ((0, 0), (3, 4), (3, 3), (0, 0)))[chosen]
    np.testing.assert_array_equal(seen["image"], canvases if whole_canvas else canvases[:, 2:10, 2:10])
    assert not seen["flip"].any() and (seen["offset"] == (0 if whole_canvas else 2)).all()


@pytest.mark.parametrize("devices", [1, 8])
def test_the_device_holds_the_very_bytes_once_on_each(devices):
    examples = make_examples()
    held = arrays.Resident(make_config().data, examples).on_device(mesh_lib.replicated(mesh_of(devices)))
    assert held["images"].dtype == np.uint8 and held["labels"].dtype == np.int32
    np.testing.assert_array_equal(held["images"], examples.images)
    np.testing.assert_array_equal(held["labels"], examples.labels)
    for array in held.values():
        assert len(array.sharding.device_set) == devices and array.is_fully_replicated


def test_encoded_images_cannot_be_resident():
    examples = EncodedExamples(InMemory([b""], [0]), range(1), ("a", "b"), "photos train")
    with pytest.raises(UserError, match="data.loader='resident': expected 'tf' for photos train"):
        loaders.create(make_config().data, examples)
    assert isinstance(loaders.create(make_config().data, make_examples()), arrays.Resident)
    assert isinstance(loaders.create(make_config(loader="tf").data, make_examples()), Pipeline)


class Perceptron(state_lib.Network):
    """Two layers and noise from the step's key: what a step needs of a network, compiled in a moment."""

    def __init__(self):
        self.image_shape, self.num_classes = (8, 8, 3), 5

    @property
    def shapes(self):
        return jax.eval_shape(self.init, jax.random.key(0))

    def over(self, strategy):
        return self

    def init(self, key):
        one, two = jax.random.split(key)
        params = dict(one=jax.random.normal(one, (192, 16)) / 14, two=jax.random.normal(two, (16, 5)) / 4)
        return params, dict(mean=jnp.zeros(16))

    def apply(self, params, batch_stats, images, context=Context()):
        hidden = jnp.tanh(images.reshape(len(images), -1) @ params["one"])
        stats = dict(mean=0.9 * batch_stats["mean"] + 0.1 * hidden.mean(0))
        return hidden @ params["two"] + 0.1 * jax.random.normal(context.key, (len(images), 5)), stats


@pytest.fixture(scope="module")
def training():
    """A small training over eight devices, with everything drawn that can be."""
    config = make_config(lighting="as_run", divisor=50.0)
    config.train.batch_size, config.seed = 16, 5
    mesh, network = mesh_of(8), Perceptron()
    rate = optimizer_lib.schedule(config.optimizer, 100, 10)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    examples = make_examples(39, 8, 8)
    mean = np.pad(np.float32(examples.images.mean(0)), ((2, 2), (2, 2), (0, 0)))
    axes = np.diag([12.0, 3.0, 1.0]).astype(np.float32)
    create = functools.partial(state_lib.create, network, optimizer, config.seed)
    fresh = functools.partial(jax.jit(create, out_shardings=mesh_lib.replicated(mesh)), mean, axes)
    config.train.steps_per_call = 3
    resident = step_lib.compile_resident_steps(network, optimizer, rate, Strategy("data", mesh), config)
    streamed = step_lib.compile_train_step(network, optimizer, rate, Strategy("data", mesh), config.data)
    return config, mesh, examples, fresh, resident, streamed


def in_calls(training, calls):
    """The state after calls of so many steps each, and the measurements of every step."""
    config, mesh, examples, fresh, resident, _ = training
    held = arrays.Resident(config.data, examples).on_device(mesh_lib.replicated(mesh))
    state, measured, number = fresh(), [], 0
    for count in calls:
        epoch, place = divmod(number * config.train.batch_size, len(examples))
        state, of_call = resident(state, held, np.int32(epoch), np.int32(place), np.int32(count))
        measured.append({name: value[:count] for name, value in jax.device_get(of_call).items()})
        number += count
    return jax.device_get(state), {name: np.concatenate([m[name] for m in measured]) for name in measured[0]}


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_several_steps_in_one_call_are_those_steps_one_by_one(training):
    alone, together = in_calls(training, [1] * 6), in_calls(training, [3, 3])
    assert int(alone[0].step) == int(together[0].step) == 6
    assert len(set(alone[1]["loss"].tolist())) == 6
    assert training[4]._cache_size() == 1, "calls of every length are one program"
    assert_close(vars(alone[0]), vars(together[0]))
    assert_close(alone[1], together[1])


def test_a_training_from_the_device_is_the_training_from_tensorflow(training):
    config, mesh, examples, fresh, _, streamed = training
    resident, measured = in_calls(training, [1, 1, 1])
    state, of_steps = fresh(), []
    # Three batches of 16 of 39 examples: the last goes on into the second epoch.
    for batch in Pipeline(config.data, examples).training_batches(16, config.seed, 0, 3):
        state, of_step = streamed(state, mesh_lib.put_batch(batch, mesh_lib.split_batch(mesh)))
        of_steps.append(jax.device_get(of_step))
    assert_close(measured, {name: np.array([step[name] for step in of_steps]) for name in measured})
    assert_close(vars(resident), jax.device_get(vars(state)))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), resident.params, jax.device_get(fresh().params))
    assert min(jax.tree.leaves(moved)) > 1e-2
