"""A batch in parts is the batch: gradients and running moments, over all strategies; losses and averages in a step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from alexnet_resnet import config as config_lib
from alexnet_resnet import models
from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib
from alexnet_resnet.training.objective import Objective

BATCH = 16


def spread(name, data, model, network):
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    return Strategy(name, mesh, models.NETWORKS[network])


def make_config(name, **model):
    config = config_lib.default(name)
    small = {
        "alexnet": dict(width=1 / 64),
        "lenet": dict(),
        "resnet_cifar": dict(depth=8, width=0.25),
        "cuda_convnet": dict(),
    }
    config.model.update(dtype="float64", **small[name], **model)
    side = {"alexnet": 67, "lenet": 32, "resnet_cifar": 8, "cuda_convnet": 16}[name]
    config.data.update(canvas_size=side, image_size=side, mean="none", channels=1 if name == "lenet" else 3)
    config.train.batch_size = BATCH
    config.optimizer.update(learning_rate=0.01)
    return config


def make_batch(config, seed=0):
    random, side = np.random.default_rng(seed), config.data.image_size
    return {
        "image": random.integers(0, 256, (BATCH, side, side, config.data.channels)).astype(np.uint8),
        "label": random.integers(0, 10, BATCH).astype(np.int32),
        "offset": np.zeros((BATCH, 2), np.int32),
        "flip": random.random(BATCH) < 0.5,
        "valid": np.arange(BATCH) != 5,
        "row": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
    }


def course(config, strategy, objective, steps):
    """The state and the measurements after each of some steps, on the host."""
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 100, 10, BATCH)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    channels = config.data.channels

    def create():
        state = state_lib.create(network, optimizer, 0, jnp.zeros((1, 1, channels)), jnp.zeros((channels, channels)))
        wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)  # noqa: E731
        return dataclasses.replace(
            state,
            params=wide(state.params),
            batch_stats=wide(state.batch_stats),
            opt_state=optimizer.init(wide(state.params)),
        )

    state = jax.jit(create, out_shardings=state_lib.shardings(network, optimizer, strategy))()
    step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data, objective)
    for seed in range(steps):
        state, measured = step(state, mesh_lib.put_batch(make_batch(config, seed), strategy.batch))
        yield jax.device_get((state, measured))


def stepped(config, strategy, objective, steps=1):
    """The last of them."""
    return list(course(config, strategy, objective, steps))[-1]


@functools.cache
def on_one_device(network, **model):
    """What two steps of whole batches come to."""
    return stepped(make_config(network, **model), spread("data", 1, 1, network), Objective(label_smoothing=0.1), 2)


def assert_close(one, other, rtol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), one, other)


@pytest.mark.parametrize(
    ("network", "model", "strategy"),
    [
        ("alexnet", {}, ("columns", 2, 2)),
        ("alexnet", {}, ("hybrid", 2, 2)),
        ("alexnet", {}, ("fsdp", 4, 1)),
        # Not the sparse connections, which are put together in float32.
        ("lenet", {"connections": "full"}, ("data", 4, 1)),
        ("resnet_cifar", {"ghost_batch": 2}, ("data", 2, 1)),
    ],
)
def test_a_batch_in_parts_takes_the_step_of_the_whole_batch(network, model, strategy):
    """In float64, with dropout, a row that cannot be read and smoothed targets."""
    with jax.enable_x64(True):
        config = make_config(network, **model)
        devices = spread(*strategy, network)
        whole, measured = on_one_device(network, **model)
        parts, in_parts = stepped(config, devices, Objective(label_smoothing=0.1, accumulate=2), steps=2)
    assert_close(parts.params, whole.params)
    assert_close(parts.batch_stats, whole.batch_stats)
    assert_close(in_parts, measured)
    assert np.any(np.abs(jax.tree.leaves(whole.params)[-1]) > 0)


def test_parts_move_nothing_between_devices_but_gradients():
    config = make_config("lenet")
    config.model.dtype = "float32"
    strategy = spread("data", 4, 1, "lenet")
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 100, 10)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data, Objective(accumulate=2))
    state = strategy.place(state_lib.like(config, network, optimizer, strategy.everywhere))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=strategy.batch), make_batch(config))
    text = step.lower(state, batch).compile().as_text()
    assert "all-reduce" in text
    for collective in ("all-gather(", "all-to-all(", "collective-permute("):
        assert collective not in text, collective


@pytest.mark.parametrize(
    ("fields", "model", "message"),
    [
        (dict(accumulate=8), {}, r"train.accumulate=8: expected a divisor of 4, the examples of train.batch_size=16"),
        (
            dict(accumulate=4),
            dict(ghost_batch=2),
            r"train.accumulate=4: expected parts of whole ghost .* has 1 ",
        ),
    ],
)
def test_parts_that_cannot_be_are_refused(fields, model, message):
    config = make_config("resnet_cifar", **model)
    config.train.update(**fields)
    with pytest.raises(UserError, match=message):
        objective_lib.check(config, spread("data", 4, 1, "resnet_cifar"))


@pytest.mark.parametrize("loss", ["binary", "binary_probabilities"])
def test_one_vs_all_losses_are_what_a_step_measures(loss):
    with jax.enable_x64(True):
        config = make_config("cuda_convnet")
        batch = make_batch(config)
        _, measured = stepped(config, spread("data", 1, 1, "cuda_convnet"), Objective(loss=loss))
        network = state_lib.from_config(config)
        params, stats = jax.jit(network.init)(jax.random.key(0))
        images = np.where(batch["flip"][:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
        logits = np.asarray(jax.jit(network.apply)(params, stats, jnp.asarray(images, jnp.float64))[0], np.float64)
    y, p = np.eye(10)[batch["label"]], 1 / (1 + np.exp(-logits))
    want = -(y * np.log(p) + (1 - y) * np.log1p(-p)).sum(1)[batch["valid"]].mean()
    assert float(measured["loss"]) == pytest.approx(want, rel=1e-6)


def test_a_step_minimises_the_criterion_of_lenet_5():
    with jax.enable_x64(True):
        config = make_config("lenet", connections="full")
        config.train.rubbish, config.data.divisor = 60.0, 200.0
        batch, objective = make_batch(config), objective_lib.create(config, 100)
        _, measured = stepped(config, spread("data", 1, 1, "lenet"), objective)
        network = state_lib.from_config(config)
        params, stats = jax.jit(network.init)(jax.random.key(0))
        images = np.where(batch["flip"][:, None, None, None], batch["image"][:, :, ::-1], batch["image"]) / 200
        distances = -np.asarray(jax.jit(network.apply)(params, stats, jnp.asarray(images, jnp.float64))[0])
    right = distances[np.arange(BATCH), batch["label"]]
    want = (right + np.log(np.exp(-60.0) + np.exp(-distances).sum(1)))[batch["valid"]].mean()
    assert float(measured["loss"]) == pytest.approx(want, rel=1e-6)


def test_the_average_follows_the_parameters_and_is_what_is_judged():
    with jax.enable_x64(True):
        config = make_config("resnet_cifar")
        config.optimizer.ema = 0.5
        strategy = spread("data", 1, 1, "resnet_cifar")
        (first, _), (second, _) = course(config, strategy, Objective(), 2)
        network = state_lib.from_config(config)
        start = jax.device_get(jax.jit(network.init)(jax.random.key(0)))
    for which, begin in (("params", start[0]), ("batch_stats", start[1])):
        for a, w0, w1, w2 in zip(
            jax.tree.leaves(getattr(second.average, which)),
            jax.tree.leaves(begin),
            jax.tree.leaves(getattr(first, which)),
            jax.tree.leaves(getattr(second, which)),
            strict=True,
        ):
            w = 1 / 10 * np.asarray(w0, np.float64) + 9 / 10 * w1
            np.testing.assert_allclose(a, 2 / 11 * w + 9 / 11 * w2, rtol=1e-5, atol=1e-6)
    judged = state_lib.to_judge(second)
    assert judged.params is second.average.params and judged.batch_stats is second.average.batch_stats
    plain = dataclasses.replace(second, average={})
    assert state_lib.to_judge(plain) is plain


@pytest.mark.parametrize("name", ["columns", "hybrid", "fsdp"])
def test_an_average_lies_as_its_parameters_do(name):
    config = make_config("alexnet")
    config.model.dtype = "float32"
    config.optimizer.update(ema=0.9, warmup_until_error=0.8)
    strategy = spread(name, *((4, 1) if name == "fsdp" else (2, 2)), "alexnet")
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    where = state_lib.shardings(network, optimizer, strategy)
    assert where.average.params == where.params == where.opt_state.inner[-1].trace
    assert any(sharding.spec for sharding in jax.tree.leaves(where.average.params))
    assert all(sharding == strategy.everywhere for sharding in where.opt_state.control)
    like = strategy.place(state_lib.like(config, network, optimizer, strategy.everywhere))
    assert jax.tree.map(lambda leaf: leaf.sharding, like.average) == where.average


def test_lighting_ends_at_its_step():
    config = config_lib.default("resnet_cifar")
    config.data.update(canvas_size=8, image_size=8, lighting="as_run", lighting_until=0.5)
    assert objective_lib.create(config, 20).lighting_until == 10
    batch = jax.tree.map(jnp.asarray, make_batch(make_config("resnet_cifar")))
    mean = jnp.zeros((1, 1, 3))
    plain = step_lib.evaluation_images(config.data, mean, batch)
    key = jax.random.key_data(jax.random.key(0))
    lit = state_lib.TrainState(jnp.int32(9), {}, {}, (), key, mean, 100 * jnp.eye(3))
    assert not np.allclose(step_lib.training_images(config.data, lit, batch, 10), plain, atol=1)
    off = dataclasses.replace(lit, step=jnp.int32(10))
    np.testing.assert_array_equal(step_lib.training_images(config.data, off, batch, 10), plain)
