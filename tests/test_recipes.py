"""The recipes of `configs/` against the facts in the papers, and each of them taking steps."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import resnet, vgg
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib

CONFIGS = Path(__file__).parents[1] / "configs"
IMAGENET = 1_281_167
CIFAR10 = 50_000


def load(name):
    """The configuration that --config=configs/NAME would give, as in 'resnet:50'."""
    file, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([argument] if argument else []))


# Source of all rows, where none is named: the training sections of the two papers, and the author's own layer files.
PLATEAU = {
    "optimizer.plateau.times": 3,
    "optimizer.factor": 0.1,
    "optimizer.schedule": "steps",
    "data.validation_split": "validation",
}
ALEXNET = {
    "train.batch_size": 128,
    "train.loss": "softmax",
    "train.label_smoothing": 0.0,
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.momentum_order": "rate_inside",
    "optimizer.weight_decay": 0.0005,
    "optimizer.factor": 0.1,
    "optimizer.ema": 0.0,
    "data.canvas_size": 256,
    "data.image_size": 224,
    "data.random_crop": True,
    "data.random_flip": True,
    "data.mean": "per_pixel",
    "data.lighting": "as_run",
    "data.lighting_strength": 0.1,
    "model.init_std": 0.01,
    "model.fc_init_std": 0.01,
    "model.hidden_bias": 1.0,
    "model.dropout": 0.5,
    "model.lrn_k": 2.0,
    "model.lrn_size": 5,
    "model.lrn_alpha": 1e-4,
    "model.lrn_beta": 0.75,
}
AS_RUN = ALEXNET | {
    "model.middle_init_std": 0.03,
    "model.lrn_alpha_over": "mean",
    "model.conv1_order": "activation_last",
    "model.conv2_second_norm": "within_map",
    "data.mean_position": "centre",
    "train.duration": "93 epochs",
    "optimizer.plateau.times": 0,
    "optimizer.decay_all": False,
}
RESNET = {
    "train.batch_size": 256,
    "train.duration": "600000 steps",
    "optimizer.learning_rate": 0.1,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.factor": 0.1,
    "data.view": "scale",
    "data.scale_range": (256, 480),
    "data.image_size": 224,
    "data.random_flip": True,
    "data.mean": "per_pixel",
    "data.lighting": "as_run",
    "model.ghost_batch": 32,
    "model.stride_in": "1x1",
    "train.label_smoothing": 0.0,
}
RESNET_CIFAR = {
    "train.batch_size": 128,
    "train.duration": "64000 steps",
    "optimizer.learning_rate": 0.1,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.boundaries": (32 / 64, 48 / 64),
    "optimizer.factor": 0.1,
    "data.canvas_size": 32 + 2 * 4,
    "data.image_size": 32,
    "data.random_crop": True,
    "data.random_flip": True,
    "data.mean": "per_pixel",
    "data.train_split": "train[:45000]",
    "data.validation_split": "train[45000:]",
    "model.shortcut": "A",
}
WARMUP = {"optimizer.warmup_until_error": 0.8, "optimizer.warmup_learning_rate": 0.01, "optimizer.warmup": "0 steps"}
CUDA_CONVNET = {
    "train.batch_size": 128,
    "optimizer.learning_rate": 0.001,
    "optimizer.momentum": 0.9,
    "optimizer.groups.biases.rate": 0.002 / 0.001,
    "optimizer.groups.biases.weight_decay": 0.0,
}
FACTS = {
    "alexnet:as_written": ALEXNET | PLATEAU | {"optimizer.decay_all": True, "train.duration": "90 epochs"},
    "alexnet:as_run": AS_RUN | {"optimizer.boundaries": (23 / 93, 51 / 93, 78 / 93), "data.lighting_until": 68 / 93},
    "alexnet:as_run+schedule_2012": AS_RUN
    | {"train.duration": "91 epochs", "optimizer.boundaries": (25 / 91, 51 / 91, 79 / 91)}
    | {"data.lighting_until": 67 / 91},
    "alexnet:as_run+one_column_ablation": AS_RUN | {"model.columns": 1, "model.maps": "48-128-192-192-256"},
    "alexnet:as_run+non_overlapping": AS_RUN
    | {"model.pooling": "2x2", "model.conv2_padding": 1, "model.conv5_padding": 0},
    "alexnet:as_run+without_norm": AS_RUN | {"model.norm": "none", "model.conv2_second_norm": "none"},
    "resnet:18": RESNET | PLATEAU | {"model.shortcut": "A", "model.residual": True},
    "resnet:18+plain": RESNET | PLATEAU | {"model.residual": False},
    "resnet:34": RESNET | PLATEAU | {"model.depth": 34, "model.shortcut": "A"},
    "resnet:34+B": RESNET | PLATEAU | {"model.shortcut": "B"},
    "resnet:34+C": RESNET | PLATEAU | {"model.shortcut": "C"},
    "resnet:50": RESNET | PLATEAU | {"model.depth": 50, "model.shortcut": "B"},
    "resnet:50+v1.5": RESNET | PLATEAU | {"model.stride_in": "3x3"},
    "resnet:50+scheduled": RESNET | {"optimizer.plateau.times": 0},
    "resnet:101": RESNET | PLATEAU | {"model.depth": 101},
    "resnet:152": RESNET | PLATEAU | {"model.depth": 152},
    **{
        f"resnet_cifar:{depth}": RESNET_CIFAR | {"model.depth": depth, "optimizer.warmup_until_error": 0.0}
        for depth in (20, 32, 44, 56)
    },
    "resnet_cifar:110": RESNET_CIFAR | WARMUP | {"model.depth": 110},
    "resnet_cifar:1202": RESNET_CIFAR | WARMUP | {"model.depth": 1202},
    "resnet_cifar:56+plain": RESNET_CIFAR | {"model.residual": False},
    "cuda_convnet:18pct": CUDA_CONVNET
    | {"train.duration": "140 epochs", "optimizer.boundaries": (120 / 140, 130 / 140), "optimizer.weight_decay": 0.004}
    | {"optimizer.groups.fc10.weight_decay": 1.0, "data.random_crop": False, "data.random_flip": False},
    "cuda_convnet:11pct": CUDA_CONVNET
    | {"train.duration": "520 epochs", "optimizer.boundaries": (500 / 520, 510 / 520), "optimizer.weight_decay": 0.004}
    | {"optimizer.groups.conv1.weight_decay": 0.0, "optimizer.groups.conv2.weight_decay": 0.0}
    | {"optimizer.groups.fc10.weight_decay": 0.01, "data.image_size": 24, "data.canvas_size": 32}
    | {"data.random_crop": True, "data.random_flip": True},
    "cuda_convnet:11pct+first": CUDA_CONVNET
    | {"train.duration": "350 epochs", "optimizer.boundaries": (), "data.train_split": "train[:40000]"}
    | {"data.validation_split": "train[40000:]", "train.init_from": ""},
    "cuda_convnet:11pct+second": CUDA_CONVNET
    | {"train.duration": "170 epochs", "optimizer.boundaries": (150 / 170, 160 / 170), "data.train_split": "train"}
    | {"data.validation_split": "", "train.init_from": "runs/11pct_first"},
    "cuda_convnet:13pct": CUDA_CONVNET | {"optimizer.weight_decay": 0.004},
    # "Without regularization of any kind", each at a rate of its own that the paper does not name: ours, constant.
    "cuda_convnet:fig1_relu": CUDA_CONVNET
    | {"model.activation": "relu", "optimizer.weight_decay": 0.0, "optimizer.learning_rate": 0.003}
    | {"optimizer.boundaries": ()},
    "cuda_convnet:fig1_tanh": CUDA_CONVNET
    | {"model.activation": "tanh", "optimizer.weight_decay": 0.0, "optimizer.learning_rate": 0.01}
    | {"optimizer.boundaries": ()},
    # Simonyan and Zisserman, arXiv 1409.1556, section 3.1.
    "vgg:16": PLATEAU
    | {"train.batch_size": 256, "train.duration": "74 epochs", "optimizer.learning_rate": 0.01}
    | {"optimizer.momentum": 0.9, "optimizer.weight_decay": 5e-4, "model.dropout": 0.5, "model.depth": 16},
    "vgg:19": PLATEAU | {"model.depth": 19},
    # LeCun et al. 1998, sections II.B and II.C: inputs over a range of 1.275, distances compared with a constant j > 0.
    "lenet:sparse": {"data.image_size": 32, "model.connections": "sparse", "model.output": "rbf", "train.rubbish": 10.0}
    | {"data.divisor": 255 / 1.275, "train.duration": "20 epochs"},
    "lenet:full": {"model.connections": "full", "model.output": "linear", "train.rubbish": 0.0},
}
MODERN = {
    "optimizer.schedule": "cosine",
    "optimizer.warmup_shape": "linear",
    "train.label_smoothing": 0.1,
    "model.dtype": "bfloat16",
    "optimizer.plateau.times": 0,
}
FACTS["lenet:sparse+modern"] = MODERN | {"train.label_smoothing": 0.0, "train.rubbish": 10.0}
FACTS |= {
    f"{name}+modern": MODERN
    for name in ("alexnet:as_written", "resnet:50", "resnet_cifar:20", "cuda_convnet:18pct", "vgg:16", "lenet:full")
}


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_is_what_its_source_says(name):
    config = load(name)
    found = dict(config_lib.flatten(config))
    want = {field: list(value) if isinstance(value, tuple) else value for field, value in FACTS[name].items()}
    assert {field: found.get(field) for field in want} == want
    config_lib.check(config)
    if name.endswith("modern"):
        assert config.optimizer.reference_batch and config.optimizer.ema
        assert config.train.batch_size > config.optimizer.reference_batch


def rates_of(config, examples):
    """The learning rate of each group, and of parameters outside all, as functions of the epoch."""
    per_epoch = examples / config.train.batch_size
    total = config_lib.steps("train.duration", config.train.duration, per_epoch)
    schedule = optimizer_lib.schedule(config.optimizer, total, per_epoch, config.train.batch_size)
    groups = {group.name: group for group in optimizer_lib.config_training.groups(config.optimizer)}

    def rate(epoch, group=None):
        # A moment after the epoch begins, as the boundaries are rounded to steps.
        step = int(epoch * per_epoch) + 2
        return float(schedule(step) if group is None else schedule.of_group(groups[group], step))

    return rate


def test_net_145_is_slowed_and_frozen_as_its_log_has_it():
    """layers/layer-params-145-2010.cfg, from its comments: epsw from 0.01 at epochs 23, 51 and 78; conv1 at 68, 72."""
    rate = rates_of(load("alexnet:as_run"), IMAGENET)
    for epoch, weights, conv1, conv1_bias, biases in (
        (0, 1e-2, 1e-2, 0.002, 0.002),
        (22, 1e-2, 1e-2, 0.002, 0.002),
        (23, 1e-3, 1e-3, 0.002, 0.002),
        (51, 1e-4, 1e-4, 0.002, 0.002),
        (67, 1e-4, 1e-4, 0.002, 0.002),
        (68, 1e-4, 1e-5, 0.002, 0.002),
        (72, 1e-4, 0.0, 0.0, 0.002),
        (78, 1e-5, 0.0, 0.0, 0.002),
        (92, 1e-5, 0.0, 0.0, 0.002),
    ):
        found = [rate(epoch), rate(epoch, "conv1"), rate(epoch, "conv1_bias"), rate(epoch, "biases")]
        np.testing.assert_allclose(found, [weights, conv1, conv1_bias, biases], rtol=1e-5, err_msg=str(epoch))


def test_a_short_run_has_every_event_of_the_long_one():
    config = load("alexnet:as_run")
    config.train.duration = "9.3 epochs"
    rate = rates_of(config, IMAGENET)
    np.testing.assert_allclose(
        [rate(2.2), rate(2.3), rate(5.1), rate(6.8, "conv1"), rate(7.2, "conv1"), rate(7.8)],
        [1e-2, 1e-3, 1e-4, 1e-5, 0, 1e-5],
        rtol=1e-5,
    )
    assert objective_lib.create(config, 1000).lighting_until == round(1000 * 68 / 93)


def test_the_authors_small_nets_have_his_rates():
    rate = rates_of(load("cuda_convnet:18pct"), CIFAR10)
    found = [(rate(epoch), rate(epoch, "biases"), rate(epoch, "fc10")) for epoch in (0, 119, 120, 130)]
    want = [(r, 2 * r, r) for r in (1e-3, 1e-3, 1e-4, 1e-5)]
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_the_residual_nets_fall_at_32k_and_48k():
    config = load("resnet_cifar:20")
    schedule = optimizer_lib.schedule(config.optimizer, 64_000, 45_000 / 128)
    rates = [float(schedule(step)) for step in (31_999, 32_000, 47_999, 48_000)]
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.01, 0.001], rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["alexnet:schedule_2012", "resnet:50+D", "cuda_convnet:18pct+old", "cuda_convnet:18pct+first", "vgg:17", "lenet:x"],
)
def test_a_variant_that_there_is_not_is_one_line(name):
    with pytest.raises(UserError, match="expected"):
        load(name)


def test_one_stage_at_a_time():
    with pytest.raises(UserError) as caught:
        load("cuda_convnet:11pct+first+second")
    assert str(caught.value) == "variant='11pct+first+second': expected one of 'first', 'second'."


# What a recipe decides of a step is not its depth: a block that keeps the size and one that halves it will do.
SHALLOW = {depth: ((1, 1, 0, 0), bottleneck) for depth, (_, bottleneck) in resnet.IMAGENET_STAGES.items()}


def shrunk(name):
    """The recipe with a network and images so small that a step is quick; recipes of one kind become the same."""
    config = load(name)
    file, model, data = name.partition(":")[0], config.model, config.data
    config.train.batch_size, data.num_classes = 4, 10
    if file in ("alexnet", "resnet", "vgg"):
        model.width = 1 / 64
        data.image_size = {"alexnet": 72, "resnet": 16, "vgg": 32}[file]
        data.canvas_size = data.image_size + 8
        data.scale_range = (data.canvas_size, data.canvas_size + 8)
    if file == "resnet":
        model.depth = 18 if model.depth < 50 else 50
    elif file == "resnet_cifar":
        model.width, model.depth, data.image_size, data.canvas_size = 1 / 16, 8, 8, 12
    elif file == "vgg":
        model.depth = 16
    if model.get("ghost_batch"):
        model.ghost_batch = 2
    return config


# Recipes that differ only in when things happen, and how much, are one program. Those that differ only in the network
# are the business of tests/models.
NUMBERS = ("boundaries", "duration", "plateau", "rate", "lighting_until", "weight_decay", "split", "init_from")
NETWORK = (
    "shortcut",
    "stride_in",
    "residual",
    "columns",
    "maps",
    "pooling",
    "padding",
    ".norm",
    "second_norm",
    "init_std",
)
STEPPED = {}
for recipe in FACTS:
    fields = dict(config_lib.flatten(shrunk(recipe)))
    kind = {name: str(value) for name, value in fields.items() if not any(part in name for part in NUMBERS + NETWORK)}
    STEPPED.setdefault(tuple(sorted(kind.items())), recipe)


@pytest.mark.parametrize("name", STEPPED.values())
def test_a_recipe_takes_steps(name, monkeypatch):
    monkeypatch.setattr(resnet, "IMAGENET_STAGES", SHALLOW)
    monkeypatch.setattr(vgg, "STAGES", {16: (1, 1, 1, 1, 1)})
    config = shrunk(name)
    config_lib.check(config)
    network = state_lib.from_config(config)
    optimizer_lib.check_groups(config.optimizer, network.shapes[0])
    rate = optimizer_lib.schedule(config.optimizer, 20, 10, config.train.batch_size)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    devices = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    strategy = Strategy("data", devices)
    side, channels, size = config.data.canvas_size, config.data.channels, config.data.image_size

    def create():
        measured = jnp.full((side, side, channels), 120.0), jnp.zeros((channels, channels))
        return state_lib.create(network, optimizer, 0, *measured)

    state = jax.jit(create, out_shardings=state_lib.shardings(network, optimizer, strategy))()
    before = jax.device_get(state.params)
    step = step_lib.compile_train_step(
        network, optimizer, rate, strategy, config.data, objective_lib.create(config, 20)
    )
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (4, size, size, channels)).astype(np.uint8),
        "label": random.integers(0, 10, 4).astype(np.int32),
        "offset": np.zeros((4, 2), np.int32),
        "flip": np.zeros(4, bool),
        "valid": np.ones(4, bool),
        "row": np.arange(4, dtype=np.int32),
        "epoch": np.zeros(4, np.int32),
    }
    batch = mesh_lib.put_batch(batch, strategy.batch)
    for _ in range(2):
        state, measured = step(state, batch)
    assert all(np.isfinite(float(value)) for value in measured.values()), measured
    assert int(state.step) == 2 and step._cache_size() == 1
    moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True)]
    assert any(moved)
