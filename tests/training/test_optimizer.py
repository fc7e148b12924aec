"""The papers' update rule and schedules, against float64 loops over the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet import config_training
from alexnet_resnet.training import optimizer as optimizer_lib


def make(**fields):
    section = config_lib.default("resnet_cifar").optimizer
    section.update(**fields)
    return section


@pytest.mark.parametrize("order", ["rate_inside", "rate_outside"])
def test_the_velocity_is_the_papers_through_changes_of_the_rate(order):
    section = make(momentum_order=order, boundaries=(0.3, 0.6), warmup="2 steps", weight_decay=0.0005)
    rate = optimizer_lib.schedule(section, total_steps=20, steps_per_epoch=5)
    optimizer = optimizer_lib.create(section, rate)
    random = np.random.default_rng(0)
    start = {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4), "scale": random.normal(size=4)}
    gradients = [{name: random.normal(size=value.shape) for name, value in start.items()} for _ in range(20)]

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, updates)

    for name, w in start.items():
        v = np.zeros_like(w)
        for step, gradient in enumerate(gradients):
            epsilon = float(np.float32(0.01 if step < 2 else 0.1 * 0.1 ** ((step >= 6) + (step >= 12))))
            decay = 0.0005 if name == "kernel" else 0.0
            if order == "rate_inside":  # Krizhevsky et al. 2012, section 5
                v = 0.9 * v - decay * epsilon * w - epsilon * gradient[name]
                w = w + v
            else:
                v = 0.9 * v + gradient[name] + decay * w
                w = w - epsilon * v
        np.testing.assert_allclose(params[name], w, rtol=1e-6, atol=1e-7)


def test_the_two_orders_differ_only_after_the_rate_has_changed():
    results = {}
    for order in config_training.MOMENTUM_ORDERS:
        section = make(momentum_order=order, boundaries=(0.5,))
        optimizer = optimizer_lib.create(section, optimizer_lib.schedule(section, 8, 1))
        params, path = {"kernel": jnp.ones(3)}, []
        state = optimizer.init(params)
        for _ in range(8):
            updates, state = optimizer.update({"kernel": jnp.ones(3)}, state, params)
            params = optax.apply_updates(params, updates)
            path.append(float(params["kernel"][0]))
        results[order] = np.array(path)
    inside, outside = results["rate_inside"], results["rate_outside"]
    np.testing.assert_allclose(inside[:4], outside[:4], rtol=1e-6)
    assert abs(inside[4] - outside[4]) > 0.1


def test_all_parameters_decay_when_asked():
    section = make(decay_all=True, weight_decay=0.5, momentum=0.0)
    optimizer = optimizer_lib.create(section, lambda step: 1.0)
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert all((leaf == -0.5).all() for leaf in jax.tree.leaves(updates))


def test_the_papers_schedule_is_three_rates_at_32k_and_48k():
    rate = optimizer_lib.schedule(make(), 64_000, 391)
    for step, expected in [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)]:
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6), step


def test_a_shorter_run_has_the_same_schedule_on_a_smaller_scale():
    long, short = (optimizer_lib.schedule(make(), total, 391) for total in (64_000, 640))
    for step in range(640):
        assert float(short(step)) == float(long(step * 100))


def test_a_linear_warmup_is_a_line_from_the_warmup_rate_to_the_full_rate():
    section = make(warmup="2 epochs", warmup_shape="linear", warmup_learning_rate=0.02, boundaries=())
    rate = optimizer_lib.schedule(section, 100, steps_per_epoch=4)
    rates = [float(rate(step)) for step in range(10)]
    np.testing.assert_allclose(rates, [0.02 + 0.08 * s / 8 for s in range(8)] + [0.1, 0.1], rtol=1e-6)
