"""The step as a function: against optax by hand, and the same on one device and on eight."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import loaders
from alexnet_resnet.data.examples import Examples
from alexnet_resnet.evaluation.classification import Evaluator
from alexnet_resnet.models import Context
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib


def one_device():
    return Strategy("data", jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model")))


def eight_devices():
    return Strategy("data", mesh_lib.create(8, 1))


def make(name="resnet_cifar", **model):
    config = config_lib.default(name)
    config.model.update(**({"depth": 8, "width": 0.25} if name == "resnet_cifar" else {}), **model)
    config.data.update(canvas_size=12, image_size=8) if name == "resnet_cifar" else None
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 100, 10)
    return config, network, optimizer_lib.create(config.optimizer, rate), rate


def make_batch(seed=0, size=16, image=8, classes=10):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (size, image, image, 3)).astype(np.uint8),
        "label": random.integers(0, classes, size).astype(np.int32),
        "offset": random.integers(0, 5, (size, 2)).astype(np.int32),
        "flip": random.random(size) < 0.5,
        "valid": np.ones(size, bool),
        "row": np.arange(size, dtype=np.int32),
        "epoch": np.zeros(size, np.int32),
    }


def fresh(network, optimizer, mean=None):
    mean = jnp.full((12, 12, 3), 120.0) if mean is None else mean
    return jax.jit(lambda m: state_lib.create(network, optimizer, 0, m, jnp.zeros((3, 3))))(mean)


def test_a_step_is_the_gradient_of_the_mean_loss_and_the_optimizers_update():
    config, network, optimizer, rate = make()
    state, batch = fresh(network, optimizer), make_batch()
    canvas_mean = np.full((12, 12, 3), 120.0)
    images = []
    for image, (top, left), flip in zip(batch["image"], batch["offset"], batch["flip"], strict=True):
        part = canvas_mean[top : top + 8, left : left + 8]
        images.append((image - part)[:, ::-1] if flip else image - part)
    images = jnp.asarray(np.array(images), jnp.float32)

    def loss_of(params):
        logits, stats = network.apply(params, state.batch_stats, images, Context(train=True))
        log_probabilities = jax.nn.log_softmax(logits)
        picked = log_probabilities[jnp.arange(16), batch["label"]]
        return -picked.mean(), (logits, stats)

    (loss, (logits, stats)), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(state.params)
    updates, _ = optimizer.update(gradients, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)

    new, measured = jax.jit(
        lambda state, batch: step_lib.train_step(
            state, batch, network=network, optimizer=optimizer, rate=rate, data=config.data
        )
    )(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), new.params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), new.batch_stats, stats)
    assert float(measured["loss"]) == pytest.approx(float(loss), rel=1e-5)
    wrong = np.argmax(np.asarray(logits), 1) != batch["label"]
    assert float(measured["error"]) == pytest.approx(wrong.mean())
    squares = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradients))
    assert float(measured["gradient_norm"]) == pytest.approx(squares**0.5, rel=1e-4)
    assert float(measured["learning_rate"]) == pytest.approx(0.1)
    assert int(new.step) == 1


@pytest.mark.parametrize("model", [dict(), dict(ghost_batch=2)])
def test_one_device_and_eight_take_the_same_steps(model):
    with jax.enable_x64(True):
        finals = []
        for strategy in (one_device(), eight_devices()):
            config, network, optimizer, rate = make(dtype="float64", **model)
            state = fresh(network, optimizer)
            state = jax.device_put(state, strategy.everywhere)
            step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data)
            for seed in range(3):
                state, _ = step(state, mesh_lib.put_batch(make_batch(seed), strategy.batch))
            finals.append(jax.device_get(state.params))
        # Parameters are float32: a few of their last bits follow the order of sums.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *finals)


def test_a_step_compiles_once_and_moves_only_gradients_between_devices():
    config, network, optimizer, rate = make()
    strategy = eight_devices()
    step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data)
    state = jax.device_put(fresh(network, optimizer), strategy.everywhere)
    for seed in range(3):
        state, _ = step(state, mesh_lib.put_batch(make_batch(seed), strategy.batch))
    assert step._cache_size() == 1
    text = step.lower(state, mesh_lib.put_batch(make_batch(), strategy.batch)).compile().as_text()
    assert "all-reduce" in text
    for collective in ("all-gather(", "all-to-all(", "collective-permute("):
        assert collective not in text, collective


def test_dropout_draws_differ_by_step_and_repeat_by_seed():
    config = config_lib.default("alexnet")
    config.model.update(width=1 / 16)
    config.data.update(canvas_size=67, image_size=67)
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    state = fresh(network, optimizer, jnp.zeros((1, 1, 3)))
    batch = jax.tree.map(jnp.asarray, make_batch(image=67))

    @jax.jit
    def loss_at(step):
        at = state_lib.TrainState(**{**vars(state), "step": step})
        fixed = dict(network=network, optimizer=optimizer, rate=lambda s: s * 0.0, data=config.data)
        return step_lib.train_step(at, batch, **fixed)[1]["loss"]

    losses = [float(loss_at(jnp.int32(step))) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("batch_size", [1, 5, 8, 64])
@pytest.mark.parametrize("devices", [one_device, eight_devices])
def test_an_evaluation_counts_every_example_once(batch_size, devices):
    config, network, optimizer, _ = make()
    config.evaluation.batch_size = batch_size
    config.data.mean = "none"
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (21, 8, 8, 3)).astype(np.uint8)
    labels = random.integers(0, 10, 21).astype(np.int32)
    examples = Examples(images, labels, tuple("0123456789"), "random")
    state = fresh(network, optimizer, jnp.zeros((1, 1, 3)))
    result = Evaluator(config, network, devices())(state, examples)

    logits, _ = network.apply(state.params, state.batch_stats, jnp.asarray(images, jnp.float32))
    logits = np.asarray(logits, np.float64)
    ranks = (logits >= logits[np.arange(21), labels][:, None]).sum(1)
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    assert result.examples == 21
    assert result.top1_error == pytest.approx((ranks > 1).mean(), abs=1e-9)
    assert result.top5_error == pytest.approx((ranks > 5).mean(), abs=1e-9)
    assert result.loss == pytest.approx((log_sum - logits[np.arange(21), labels]).mean(), rel=1e-4)


def test_evaluation_batches_are_rounded_up_to_the_devices():
    assert [mesh_lib.round_up(n, eight_devices().shards) for n in (0, 1, 8, 9)] == [8, 8, 8, 16]


def test_evaluation_pads_what_the_network_pads():
    """With crops at the centre of a framed canvas the network sees the images themselves."""
    config, network, optimizer, _ = make()
    config.data.mean = "none"
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    examples = Examples(images, np.zeros(4, np.int32), ("a",) * 10, "")
    batch = next(loaders.create(config.data, examples).evaluation_batches(4))
    np.testing.assert_array_equal(batch["image"], images)
    assert list(itertools.islice(batch["offset"], 1))[0].tolist() == [2, 2]


def test_rows_that_cannot_be_read_take_no_part_in_the_loss():
    config, network, optimizer, rate = make()
    state, batch = fresh(network, optimizer), make_batch()
    step = jax.jit(
        lambda state, batch: step_lib.train_step(
            state, batch, network=network, optimizer=optimizer, rate=rate, data=config.data
        )
    )
    batch["valid"][3] = False
    relabelled = {**batch, "label": batch["label"].copy()}
    relabelled["label"][3] = (relabelled["label"][3] + 1) % 10
    (one, measured), (other, _) = step(state, batch), step(state, relabelled)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    nothing = step(state, {**batch, "valid": np.zeros(16, bool)})
    assert float(nothing[1]["loss"]) == 0 == float(nothing[1]["gradient_norm"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nothing[0].params))
    whole = step(state, make_batch())[1]
    assert float(measured["loss"]) != float(whole["loss"])


@pytest.mark.parametrize("convention", ["as_run", "unit_range", "as_written"])
def test_lighting_shifts_training_images_by_one_colour_each_and_evaluation_by_none(convention):
    from alexnet_resnet.ops import lighting

    config = config_lib.default("resnet_cifar")
    config.data.update(canvas_size=12, image_size=8, lighting=convention, divisor=2.0)
    axes = lighting.shift_axes(convention, *lighting.AUTHOR, 0.1)
    state = state_lib.TrainState(
        step=jnp.int32(0),
        params={},
        batch_stats={},
        opt_state=(),
        key=jax.random.key_data(jax.random.key(0)),
        mean=jnp.full((12, 12, 3), 120.0),
        colours=jnp.asarray(axes, jnp.float32),
    )
    batch = jax.tree.map(jnp.asarray, make_batch())
    plain = np.asarray(step_lib.evaluation_images(config.data, state.mean, batch)) * 2
    lit = np.asarray(step_lib.training_images(config.data, state, batch)) * 2
    shifts = lit * (1.1 if convention == "as_run" else 1) - plain
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-3)
    # Another epoch, another draw; another place in the batch, the same.
    again = np.asarray(step_lib.training_images(config.data, state, jax.tree.map(lambda a: a[::-1], batch))) * 2
    np.testing.assert_allclose(again[::-1], lit, rtol=1e-6, atol=1e-3)
    later = np.asarray(step_lib.training_images(config.data, state, {**batch, "epoch": batch["epoch"] + 1})) * 2
    assert not np.allclose(later, lit, atol=1e-2)
