"""On processors the gradients of convolutions' kernels and of max pooling, ours beside XLA's own.

    python -m experiments.benchmarks.cpu_gradients --out=results/cpu_gradients

`alexnet_resnet.ops.conv_gradient` and `pool_gradient` against `lax`'s own gradient of the same function, at the shapes
of the CIFAR networks, of AlexNet (one of its two columns) and of ResNet's first stage, in float32; and the whole
training steps of ResNet-20 and AlexNet as they are and with XLA's own gradients alone. Ten minutes on two cores.
Elsewhere than on processors it says so, and ends: `accelerator_forms` is for those.

A row is the gradient alone: of a convolution by its kernel, of a pooling by its input. The function's own value and the
gradient of a convolution by its input, which is XLA's in any case, are not in it. Rows with a star are of kernels above
3 x 3, whose gradient the networks leave to XLA; ours is there what they would have otherwise. The ratio is XLA's time
to ours, of medians; CPU is the processor time of all threads, which other programs on the machine disturb less. The C
library keeps freed memory, as the training command has it.

The difference is the largest between both, as a share of the largest value. It is rounding alone: a kernel's gradient
is a sum over all pixels of all images, which both add up in float32 and in another order. Of a step it is that of the
changes that the first step makes to the parameters.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import check_at_least
from alexnet_resnet.ops import linear, pooling
from alexnet_resnet.ops.conv_gradient import applies, kernel_gradient
from alexnet_resnet.ops.pool_gradient import largest, max_pool_compared
from alexnet_resnet.parallel.host import keep_freed_memory
from experiments.benchmarks import bare_step, command, timing

FLAGS = command.own_flags()
BATCH = flags.DEFINE_integer(
    "batch", None, "Images; by default 128 of 32 x 32 pixels, 16 of 224 x 224.", flag_values=FLAGS
)

SMALL, LARGE = 128, 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One gradient.

    Attributes:
      network: where it is taken.
      layer: which it is there.
      batch: images by default.
      side: of the layer's square input.
      channels: of its input.
      outputs: its channels of a convolution; 0 for a max pooling.
      window: side of the kernel, or of the pooling's windows.
      stride: of the kernel or the windows.
      padding: pixels before and after each side.
    """

    network: str
    layer: str
    batch: int
    side: int
    channels: int
    outputs: int
    window: int
    stride: int
    padding: tuple[int, int]

    @property
    def kind(self) -> str:
        return "convolution" if self.outputs else "max pooling"

    @property
    def used(self) -> bool:
        """Whether the networks take ours."""
        x, kernel = (1, self.side, self.side, self.channels), (self.window, self.window, self.channels, self.outputs)
        return not self.outputs or applies(x, kernel, self.stride, (self.padding, self.padding))

    @property
    def title(self) -> str:
        maps = f"{self.side}x{self.side}x{self.channels}" + (f" to {self.outputs}" if self.outputs else "")
        return f"{maps}, {self.window}x{self.window}/{self.stride}"


def _conv(network, layer, batch, side, channels, outputs, window, stride, pad) -> Case:
    return Case(network, layer, batch, side, channels, outputs, window, stride, (pad, pad))


def _pool(network, layer, batch, side, channels) -> Case:
    """A pooling over windows of 3 x 3, two pixels apart, whose output's size is rounded up."""
    return Case(network, layer, batch, side, channels, 0, 3, 2, pooling.ceil_padding(side, 3, 2))


CIFAR, CONVNET, ALEXNET, RESNET = "CIFAR ResNet", "cuda-convnet", "AlexNet column", "ResNet"
CASES = (
    _conv(CIFAR, "conv1", SMALL, 32, 3, 16, 3, 1, 1),
    _conv(CIFAR, "stage 1", SMALL, 32, 16, 16, 3, 1, 1),
    _conv(CIFAR, "into stage 2", SMALL, 32, 16, 32, 3, 2, 1),
    _conv(CIFAR, "stage 2", SMALL, 16, 32, 32, 3, 1, 1),
    _conv(CIFAR, "into stage 3", SMALL, 16, 32, 64, 3, 2, 1),
    _conv(CIFAR, "stage 3", SMALL, 8, 64, 64, 3, 1, 1),
    _conv(CONVNET, "conv2", SMALL, 16, 32, 32, 5, 1, 2),
    Case(ALEXNET, "conv1", LARGE, 224, 3, 48, 11, 4, pooling.ceil_padding(224, 11, 4)),
    _conv(ALEXNET, "conv2", LARGE, 27, 48, 128, 5, 1, 2),
    _conv(ALEXNET, "conv3", LARGE, 13, 256, 192, 3, 1, 1),
    _conv(ALEXNET, "conv4", LARGE, 13, 192, 192, 3, 1, 1),
    _conv(ALEXNET, "conv5", LARGE, 13, 192, 128, 3, 1, 1),
    _conv(RESNET, "conv2 3x3", LARGE, 56, 64, 64, 3, 1, 1),
    _conv(RESNET, "conv2 1x1", LARGE, 56, 64, 256, 1, 1, 0),
    _pool(CONVNET, "pool1", SMALL, 32, 32),
    _pool(CONVNET, "pool2", SMALL, 16, 32),
    _pool(ALEXNET, "pool1", LARGE, 55, 48),
    _pool(ALEXNET, "pool2", LARGE, 27, 128),
    _pool(ALEXNET, "pool5", LARGE, 13, 128),
    Case(RESNET, "pool1", LARGE, 112, 64, 0, 3, 2, (1, 1)),
)


