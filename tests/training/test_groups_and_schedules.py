"""Groups, schedules, the plateau rule, the warm-up by training error and averages, against plain loops in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet import config_training
from alexnet_resnet.errors import UserError
from alexnet_resnet.training import optimizer as optimizer_lib


def make(**fields):
    section = config_lib.default("resnet_cifar").optimizer
    section.update(fields)
    return section


def parameters(random):
    return {
        "conv1": {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)},
        "conv2": {"kernel": random.normal(size=(4, 4)), "bias": random.normal(size=4)},
        "fc": {"kernel": random.normal(size=(4, 2)), "bias": random.normal(size=2)},
    }


GROUPS = {
    "biases": {"match": "conv*/bias, fc/bias", "rate": 2.0, "weight_decay": 0.0},
    "conv1": {"match": "conv1/kernel", "boundaries": (0.5, 0.75), "rate_after": (0.1, 0.0)},
    "fc": {"match": "fc/kernel", "weight_decay": 1.0, "rate": 0.5, "scheduled": False},
}


@pytest.mark.parametrize("order", config_training.MOMENTUM_ORDERS)
def test_each_group_follows_the_papers_equations_with_its_own_rate_and_decay(order):
    """Krizhevsky et al. 2012, section 5, in float64, through two falls of the rate, a slowing down and a freeze."""
    section = make(momentum_order=order, boundaries=(0.3, 0.6), weight_decay=0.004, groups=GROUPS, learning_rate=0.05)
    rate = optimizer_lib.schedule(section, 20, 5)
    optimizer = optimizer_lib.create(section, rate)
    random = np.random.default_rng(0)
    start = parameters(random)
    gradients = [jax.tree.map(lambda x: random.normal(size=x.shape), start) for _ in range(20)]
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, updates)

    for layer, kind in itertools.product(start, ("kernel", "bias")):
        w = start[layer][kind]
        v = np.zeros_like(w)
        for step, gradient in enumerate(gradients):
            epsilon, decay = 0.05 * 0.1 ** ((step >= 6) + (step >= 12)), 0.004
            if kind == "bias":
                epsilon, decay = 2 * epsilon, 0.0
            elif layer == "fc":
                epsilon, decay = 0.5 * 0.05, 1.0
            elif layer == "conv1":
                epsilon *= 1.0 if step < 10 else 0.1 if step < 15 else 0.0
            g = gradient[layer][kind]
            if order == "rate_inside":
                v = 0.9 * v - decay * epsilon * w - epsilon * g
                w = w + v
            else:
                v = 0.9 * v + g + decay * w
                w = w - epsilon * v
        np.testing.assert_allclose(params[layer][kind], w, rtol=1e-6, atol=1e-7, err_msg=f"{layer}/{kind}")


def test_a_pattern_that_matches_nothing_names_the_layers():
    params = parameters(np.random.default_rng(0))
    section = make(groups={"biases": {"match": "conv*/bias, fc10/bias"}})
    with pytest.raises(UserError) as error:
        optimizer_lib.check_groups(section, params)
    assert "optimizer.groups.biases.match='fc10/bias'" in str(error.value)
    assert "the layers are conv1, conv2, fc." in str(error.value)


def test_a_parameter_in_two_groups_is_refused():
    section = make(groups={"a": {"match": "*/bias"}, "b": {"match": "conv1/*"}})
    with pytest.raises(UserError, match="conv1/bias is in a and in b"):
        optimizer_lib.check_groups(section, parameters(np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"match": ""}, r"optimizer.groups.g.match='': expected parameters"),
        ({"match": "*", "rat": 2.0}, r"optimizer.groups.g.rat: expected one of 'match', 'rate',.* Did you mean 'rate'"),
        ({"match": "*", "rate": -1.0}, r"optimizer.groups.g.rate=-1.0: expected"),
        ({"match": "*", "boundaries": (0.5, 0.2), "rate_after": (1, 1)}, r"groups.g.boundaries=\(0.5, 0.2\): expected"),
        ({"match": "*", "boundaries": (0.5,)}, r"groups.g.rate_after=\(\): expected a factor for each"),
        ({"match": "*", "weight_decay": -1.0}, r"groups.g.weight_decay=-1.0"),
        ("*/bias", r"optimizer.groups.g='\*/bias': expected fields"),
    ],
)
def test_a_group_that_cannot_be_is_one_line(group, message):
    with pytest.raises(UserError, match=message):
        config_training.groups(make(groups={"g": group}))


def test_a_cosine_falls_from_the_end_of_the_warmup_to_zero():
    section = make(schedule="cosine", warmup="10%", warmup_shape="linear", warmup_learning_rate=0.0, learning_rate=0.4)
    rate = optimizer_lib.schedule(section, 100, 7)
    want = [0.04 * step if step < 10 else 0.2 * (1 + np.cos(np.pi * (step - 10) / 90)) for step in range(101)]
    np.testing.assert_allclose([float(rate(step)) for step in range(101)], want, rtol=1e-5, atol=1e-8)


def test_the_rate_follows_the_batch_where_it_says_what_batch_it_is_for():
    section = make(learning_rate=0.1, reference_batch=256)
    assert float(optimizer_lib.schedule(section, 100, 1, batch_size=1024)(0)) == pytest.approx(0.4)
    assert float(optimizer_lib.schedule(make(learning_rate=0.1), 100, 1, batch_size=1024)(0)) == pytest.approx(0.1)


def with_plateau(**fields):
    section = make(boundaries=(), learning_rate=1.0)
    section.plateau.update(fields)
    return section


@pytest.mark.parametrize("boundaries", [(), (0.4, 0.8)])
@pytest.mark.parametrize("seed", range(4))
def test_the_plateau_rule_is_that_of_a_plain_loop(seed, boundaries):
    section = with_plateau(times=2, patience=3, least=0.01)
    section.boundaries = boundaries
    rate = optimizer_lib.schedule(section, 40, 1)
    optimizer = optimizer_lib.create(section, rate)
    random = np.random.default_rng(seed)
    # Falls, stands still with noise, falls again.
    errors = np.float32(0.9 - 0.2 * (np.arange(1, 41) // 13) + 0.01 * random.normal(size=40))
    state = optimizer.init({"kernel": jnp.zeros(2)})
    rates, cut_at = [], []
    for step, error in enumerate(errors, start=1):
        state, cut = optimizer_lib.after_evaluation(rate, state, step, float(error))
        rates.append(float(optimizer_lib.rate_now(rate, jnp.int32(step), state)))
        cut_at += [step] if cut else []

    best, waited, cuts, want, want_cut = np.inf, 0, 0, [], []
    for step, error in enumerate(errors, start=1):
        passed = sum(step >= round(share * 40) for share in boundaries)
        if passed > cuts:
            cuts, waited = passed, 0
        if error < np.float32(best) - np.float32(0.01):
            best, waited = error, 0
        else:
            waited += 1
        if waited >= 3 and cuts < 2:
            cuts, waited = cuts + 1, 0
            want_cut.append(step)
        want.append(0.1**cuts)
    assert cut_at == want_cut and (want_cut or boundaries)
    np.testing.assert_allclose(rates, want, rtol=1e-5)


def test_the_velocity_goes_through_a_plateau_as_the_equations_say():
    section = with_plateau(times=1, patience=1)
    section.update(learning_rate=0.1, weight_decay=0.01)
    rate = optimizer_lib.schedule(section, 10, 1)
    optimizer = optimizer_lib.create(section, rate)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    update = jax.jit(optimizer.update, in_shardings=device, out_shardings=device)
    params = jax.device_put({"kernel": jnp.ones(2)}, device)
    state, w, v, epsilon = jax.device_put(optimizer.init(params), device), 1.0, 0.0, 0.1
    for step, error in enumerate((0.9, 0.8, 0.8, 0.7), start=1):
        updates, state = update({"kernel": np.full(2, 0.3, np.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        v = 0.9 * v - 0.01 * epsilon * w - epsilon * 0.3
        w += v
        state, cut = optimizer_lib.after_evaluation(rate, state, step, error)
        assert cut == (step == 3)
        epsilon = 0.01 if step >= 3 else 0.1
    np.testing.assert_allclose(params["kernel"], w, rtol=1e-6)
    assert update._cache_size() == 1, "the rate is an array: nothing is compiled again"


def test_the_warmup_ends_when_the_training_error_is_below():
    section = make(warmup_until_error=0.8, warmup_learning_rate=0.01, boundaries=(0.9,))
    rate = optimizer_lib.schedule(section, 100, 1)
    optimizer = optimizer_lib.create(section, rate)
    errors = np.clip(0.95 - 0.004 * np.arange(90) + 0.03 * np.random.default_rng(0).normal(size=90), 0, 1)
    params = {"kernel": jnp.zeros(2)}
    state, rates = optimizer.init(params), []
    update = jax.jit(lambda state, error: optimizer.update(params, state, params, error)[1])
    for step, error in enumerate(errors):
        rates.append(float(optimizer_lib.rate_now(rate, jnp.int32(step), state)))
        state = update(state, jnp.float32(error))

    average, warming, want = 1.0, True, []
    for step, error in enumerate(errors):
        want.append(0.01 if warming else 0.1 if step < 90 else 0.01)
        average = 0.9 * average + 0.1 * error
        warming = warming and average >= 0.8
    np.testing.assert_allclose(rates, want, rtol=1e-5)
    assert 10 < want.index(0.1) < 80


def test_the_average_is_that_of_a_plain_loop():
    random = np.random.default_rng(0)
    values = random.normal(size=(40, 3))
    with jax.enable_x64(True):
        found = {"a": jnp.asarray(values[0])}
        for step, value in enumerate(values[1:]):
            found = optimizer_lib.average(0.9, found, {"a": jnp.asarray(value)}, jnp.int32(step))
    want = values[0]
    for step, value in enumerate(values[1:]):
        keep = min(0.9, (1 + step) / (10 + step))
        want = keep * want + (1 - keep) * value
    np.testing.assert_allclose(found["a"], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.schedule": "linear"}, "optimizer.schedule='linear': expected one of 'steps', 'cosine'"),
        ({"optimizer.ema": 1.0}, "optimizer.ema=1.0: expected a number from 0 to below 1"),
        ({"optimizer.reference_batch": -1}, "optimizer.reference_batch=-1"),
        ({"optimizer.warmup_until_error": 2.0}, "optimizer.warmup_until_error=2.0"),
        (
            {"optimizer.warmup_until_error": 0.8, "optimizer.warmup": "5 steps"},
            "optimizer.warmup='5 steps': expected '0 steps' with optimizer.warmup_until_error=0.8",
        ),
        ({"optimizer.warmup": "101%"}, "optimizer.warmup='101%': expected a length such as .* or '5%'"),
        ({"train.duration": "5%"}, "train.duration='5%': expected a length such as '500 steps' or '2 epochs'"),
        ({"optimizer.plateau.patience": 0}, "optimizer.plateau.patience=0"),
        ({"optimizer.plateau.times": 1}, "optimizer.plateau.times=1: expected 0 with data.validation_split=''"),
        (
            {"optimizer.plateau.times": 1, "data.validation_split": "v", "optimizer.schedule": "cosine"},
            "optimizer.plateau.times=1: expected 0 with optimizer.schedule='cosine'",
        ),
        ({"train.loss": "hinge"}, "train.loss='hinge': expected one of 'softmax', 'binary', 'binary_probabilities'"),
        ({"train.label_smoothing": 1.0}, "train.label_smoothing=1.0"),
        ({"train.accumulate": 3}, "train.accumulate=3: expected a divisor of train.batch_size=128"),
        ({"train.accumulate": 0}, "train.accumulate=0"),
        ({"data.lighting_until": 1.5}, "data.lighting_until=1.5: expected a share of the duration"),
        ({"optimizer.groups": {"g": {"match": ""}}}, "optimizer.groups.g.match=''"),
    ],
)
def test_fields_of_the_recipe_out_of_range_are_refused(changes, message):
    config = config_lib.default("resnet_cifar")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        config_lib.check(config)
