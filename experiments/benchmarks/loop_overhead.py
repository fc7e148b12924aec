"""The whole training loop runs at no less than 0.97 of the bare step's rate, and saves in the background.

    python -m experiments.benchmarks.loop_overhead --out=results/loop_overhead

The bare step is the compiled training step, called again and again on data that lies on the device. The loop is
`alexnet_resnet.training.loop.train` as the training command runs it: input, reading of the measurements, progress,
reports every 50 steps, TensorBoard's events, asynchronous checkpoints; without evaluations. On processors it trains
ResNet-20 with its configuration's batch, 128; on an accelerator ResNet-50 at a batch of 64, or what --network and
--batch_size say. A round of one path takes three minutes on two cores.

Two ways to the data, each beside its own bare step:
  resident  the set lies on the device, and one call takes --steps_per_call steps
  prepared  tf.data reads JPEGs that were prepared as `alexnet_resnet.prepare` does; the bare step always has one batch
The images are made here. Where TensorFlow is not installed, there is no second way, and the table says so.

Trainings are measured in turns, so that whatever else the machine does meets all alike. In each round the loop is held,
by the callback that is told the number of each step, until the device is idle; the bare step then takes --steps steps;
the loop goes on, and once it has its pace it takes as many. The last bare steps come after the last round. The loop's
rate is compared with the bare step's before and after it. A second training tells what a save costs: --window steps
without a save against as many that begin just before one, three times as often, since a save takes seconds at most and
a machine's pace changes from minute to minute; the difference is a share of what 100 steps take.

The callback is called when a step is handed to the device, which the loop does when the step before the last has ended:
at both ends of a measurement alike. Compiling is not in it, nor a process's first save, which compiles too. CPU is the
same by the processor time of all threads, which other programs disturb less; on a processor that is the overhead's
work, on an accelerator it says nothing. Before the bare step is measured, input and saving are let come to rest; so the
loop begins with full buffers, of a few batches.
"""

import contextlib
import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from alexnet_resnet.data import preparation
from alexnet_resnet.errors import UserError, check_at_least
from alexnet_resnet.parallel.host import keep_freed_memory
from alexnet_resnet.training import loop, workdir
from alexnet_resnet.training.checkpoints import Checkpoints
from experiments.benchmarks import bare_step, command, timing, training_steps
from experiments.benchmarks.loop_turns import EVERY, LEAST_RATE, MOST_COST, Turns, Watch, costs, judge, rates
from experiments.study import plan

FLAGS = command.own_flags()
NETWORK = flags.DEFINE_string(
    "network",
    None,
    "A file of configs/ and its argument; by default resnet_cifar.py:20, on accelerators resnet.py:50.",
    flag_values=FLAGS,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "By default the configuration's, on accelerators 64.", flag_values=FLAGS
)
STEPS = flags.DEFINE_integer("steps", 100, "Of each measurement of the loop and of the bare step.", flag_values=FLAGS)
WINDOW = flags.DEFINE_integer(
    "window",
    None,
    "Steps in which a save begins and ends, for what it costs. By default as --steps; on processors 10.",
    flag_values=FLAGS,
)
STEPS_PER_CALL = flags.DEFINE_integer(
    "steps_per_call",
    None,
    "Of the resident path. By default 10, on processors 1: their convolutions are slow in loops.",
    flag_values=FLAGS,
)
PATHS = flags.DEFINE_list("paths", ["resident", "prepared"], "What is measured.", flag_values=FLAGS)

WAYS = {"resident": bare_step.resident, "prepared": bare_step.streamed}
REPORT = 50
# What a watch reads, in its order.
CLOCKS = "wall", "processor"


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _network() -> str:
    """The file of configs/ and its argument."""
    default = (
        "cuda_convnet.py:fig1_relu" if command.QUICK.value else "resnet_cifar.py:20" if _on_cpu() else "resnet.py:50"
    )
    return NETWORK.value or default