def convolve_xla(x, kernel, stride, padding):
    """`convolve_cpu` with XLA's own gradient."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gradients(case: Case) -> dict[str, Callable]:
    """Ours and XLA's gradient: functions of the input, of what is differentiated by, and of the output's gradient."""
    padding = (case.padding, case.padding)

    def of(function):
        return lambda x, by, g: jax.vjp(lambda by: function(x, by), by)[1](g)[0]

    if case.outputs:
        return {
            "ours": lambda x, kernel, g: kernel_gradient(x, g, kernel.shape[:2], case.stride, padding),
            "XLA": of(lambda x, kernel: convolve_xla(x, kernel, case.stride, padding)),
        }
    # A pooling is differentiated by its input, which stands in both places.
    functions = {"ours": max_pool_compared, "XLA": largest}
    return {n: of(lambda _, x, f=f: f(x, case.window, case.stride, padding)) for n, f in functions.items()}


def operands(case: Case, batch: int) -> tuple[jax.Array, ...]:
    """The input, what is differentiated by, and the output's gradient; the same random numbers at every call."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    x = normal(batch, case.side, case.side, case.channels)
    out = (case.side + sum(case.padding) - case.window) // case.stride + 1
    if not case.outputs:
        return x, x, normal(batch, out, out, case.channels)
    kernel = normal(case.window, case.window, case.channels, case.outputs)
    return x, kernel, normal(batch, out, out, case.outputs)


