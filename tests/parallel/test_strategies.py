"""However a network is spread, its steps are the same to rounding, and nothing is exchanged but what must be."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from alexnet_resnet import config as config_lib
from alexnet_resnet import models
from alexnet_resnet.data.examples import Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classification import Evaluator
from alexnet_resnet.ops.columns import Layout
from alexnet_resnet.parallel import collectives, strategies
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib
from alexnet_resnet.training.checkpoints import Checkpoints

SIDE, BATCH, CLASSES = 67, 8, 10


def make_config(name="alexnet", **model):
    config = config_lib.default(name)
    if name == "alexnet":
        config.model.update(width=1 / 16)
        config.data.update(canvas_size=SIDE, image_size=SIDE)
    else:
        config.model.update(depth=8, width=0.5)
    config.model.update(**model)
    config.data.mean = "none"
    config.optimizer.update(learning_rate=0.01, weight_decay=5e-4)
    return config


def spread(name, data, model, network="alexnet"):
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    return Strategy(name, mesh, models.NETWORKS[network])


def make_batch(seed, side):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (BATCH, side, side, 3)).astype(np.uint8),
        "label": random.integers(0, CLASSES, BATCH).astype(np.int32),
        "offset": np.zeros((BATCH, 2), np.int32),
        "flip": random.random(BATCH) < 0.5,
        "valid": np.ones(BATCH, bool),
        "row": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
    }


def parts(config, strategy):
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 100, 10)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    return network, optimizer, step_lib.compile_train_step(network, optimizer, rate, strategy, config.data)


def begin(network, optimizer, strategy, dtype="float32"):
    def create():
        state = state_lib.create(network, optimizer, 0, jnp.zeros((1, 1, 3)), jnp.zeros((3, 3)))
        return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state)

    return jax.jit(create, out_shardings=state_lib.shardings(network, optimizer, strategy))()


@functools.cache
def trained(strategy, dtype="float32", steps=3, name="alexnet", **model):
    """The losses of some steps and the state after them, on the host."""
    with jax.enable_x64(dtype == "float64"):
        config = make_config(name, dtype=dtype, **model)
        network, optimizer, step = parts(config, strategy)
        state, losses = begin(network, optimizer, strategy, dtype), []
        for seed in range(steps):
            state, measured = step(state, mesh_lib.put_batch(make_batch(seed, config.data.image_size), strategy.batch))
            losses.append(float(measured["loss"]))
        assert step._cache_size() == 1, "the step compiles once"
        return losses, jax.device_get(state)


SPREADS = [("data", 2, 2), ("columns", 1, 2), ("columns", 2, 2), ("hybrid", 2, 2), ("fsdp", 2, 2)]


def assert_near(ours, expected, tolerance, least=1e-30):
    """Each array to a share of its largest value, or of `least` where that is larger."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max() if b.size else 0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(scale, least), err_msg=str(path))