def configure(path: str, folder: str, call: int) -> ConfigDict:
    """The configuration of a training on images that are made in a folder, of no length yet.

    Raises:
      UserError: no such network, or a batch that it cannot have.
    """
    try:
        config = plan.full_config(plan.Run("", _network()))
    except UserError as error:
        raise UserError(f"network={_network()!r}: {error}") from error
    batch = 4 if command.QUICK.value else BATCH_SIZE.value or (config.train.batch_size if _on_cpu() else 64)
    if command.QUICK.value:
        config.data.update(image_size=12, canvas_size=12)
    config.train.update(batch_size=batch, steps_per_call=call)
    config.data.update(train_split="train", validation_split="", test_split="", view="canvas", mean_examples=0)
    config.optimizer.plateau.times = 0
    config.optimizer.learning_rate = config.optimizer.warmup_learning_rate = training_steps.LEARNING_RATE
    # A call goes no further than the next report.
    config.log.every = f"{max(1, REPORT // call) * call} steps"
    loader = {"resident": "resident", "prepared": "tf"}[path]
    config.data.update(loader=loader, dataset="npz", data_dir=os.path.join(folder, "images.npz"))
    _make_images(config)
    if path == "prepared":
        # tf.data reads JPEGs of the canvas's size.
        place = os.path.join(folder, "prepared")
        options = preparation.Options(size=config.data.canvas_size, splits=("train",))
        for _ in preparation.prepare(config.data, options, place, 1 if command.QUICK.value else os.cpu_count() or 1):
            pass
        config.data.update(dataset="prepared", data_dir=place)
    return config


def _make_images(config: ConfigDict) -> None:
    """Coarse patterns with some noise, as large as the canvas, in random classes: JPEGs of an ordinary size."""
    side, count = config.data.canvas_size, 64 if command.QUICK.value else 8192 if config.data.canvas_size < 64 else 1024
    random = np.random.default_rng(0)
    coarse = random.integers(20, 236, (count, 8, 8, config.data.channels), np.uint8)
    place = np.arange(side) * 8 // side
    images = coarse[:, place[:, None], place]
    images += random.integers(0, 20, images.shape, np.uint8)
    labels = random.integers(0, config.data.num_classes, count)
    names = np.array([str(number) for number in range(config.data.num_classes)])
    np.savez(config.data.data_dir, train_images=images, train_labels=labels, label_names=names)


