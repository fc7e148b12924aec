"""How long a training may take: from its own pace where it has begun, else from its multiply-adds."""

import dataclasses
import functools
import os
import re
import statistics
import time

from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import summary
from alexnet_resnet.data import sources
from alexnet_resnet.errors import UserError
from alexnet_resnet.training import workdir as workdir_lib
from experiments.study import plan, training
from experiments.study.plan import Run, Settings

# Examples of the training splits as the datasets are published, for where they are not at hand.
EXAMPLES = {"cifar10": 50_000, "mnist": 60_000, "imagenet2012": 1_281_167, "digits": 1437}
# Forward, the gradient of the activations and that of the kernels: three times the forward pass's multiply-adds.
PASSES = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run asks for.

    Attributes:
      steps: of the whole training.
      done: that have been taken.
      multiply_adds: of one image, forward.
      seconds: that the rest may take; None where it cannot be known.
      measured: whether that is from the run's own pace.
    """

    steps: int
    done: int
    multiply_adds: int
    seconds: float | None
    measured: bool


def examples(config: ConfigDict) -> int | None:
    """Training examples; None where the data is not at hand and its size is not known."""
    known = EXAMPLES.get(config.data.dataset)
    if known is None:
        try:
            return len(sources.load(config.data, config.data.train_split))
        except UserError:
            return None
    match = re.fullmatch(r"\w+(?:\[(\d*)(%?):(\d*)(%?)\])?", config.data.train_split)
    if not match or match[1] is None:
        return known
    low, low_percent, high, high_percent = match.groups()
    ends = [
        known * int(value) // 100 if percent else int(value) if value else default
        for value, percent, default in ((low, low_percent, 0), (high, high_percent, known))
    ]
    return max(0, min(ends[1], known) - ends[0])


def multiply_adds(config: ConfigDict) -> int:
    """Of one image through a configuration's network."""
    model, data = dict(config.model), config.data

    def count(**fields):
        shape = (data.image_size, data.image_size, data.channels)
        return sum(row.multiply_adds for row in summary.rows(model | fields, shape, data.num_classes))

    if model["name"] == "resnet_cifar" and model["depth"] > 26:
        # Each further block in each stage costs the same, and 1,202 layers take a minute to trace.
        small, large = count(depth=20), count(depth=26)
        return small + (large - small) * (model["depth"] - 20) // 6
    return count()


@functools.cache
def multiply_adds_per_second() -> float:
    """What this machine's devices do together in a training step, measured on a convolution for half a second."""
    import jax
    import jax.numpy as jnp

    from alexnet_resnet.ops.linear import convolve

    size, channels, images = 16, 64, 64
    x, kernel = jnp.ones((images, size, size, channels)), jnp.ones((3, 3, channels, channels))

    @jax.jit
    def step(x, kernel):
        return jax.grad(lambda x, k: jnp.sum(convolve(x, k, None, 1, ((1, 1), (1, 1))) ** 2), (0, 1))(x, kernel)

    jax.block_until_ready(step(x, kernel))
    begin, times = time.monotonic(), 0
    while time.monotonic() < begin + 0.5:
        jax.block_until_ready(step(x, kernel))
        times += 1
    work = PASSES * images * size * size * 9 * channels * channels * times
    return jax.device_count() * work / (time.monotonic() - begin)


def of(run: Run, settings: Settings) -> Estimate:
    """How long what is left of a run may take. Without its own pace it is right within a factor of two or three."""
    config = plan.resolve(run, settings)
    count, work = examples(config), multiply_adds(config)
    text = config.train.duration
    steps = config_lib.steps("train.duration", text, (count or 0) / config.train.batch_size)
    if training.finished(run, settings):
        return Estimate(steps, steps, work, 0.0, True)
    if not steps:
        return Estimate(0, 0, work, None, False)
    workdir = settings.workdir(run)
    rows = list(workdir_lib.read_metrics(workdir)) if os.path.exists(os.path.join(workdir, "metrics.jsonl")) else []
    paces = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
    done = max([row["step"] for row in rows], default=0)
    images = (steps - done) * config.train.batch_size
    if paces:
        return Estimate(steps, done, work, images / statistics.median(paces), True)
    return Estimate(steps, done, work, images * PASSES * work / multiply_adds_per_second(), False)


def clock(seconds: float) -> str:
    """Seconds as a person says them.

    >>> clock(5400), clock(20), clock(200_000)
    ('1.5 h', '20 s', '2.3 days')
    """
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size or (unit == "h" and seconds >= size):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