@pytest.mark.parametrize("how", SPREADS)
def test_every_strategy_takes_the_steps_of_one_device(how):
    (losses, state), (expected_losses, expected) = (
        trained(spread(*how), "float64"),
        trained(spread("data", 1, 1), "float64"),
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    assert_near((state.params, state.opt_state), (expected.params, expected.opt_state), 1e-10)


@pytest.mark.parametrize("how", SPREADS)
def test_float32_agrees_where_nothing_flips(how):
    """At full width rounding alone flips max-pool and ReLU routes; here it does not."""
    (losses, state), (expected_losses, expected) = (
        trained(spread(*h), steps=2, width=0.25) for h in (how, ("data", 1, 1))
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_near((state.params, state.opt_state), (expected.params, expected.opt_state), 1e-5)


@pytest.mark.parametrize(
    ("name", "how", "fields"),
    [
        # Eight examples: a part of two on each of four devices.
        ("alexnet", ("hybrid", 2, 2), dict(norm="batch", ghost_batch=4)),
        ("resnet_cifar", ("fsdp", 2, 2), dict(ghost_batch=0)),
        ("resnet_cifar", ("fsdp", 4, 1), dict(ghost_batch=4)),
    ],
)
def test_batch_statistics_are_of_the_groups_not_of_what_a_device_holds(name, how, fields):
    (losses, state), (expected_losses, expected) = (
        trained(spread(*h, name), "float64", 2, name=name, **fields) for h in (how, ("data", 1, 1))
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    # AlexNet's biases before a batch normalisation have no gradient but what rounding leaves.
    assert_near((state.params, state.batch_stats), (expected.params, expected.batch_stats), 1e-10, least=1.0)


def layer(collective):
    """The layer that an exchange belongs to, by the innermost name of one."""
    return re.findall(r"\b(conv\d|fc\d|norm\d)\b", collective.scope)[-1:]


@functools.cache
def exchanges(how, width=1 / 16, batch=BATCH, **model):
    """What the forward pass in training, and the gradient of what comes out of it, exchange along `model`."""
    config, strategy = make_config(width=width, **model), spread(*how)
    if width == 1:
        config.data.update(image_size=224, num_classes=1000)
    network = state_lib.from_config(config)
    params, stats = (strategy.place(tree) for tree in network.shapes)
    side = config.data.image_size
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32, sharding=strategy.batch)

    def forward(params, images):
        context = models.Context(train=True, key=jax.random.key(0), examples=jnp.arange(batch))
        return network.over(strategy).apply(params, stats, images, context)[0]

    def gradient(params, images):
        return jax.grad(lambda params: jnp.sum(jnp.square(forward(params, images))))(params)

    programs = (
        jax.jit(forward, out_shardings=strategy.batch),
        jax.jit(gradient, out_shardings=strategy.shardings(params)),
    )
    texts = (program.lower(params, images).compile().as_text() for program in programs)
    forward, both = (collectives.read(text, strategy.mesh) for text in texts)
    return forward, both


@pytest.mark.parametrize("how", [("columns", 1, 2), ("columns", 2, 2)])
def test_columns_exchange_at_four_layers_and_nowhere_else(how):
    forward, both = exchanges(how)
    assert {c.axes for c in forward} == {("model",)}
    found = sorted((*layer(c), c.kind) for c in forward)
    gathers = [(name, "all-gather") for name in ("conv3", "fc6", "fc7")]
    assert found == [gathers[0], gathers[1], gathers[2], ("fc8", "all-reduce")]
    backward = [c for c in both if c.backward and "model" in c.axes]
    assert sorted((*layer(c), c.kind) for c in backward) == [
        (name, "reduce-scatter") for name in ("conv3", "fc6", "fc7")
    ]
    sent = {layer(c)[0]: c.bytes for c in forward}
    returned = {layer(c)[0]: c.bytes for c in backward}
    assert {name: sent[name] for name in returned} == returned


def test_at_full_size_the_columns_exchange_what_the_paper_s_gpus_did():
    forward, both = exchanges(("columns", 1, 2), width=1, batch=128)
    sizes = {"conv3": 11_075_584, "fc6": 2_359_296, "fc7": 1_048_576}
    assert {layer(c)[0]: c.bytes for c in forward} == {**sizes, "fc8": 512_000}
    assert {layer(c)[0]: c.bytes for c in both if c.backward and "model" in c.axes} == sizes


@pytest.mark.parametrize(
    ("how", "count"),
    [(("data", 2, 1), 60_965_224), (("columns", 1, 2), 30_483_112), (("columns", 4, 2), 30_483_112)],
)
def test_parameters_and_momentum_a_device(how, count):
    config, strategy = make_config(width=1.0), spread(*how)
    config.data.update(image_size=224, num_classes=1000)
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    where = state_lib.shardings(network, optimizer, strategy)
    params = network.shapes[0]
    for tree, shardings in ((params, where.params), (jax.eval_shape(optimizer.init, params), where.opt_state)):
        held = [
            int(np.prod(sharding.shard_shape(leaf.shape)))
            for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
            if leaf.ndim
        ]
        assert sum(held) == count


def test_fsdp_splits_all_but_small_arrays():
    config, strategy = make_config(width=1.0), spread("fsdp", 8, 1)
    config.data.update(image_size=224, num_classes=1000)
    params = state_lib.from_config(config).shapes[0]
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(strategy.shardings(params)), strict=True
    ):
        part = np.prod(sharding.shard_shape(leaf.shape))
        assert part == (leaf.size if leaf.size < 1024 else leaf.size // 8), path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"strategy": "column"},
            "parallel.strategy='column': expected one of 'data', 'columns', 'hybrid', 'fsdp'. Did",
        ),
        ({"name": "resnet", "strategy": "columns"}, "parallel.strategy='columns': expected one of 'data', 'fsdp' with"),
        ({"name": "lenet", "strategy": "hybrid"}, "expected one of 'data', 'fsdp' with model.name='lenet'"),
        (
            {"strategy": "hybrid", "columns": 1},
            "expected one of 'data', 'fsdp' with model.name='alexnet' and model.col",
        ),
        ({"strategy": "columns", "model": 4}, "parallel.model=4: expected 2, the columns of the network, or -1"),
        ({"strategy": "columns", "data": 3}, "parallel.data=3: expected 4, or -1"),
        ({"model": 3}, "parallel.model=3: expected a divisor of the number of devices, 8"),
        ({"strategy": "columns", "batch": 6}, "train.batch_size=6: expected a multiple of 4"),
        ({"strategy": "hybrid", "batch": 12}, "train.batch_size=12: expected a multiple of 8"),
        ({"strategy": "fsdp", "model": 2, "batch": 12}, "train.batch_size=12: expected a multiple of 8"),
        (
            {"batch": 48, "ghost_batch": 4},
            "model.ghost_batch=4: expected a divisor or a multiple of 6, the examples of train.batch_size=48 on",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fields, message):
    config = config_lib.default(fields.get("name", "alexnet"))
    config.parallel.update({field: fields[field] for field in ("strategy", "data", "model") if field in fields})
    config.model.update({field: fields[field] for field in ("columns", "ghost_batch") if field in fields})
    config.train.batch_size = fields.get("batch", 32)
    with pytest.raises(UserError) as refused:
        config_lib.check(config)
        strategies.create(config)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("strategy", "shape"), [("data", (8, 1)), ("fsdp", (8, 1)), ("columns", (4, 2)), ("hybrid", (4, 2))]
)
@pytest.mark.parametrize("ghost_batch", [0, 4, 8, 16, 64])
def test_the_mesh_follows_from_the_strategy(strategy, shape, ghost_batch):
    config = config_lib.default("alexnet")
    config.parallel.strategy, config.train.batch_size, config.model.ghost_batch = strategy, 64, ghost_batch
    created = strategies.create(config)
    assert created.mesh.devices.shape == shape and created.name == strategy
    assert str(created) == f"8 cpu device(s) as {shape[0]}x{shape[1]}, {strategy}"


