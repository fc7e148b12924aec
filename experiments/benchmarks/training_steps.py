"""Our training step on synthetic images that lie on the device: the networks that are measured, and what they cost."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from alexnet_resnet.analysis import summary
from alexnet_resnet.ops import lighting
from alexnet_resnet.parallel import strategies
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib
from experiments.benchmarks import timing
from experiments.study import plan

# Each with the file of configs/ whose recipe is measured.
NETWORKS = {
    "alexnet": "alexnet.py",
    "resnet18": "resnet.py:18",
    "resnet50": "resnet.py:50",
    "resnet152": "resnet.py:152",
    "vgg16": "vgg.py:16",
    "resnet20": "resnet_cifar.py:20",
    "resnet110": "resnet_cifar.py:110",
}
TITLES = {
    "alexnet": "AlexNet",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet152": "ResNet-152",
    "vgg16": "VGG-16",
    "resnet20": "ResNet-20",
    "resnet110": "ResNet-110",
}
DTYPES = ("float32", "bfloat16")

# Of the schedule; nothing of a step's cost depends on it.
STEPS = 10_000
# So small that hundreds of steps on one batch of noise stay finite: devices are faster with zeros and NaNs.
LEARNING_RATE = 1e-6
# With --quick: a few maps and pixels, and the shallowest net of each family.
QUICK = {
    "alexnet": (dict(width=0.0625), 64),
    "resnet": (dict(width=0.0625, depth=18), 32),
    "vgg": (dict(width=0.0625), 32),
    "resnet_cifar": (dict(width=0.25, depth=8), 8),
}


def config(name: str, dtype: str, batch_size: int, quick: bool = False):
    """The recipe of a network, with a batch and a type of its own.

    Batch statistics are over 32 images where the recipe has it so and the batch falls into such groups, else over all.
    """
    found = plan.full_config(plan.Run("", NETWORKS[name]))
    found.model.dtype = dtype
    found.train.batch_size = batch_size
    found.optimizer.learning_rate = found.optimizer.warmup_learning_rate = LEARNING_RATE
    if found.model.get("ghost_batch", 0) and batch_size % found.model.ghost_batch:
        found.model.ghost_batch = 0
    if quick:
        fields, side = QUICK[found.model.name]
        found.model.update(fields)
        found.data.update(image_size=side, canvas_size=side + 8, num_classes=10)
    return found


def multiply_adds(config) -> int:
    """Of one image's forward pass, as the papers count: of convolutions and matrix products alone."""
    data = config.data
    rows = summary.rows(config.model, (data.image_size, data.image_size, data.channels), data.num_classes)
    return sum(row.multiply_adds for row in rows)


def training_flops(config) -> int:
    """Floating-point operations of a training step for each image: forward and, at twice the cost, backward.

    Two for each multiply-add. The first layer's gradient with respect to the image is counted and not computed.
    """
    return 3 * 2 * multiply_adds(config)


def images_and_labels(config) -> tuple[np.ndarray, np.ndarray]:
    """A batch of noise: uint8 [N, H, W, C] and int32 [N]."""
    random, size, data = np.random.default_rng(0), config.train.batch_size, config.data
    images = random.integers(0, 256, (size, data.image_size, data.image_size, data.channels), np.uint8)
    return images, random.integers(0, data.num_classes, size).astype(np.int32)


def batch(config, strategy: strategies.Strategy) -> dict[str, jax.Array]:
    """A training batch as the loaders yield them, laid out on the devices."""
    images, labels = images_and_labels(config)
    size, room = len(images), config.data.canvas_size - config.data.image_size
    random = np.random.default_rng(1)
    arrays = dict(
        image=images,
        label=labels,
        offset=random.integers(0, room + 1, (size, 2)).astype(np.int32),
        flip=random.integers(0, 2, size).astype(bool),
        valid=np.ones(size, bool),
        row=np.arange(size, dtype=np.int32),
        epoch=np.zeros(size, np.int32),
    )
    return {name: jax.device_put(array, strategy.batch) for name, array in arrays.items()}


def colours(data) -> np.ndarray:
    """What lighting shifts an image's colour by, [C, C], by ImageNet's published statistics; zeros without lighting."""
    if data.lighting == "none":
        return np.zeros((data.channels, data.channels), np.float32)
    known = lighting.STATISTICS[data.lighting_statistics]
    axes = lighting.shift_axes(data.lighting, known.eigenvalues, known.eigenvectors, data.lighting_strength)
    return axes.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a training step over some devices is made of.

    Attributes:
      strategy, network, optimizer, rate, objective: of the training.
      shapes: of its state, laid out.
      start: makes a state.
    """

    strategy: strategies.Strategy
    network: state_lib.Network
    optimizer: optimizer_lib.Optimizer
    rate: Callable
    objective: objective_lib.Objective
    shapes: PyTree
    start: Callable[[], PyTree]


def parts(config, devices: Sequence[jax.Device] | None = None) -> Parts:
    """What a configuration's training step is made of.

    Args:
      config: of a training; its dataset is not looked at.
      devices: by default all.

    Raises:
      UserError: as `strategies.create` and `objective.check`.
    """
    strategy = strategies.create(config, devices)
    objective_lib.check(config, strategy)
    network = state_lib.from_config(config)
    rate = optimizer_lib.schedule(config.optimizer, STEPS, STEPS / 10, config.train.batch_size)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    data = config.data
    side = 1 if data.mean == "none" else data.canvas_size

    def state():
        mean = jnp.full((side, side, data.channels), 127.5)
        return state_lib.create(network, optimizer, config.seed, mean, jnp.asarray(colours(data)))

    return Parts(
        strategy=strategy,
        network=network,
        optimizer=optimizer,
        rate=rate,
        objective=objective_lib.create(config, STEPS),
        shapes=strategy.place(state_lib.like(config, network, optimizer, strategy.everywhere)),
        start=state_lib.jit_once(state, out_shardings=state_lib.shardings(network, optimizer, strategy)),
    )


def lowerable(
    config, devices: Sequence[jax.Device] | None = None
) -> tuple[Callable, PyTree, dict[str, jax.Array], Callable]:
    """Our jitted training step over some devices, and what it is compiled for.

    Returns:
      The step; the shapes of a state, laid out; a batch; and a function without arguments that makes a state.

    Raises:
      UserError: as `parts`.
    """
    of = parts(config, devices)
    step = step_lib.compile_train_step(of.network, of.optimizer, of.rate, of.strategy, config.data, of.objective)
    return step, of.shapes, batch(config, of.strategy), of.start


def create(config, devices: Sequence[jax.Device]) -> tuple[jax.stages.Compiled, float, Callable[[int], dict]]:
    """Our compiled training step over some devices.

    Returns:
      The program, the seconds that tracing and compiling it took, and a contender for `timing.measure`.

    Raises:
      UserError: as `lowerable`.
    """
    step, shapes, images, start = lowerable(config, devices)
    program, seconds = timing.compiled(step, shapes, images)
    # After that: what does not fit is known before the state takes its memory.
    return program, seconds, timing.onwards(program, start(), images)
