"""Training steps on this device and on JAX's CPU backend: what `numerics` compares besides single operations."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_resnet.data import arrays
from alexnet_resnet.data.arrays import Resident
from alexnet_resnet.data.examples import Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.ops.dropout import dropout
from alexnet_resnet.parallel import strategies
from alexnet_resnet.training import feed
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from experiments.benchmarks.numerics_operations import compare
from experiments.study import plan

# By precision, of the first loss, of the parameters' change and of the last loss.
TOLERANCES = {"highest": (1e-5, 5e-3, 5e-3), "default": (5e-3, 1e-1, 5e-2), "bfloat16": (3e-2, 3e-1, 1e-1)}
BACKEND = "JAX on the CPU"
COUNT = 5  # steps
RATE = 0.0005

# The networks, as configuration and fields; the standard deviation of noise that is added to all parameters, since
# a last layer that begins at zero would hide all others from the first steps; the precisions that are looked at.
NARROW = {"model.width": 0.25, "data.image_size": 96, "data.canvas_size": 104, "data.num_classes": 10}
NETWORKS = {
    "ResNet-20": ("resnet_cifar.py:20", {}, 0.01, ("highest", "default", "bfloat16")),
    "AlexNet, narrow": ("alexnet.py", NARROW, 0.03, ("highest", "default")),
    "the author's 11pct": ("cuda_convnet.py:11pct", {}, 0.01, ("highest",)),
}
# Those of --quick.
SMALL = {"model.width": 0.25, "data.image_size": 16, "data.canvas_size": 20}
QUICK = {"ResNet-8, narrow": ("resnet_cifar.py:8", SMALL, 0.01, ("bfloat16",))}


def comparisons(quick: bool) -> Iterator[dict]:
    """The rows of all networks, and of what the device draws.

    Args:
      quick: the smallest networks only.

    Raises:
      UserError: JAX has no CPU backend here.
    """
    device = jax.devices()[0]
    try:
        processor = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise UserError("JAX_PLATFORMS: expected 'cpu' among them, or none, to compare with.") from error
    yield from draws(device, processor)
    for name, (variant, fields, noise, precisions) in (QUICK if quick else NETWORKS).items():
        reference = course(variant, fields, noise, "highest", processor)
        for precision in precisions:
            found = course(variant, fields, noise, precision, device)
            for part, one, other, tolerance in zip(
                ("first loss", "first step", f"loss of step {COUNT}"),
                found,
                reference,
                TOLERANCES[precision],
                strict=True,
            ):
                yield compare(f"{name}, {part}", precision, one, other, tolerance, BACKEND)


def course(
    variant: str, fields: dict, noise: float, precision: str, device: jax.Device
) -> tuple[float, np.ndarray, float]:
    """Steps on one device, on noise: the first loss, what the first step changes of the parameters, the last loss."""
    # XLA's convolutions inside a loop, which several steps in a call are, are ten times slower on a processor.
    most = 1 if device.platform == "cpu" else COUNT
    changes = dict(fields, **{"train.batch_size": 32, "train.steps_per_call": most, "data.loader": "resident"})
    if precision == "bfloat16":
        changes["model.dtype"] = "bfloat16"
    config = plan.full_config(plan.Run("", variant, changes))
    config.optimizer.learning_rate = RATE
    strategy = strategies.create(config, [device])
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, 1000, 10)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    objective = objective_lib.create(config, 1000)
    random, side, channels = np.random.default_rng(0), config.data.image_size, config.data.channels
    images = random.integers(0, 256, (64, side, side, channels)).astype(np.uint8)
    labels = random.integers(0, config.data.num_classes, 64).astype(np.int32)
    examples = Examples(images, labels, tuple(map(str, range(config.data.num_classes))), "noise")
    mean = np.full((config.data.canvas_size, config.data.canvas_size, channels), 127.5, np.float32)
    colours = np.diag(np.linspace(1, 10, channels)).astype(np.float32)
    with jax.default_matmul_precision("default" if precision == "default" else "highest"):
        begin = jax.jit(
            lambda *measured: state_lib.create(network, optimizer, 0, *measured),
            out_shardings=state_lib.shardings(network, optimizer, strategy),
        )
        state = begin(mean, colours)
        noisy = jax.tree.map(lambda leaf: leaf + random.normal(0, noise, leaf.shape).astype(leaf.dtype), state.params)
        state = dataclasses.replace(state, params=jax.device_put(noisy, strategy.shardings(noisy)))
        before = _flat(state.params)
        advance = feed.Resident(
            config, network, optimizer, rate, objective, strategy, Resident(config.data, examples), 1000
        )
        state, first, _ = advance(state, 0, 1)
        change = _flat(state.params) - before
        number = 1
        while number < COUNT:
            count = min(most, COUNT - number)
            state, measured, _ = advance(state, number, count)
            number += count
    return float(first["loss"][0]), change, float(measured["loss"][count - 1])


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def draws(device: jax.Device, processor: jax.Device) -> Iterator[dict]:
    """What is drawn is the same everywhere: dropout's masks, and the order, crops and flips of the images."""

    def masks():
        return dropout(jnp.ones((16, 100)), 0.5, jax.random.key(0), jnp.arange(16, dtype=jnp.int32), 1)

    found = []
    for one in (device, processor):
        with jax.default_device(one):
            found.append(np.asarray(jax.jit(masks)()))
    yield compare("dropout's masks", "equal", *found, 0.0, BACKEND)
    config = plan.full_config(plan.Run("", "resnet_cifar.py:20"))
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (50, 32, 32, 3)).astype(np.uint8)
    examples = Examples(images, np.arange(50, dtype=np.int32) % 10, tuple("0123456789"), "noise")
    loader = Resident(config.data, examples)
    host = next(iter(loader.training_batches(32, 0)))
    on_device = loader.on_device(jax.sharding.SingleDeviceSharding(device))
    batch = jax.jit(lambda held: arrays.batch(config.data, held, 0, jnp.int32(0), jnp.int32(0), 32))(on_device)
    for part, name in (("image", "crops"), ("label", "labels"), ("flip", "flips")):
        yield compare(f"a batch made on the device, {name}", "equal", batch[part], host[part], 0.0, "NumPy")