def measure_path(path: str, steps: int, window: int, call: int) -> dict:
    """Trains by one way to the data, with the bare step in between."""
    rounds = command.rounds()
    with tempfile.TemporaryDirectory() as folder:
        config = configure(path, folder, call)
        bare = WAYS[path](config)
        program, compile_seconds = timing.compiled(bare.function, bare.create(), *bare.arguments)
        # The first save of a process compiles the digests, and imports.
        first = Checkpoints(os.path.join(folder, "first"))
        first.save(0, bare.create())
        first.close()
        call_bare = timing.onwards(program, bare.create(), *bare.arguments)
        take = lambda count: call_bare(count // bare.steps)  # noqa: E731
        place = os.path.join(folder, "training")
        watch = _train(config, place, Turns(steps, call, rounds, saves=False), take)
        saving = _train(config, os.path.join(folder, "saving"), Turns(window, call, 3 * rounds, saves=True), take)
        rows = [row for row in workdir.read_metrics(place) if "train/input_wait_share" in row]
        waited = sum(row["train/input_wait_share"] * row["train/seconds"] for row in rows)
        measured = sum(row["train/seconds"] for row in rows) - watch.held
    return dict(
        batch_size=config.train.batch_size,
        steps_per_call=call,
        window=window,
        compile_seconds=compile_seconds,
        input_wait_share=waited / measured if measured > 0 else None,
        **{
            clock: dict(rate=rates(_clock(watch, n)), save_cost=costs(_clock(saving, n), window))
            for n, clock in enumerate(CLOCKS)
        },
        seconds={clock: _clock(watch, n) for n, clock in enumerate(CLOCKS)},
        seconds_of_saving={clock: _clock(saving, n) for n, clock in enumerate(CLOCKS)},
    )


def _train(config: ConfigDict, place: str, turns: Turns, bare: Callable[[int], object]) -> Watch:
    """Trains in a folder, as long as the turns are."""
    config.train.duration, config.checkpoint.every = f"{turns.total} steps", f"{turns.save_every} steps"
    config.evaluation.every = f"{2 * turns.total} steps"
    watch = Watch(turns, bare)
    with _on_standard_error():
        loop.train(config, place, watch)
    return watch


def _clock(watch: Watch, number: int) -> dict[str, list[float]]:
    """What a watch took, by one of `CLOCKS`."""
    return {kind: [both[number] for both in taken] for kind, taken in watch.seconds.items()}


@contextlib.contextmanager
def _on_standard_error() -> Iterator[None]:
    """What a training says goes where the progress of a benchmark goes."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def measure() -> dict:
    """All paths."""
    check_at_least("steps", STEPS.value, 1)
    for flag in (BATCH_SIZE, STEPS_PER_CALL, WINDOW):
        if flag.value is not None:
            check_at_least(flag.name, flag.value, 1)
    for path in PATHS.value:
        if path not in WAYS:
            raise UserError(f"paths={path!r}: expected some of {', '.join(map(repr, WAYS))}.")
    steps = 6 if command.QUICK.value else STEPS.value
    calls = 2 if command.QUICK.value else STEPS_PER_CALL.value or (1 if _on_cpu() else 10)
    if steps % calls or steps < 2 * calls:
        raise UserError(f"steps={steps}: expected a multiple of steps_per_call={calls}, twice that at least.")
    window = steps if command.QUICK.value else WINDOW.value or (10 * calls if _on_cpu() else steps)
    if window % calls:
        raise UserError(f"window={window}: expected a multiple of steps_per_call={calls}.")
    keep_freed_memory()
    found, missing = {}, {}
    for path in PATHS.value:
        if path == "prepared" and importlib.util.find_spec("tensorflow") is None:
            missing[path] = "TensorFlow is not installed"
            continue
        command.say(f"{path}:")
        found[path] = measure_path(path, steps, window, calls if path == "resident" else 1)
    return dict(
        network=_network(),
        steps=steps,
        paths=found,
        missing=missing,
        requirements=judge(found),
    )


def table(result: dict) -> str:
    """The result as text."""
    lines = [
        f"{result['network']}, {result['steps']} steps a measurement",
        f"{'':<10}{'batch':>6}{'a call':>8}{'bare ms':>10}{'loop ms':>10}"
        f"{'loop/bare':>11}{'from':>7}{'to':>7}{'CPU':>7}{'a save costs':>14}{'from':>8}{'to':>8}{'CPU':>8}"
        f"{'waits':>8}",
    ]
    for path, row in result["paths"].items():
        times = [1e3 * statistics.median(row["seconds"]["wall"][name]) for name in ("bare", "loop")]
        rate, cost, processor = row["wall"]["rate"], row["wall"]["save_cost"], row["processor"]
        waits = row["input_wait_share"]
        lines.append(
            f"{path:<10}{row['batch_size']:>6}{row['steps_per_call']:>8}{times[0]:10.2f}{times[1]:10.2f}"
            f"{rate['median']:11.3f}{rate['lowest']:7.3f}{rate['highest']:7.3f}{processor['rate']['median']:7.3f}"
            f"{cost['median']:14.1%}{cost['lowest']:8.1%}{cost['highest']:8.1%}"
            f"{processor['save_cost']['median']:8.1%}{'?' if waits is None else f'{waits:.1%}':>8}"
        )
    lines += [f"{path:<10}not measured: {why}" for path, why in result["missing"].items()]
    lines += [
        "",
        f"Times are of a step. A save's cost is a share of the time of {EVERY} steps, by windows of "
        f"{', '.join(str(row['window']) for row in result['paths'].values())} steps.",
        "Waits is the share of the loop's time that it waited for batches.",
        "",
    ]
    for found in result["requirements"]:
        lines.append(f"{found['requirement']}: {found['figure']:.3f} {'yes' if found['holds'] else 'no'}")
    return "\n".join(lines)


def draw(result: dict, path: str) -> None:
    """The rounds of each path, their medians, and what is required."""
    from matplotlib.figure import Figure

    paths = result["paths"]
    if not paths:
        return
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    titles = {
        "rate": ("loop's rate / bare step's rate", LEAST_RATE, "at least"),
        "save_cost": (f"cost of a save every {EVERY} steps (share of the time)", MOST_COST, "below"),
    }
    for axes, (figure_of, (title, limit, word)) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for clock, colour, shift in (("wall", "C0", -0.12), ("processor", "C1", 0.12)):
            spreads = [row[clock][figure_of] for row in paths.values()]
            errors = np.array([[s["median"] - s["lowest"], s["highest"] - s["median"]] for s in spreads]).T
            places = np.arange(len(paths)) + shift
            label = {"wall": "by the clock", "processor": "by processor time"}[clock]
            medians = [s["median"] for s in spreads]
            axes.errorbar(places, medians, errors, fmt="o", color=colour, capsize=4, label=label)
        axes.axhline(limit, color="0.3", lw=1, ls="--", label=f"required: {word} {limit:g}")
        axes.axhline(1 if figure_of == "rate" else 0, color="0.7", lw=0.8)
        axes.set_xticks(range(len(paths)), [f"{name}\nbatch {row['batch_size']}" for name, row in paths.items()])
        axes.set_xlim(-0.6, len(paths) - 0.4)
        axes.set_ylabel(title)
        axes.legend(fontsize=8)
    where = result["machine"]
    about = f"{result['network']}, {where['devices']}, {where['cores']} cores, {where['date']}, {where['commit']}"
    figure.suptitle(f"{about}; median, lowest and highest of the rounds", fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    command.main(command.Benchmark("loop_overhead", measure, table, draw, (FLAGS,)))