def test_activations_can_only_be_collected_where_they_are_whole():
    network = state_lib.from_config(make_config()).over(spread("columns", 1, 2))
    for context in (models.Context(activations={}), models.Context(layout=Layout())):
        with pytest.raises(ValueError, match="context: expected no layout and no activations under 'columns'"):
            network.apply(*network.shapes, jnp.zeros((2, SIDE, SIDE, 3)), context)


def test_initial_parameters_do_not_depend_on_the_strategy():
    config = make_config()
    bits = []
    for how in (("data", 1, 1), *SPREADS):
        network, optimizer, _ = parts(config, spread(*how))
        bits.append(jax.tree.map(lambda x: np.asarray(x).tobytes(), begin(network, optimizer, spread(*how))))
    assert all(other == bits[0] for other in bits)


def with_momentum(state, network, optimizer, strategy):
    """The state with a momentum that is not zero, and differs from the parameters."""

    def moved(state):
        random = jax.tree.map(lambda x: jnp.sin(x * 1000), state.params)
        return dataclasses.replace(state, opt_state=optimizer.update(random, state.opt_state, state.params)[1])

    return jax.jit(moved, out_shardings=state_lib.shardings(network, optimizer, strategy))(state)


def test_checkpoints_travel_between_strategies(tmp_path):
    """Saved under each strategy and restored under the next, the last under the first."""
    config = make_config()
    ways = [
        spread(*how) for how in (("columns", 2, 2), ("fsdp", 4, 1), ("hybrid", 1, 2), ("data", 2, 2), ("fsdp", 1, 1))
    ]
    for number, (saver, reader) in enumerate(zip(ways, ways[1:] + ways[:1], strict=True)):
        network, optimizer, _ = parts(config, saver)
        state = with_momentum(begin(network, optimizer, saver), network, optimizer, saver)
        checkpoints = Checkpoints(str(tmp_path / str(number)))
        checkpoints.save(3, state)
        checkpoints.close()
        checkpoints = Checkpoints(str(tmp_path / str(number)), read_only=True)
        like = reader.place(state_lib.like(config, network, optimizer, reader.everywhere))
        restored = checkpoints.restore(like, 3)
        checkpoints.close()
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(state), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes() and a.dtype == b.dtype, path
        wanted = state_lib.shardings(network, optimizer, reader)
        placed = jax.tree.map(lambda a, sharding: a.sharding.is_equivalent_to(sharding, a.ndim), restored, wanted)
        assert all(jax.tree.leaves(placed))


@functools.cache
def judged(strategy):
    """What eleven examples come to, in batches of six."""
    config = make_config()
    config.evaluation.batch_size = 6
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (11, SIDE, SIDE, 3)).astype(np.uint8)
    examples = Examples(images, random.integers(0, CLASSES, 11).astype(np.int32), tuple("0123456789"), "random")
    network, optimizer, _ = parts(config, strategy)
    return Evaluator(config, network, strategy)(begin(network, optimizer, strategy), examples)


@pytest.mark.parametrize("how", [("columns", 2, 2), ("hybrid", 2, 2), ("fsdp", 2, 2)])
def test_an_evaluation_is_the_same_under_every_strategy(how):
    results = [judged(spread(*how)), judged(spread("data", 1, 1))]
    assert results[0].examples == 11
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert (results[0].top1_error, results[0].top5_error) == (results[1].top1_error, results[1].top5_error)