def processor_seconds(contenders: dict[str, Callable[[int], object]], calls: int) -> dict[str, float]:
    """The processor time of a call of each, of all threads: the median of so many calls, in turns."""
    found = {name: [] for name in contenders}
    for _ in range(calls):
        for name, contender in contenders.items():
            start = time.process_time()
            jax.block_until_ready(contender(1))
            found[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def _row(contenders: dict[str, Callable[[int], object]], calls: int, **facts) -> dict:
    spreads = timing.measure(contenders)
    return dict(
        **facts,
        seconds={name: dataclasses.asdict(spread) for name, spread in spreads.items()},
        processor_seconds=processor_seconds(contenders, calls),
        ratio=spreads["XLA"].median / spreads["ours"].median,
    )


def measure_case(case: Case, batch: int) -> dict:
    """The row of one gradient."""
    arguments = operands(case, batch)
    programs, compile_seconds, found = {}, {}, {}
    for name, gradient in gradients(case).items():
        programs[name], compile_seconds[name] = timing.compiled(jax.jit(gradient), *arguments)
        found[name] = np.asarray(programs[name](*arguments), np.float64)
    return _row(
        {name: timing.repeatedly(program, *arguments) for name, program in programs.items()},
        calls=1 if command.QUICK.value else 11,
        network=case.network,
        layer=case.layer,
        kind=case.kind,
        used=case.used,
        title=case.title,
        batch=batch,
        compile_seconds=compile_seconds,
        difference=float(np.abs(found["ours"] - found["XLA"]).max() / np.abs(found["XLA"]).max()),
    )


@contextlib.contextmanager
def xla_gradients() -> Iterator[None]:
    """What is traced inside takes XLA's own gradients."""
    with (
        mock.patch.object(linear, "convolve_cpu", convolve_xla),
        mock.patch.object(pooling, "max_pool_compared", largest),
    ):
        yield


def measure_step(title: str, config) -> dict:
    """The row of a network's whole training step on random images."""
    bare = bare_step.streamed(config, jax.devices()[:1])
    (batch,) = bare.arguments
    state, programs, compile_seconds, changes = bare.create(), {}, {}, {}
    before = jax.device_get(state.params)
    for name, gradients_of in (("ours", contextlib.nullcontext()), ("XLA", xla_gradients())):
        # A function that was traced before would not be traced again.
        step = bare_step.streamed(config, jax.devices()[:1]).function
        with gradients_of:
            programs[name], compile_seconds[name] = timing.compiled(step, state, batch)
        after = jax.device_get(programs[name](bare.create(), batch)[0].params)
        changes[name] = jax.tree.leaves(jax.tree.map(np.subtract, after, before))
    apart = max(float(np.abs(ours - xla).max()) for ours, xla in zip(changes["ours"], changes["XLA"], strict=True))
    # One state for both, which each maps to the next: AlexNet's is half a gigabyte.
    box = [state]

    def onwards(program):
        def contender(calls):
            for _ in range(calls):
                box[0], measured = program(box[0], batch)
            return measured

        return contender

    return _row(
        {name: onwards(program) for name, program in programs.items()},
        calls=1 if command.QUICK.value else 5,
        network=title,
        layer="",
        kind="training step",
        used=True,
        title=f"{config.data.image_size}x{config.data.image_size}x{config.data.channels}",
        batch=config.train.batch_size,
        compile_seconds=compile_seconds,
        difference=apart / max(float(np.abs(change).max()) for change in changes["XLA"]),
    )


def steps() -> dict[str, config_lib.ConfigDict]:
    """The configurations whose whole steps are measured."""
    resnet = config_lib.default("resnet_cifar")
    resnet.model.depth = 20
    resnet.train.batch_size = BATCH.value or SMALL
    if command.QUICK.value:
        resnet.update(model=dict(depth=8), train=dict(batch_size=2))
        return {"ResNet-8": resnet}
    alexnet = config_lib.default("alexnet")
    alexnet.data.update(image_size=224, canvas_size=224, num_classes=1000)
    alexnet.train.batch_size = BATCH.value or LARGE
    return {"ResNet-20": resnet, "AlexNet": alexnet}


def measure() -> dict:
    """All rows; none where the networks do not use these gradients."""
    if BATCH.value is not None:
        check_at_least("batch", BATCH.value, 1)
    platform = jax.default_backend()
    if platform != "cpu":
        return dict(platform=platform, memory_kept=False, rows=[])
    kept = keep_freed_memory()
    cases = CASES
    if command.QUICK.value:
        # A large one would not be quick.
        cases = [dataclasses.replace(case, batch=2) for case in cases if case.side <= 16]
    rows = []
    for case in cases:
        batch = BATCH.value or case.batch
        command.say(f"{case.kind} {case.title}, {batch} images")
        rows.append(measure_case(case, batch))
    for title, config in steps().items():
        command.say(f"training step of {title}, {config.train.batch_size} images")
        rows.append(measure_step(title, config))
    return dict(platform=platform, memory_kept=kept, rows=rows)


HEADINGS = {
    "convolution": "convolutions, gradient by the kernel",
    "max pooling": "max poolings, gradient by the input",
    "training step": "whole training steps with these gradients",
}


def table(result: dict) -> str:
    """The result as text."""
    if not result["rows"]:
        return f"Nothing to measure: on {result['platform']} the networks use XLA's own gradients."
    head = f"{'':<30}{'':<26}{'images':>6}{'ours ms':>10}{'XLA ms':>10}{'ratio':>8}"
    head += f"{'CPU ms':>10}{'XLA CPU':>10}{'ratio':>8}{'difference':>12}"
    lines = []
    for kind, heading in HEADINGS.items():
        rows = [row for row in result["rows"] if row["kind"] == kind]
        lines += [*([""] if lines else []), heading, head]
        for row in rows:
            title = row["title"] + ("" if row["used"] else "*")
            line = f"{row['network']:<16}{row['layer']:<14}{title:<26}{row['batch']:>6}"
            wall = {name: row["seconds"][name]["median"] for name in ("ours", "XLA")}
            for times in (wall, row["processor_seconds"]):
                line += f"{1e3 * times['ours']:10.2f}{1e3 * times['XLA']:10.2f}{times['XLA'] / times['ours']:7.2f}x"
            lines.append(f"{line}{row['difference']:12.1e}")
        used = [row["ratio"] for row in rows if row["used"]]
        if used:
            lines.append(f"median ratio of those in use {statistics.median(used):.2f}")
    compiled = {name: sum(row["compile_seconds"][name] for row in result["rows"]) for name in ("ours", "XLA")}
    lines += ["", "* not used: the networks leave it to XLA"]
    lines += [f"All compiled in {compiled['ours']:.1f} s, XLA's own in {compiled['XLA']:.1f} s."]
    return "\n".join(lines)


def draw(result: dict, path: str) -> None:
    """How many times as fast as XLA's own each gradient is."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = result["rows"]
    if not rows:
        return
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(HEADINGS, ("C0", "C1", "C2"), strict=True))
    bars = axes.barh(range(len(rows)), [row["ratio"] for row in rows], color=[colours[row["kind"]] for row in rows])
    for bar, row in zip(bars, rows, strict=True):
        bar.set_alpha(1 if row["used"] else 0.35)
    axes.bar_label(bars, [f"{row['ratio']:.2f}" for row in rows], fontsize=8, padding=3)
    axes.axvline(1, color="0.3", lw=0.8)
    names = [
        f"{row['network']} {row['layer']}".strip() + f": {row['title']}, batch {row['batch']}" + "*" * (not row["used"])
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("XLA's time / ours (line: as fast; beyond it ours is faster; *: left to XLA)")
    axes.legend(
        handles=[Patch(color=colours[kind], label=title) for kind, title in HEADINGS.items()],
        loc="upper right",
        fontsize=8,
    )
    where = result["machine"]
    axes.set_title(f"{where['cores']} cores, {where['processor']}, {where['date']}, {where['commit']}", fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    command.main(command.Benchmark("cpu_gradients", measure, table, draw, (FLAGS,)))
