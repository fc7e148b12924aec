"""AlexNet in columns on two devices is the same training as on one, bit for bit; other splits differ by rounding alone.

    python -m experiments.alexnet_columns --data_dir=TFDS --out=results

TFDS is where TensorFlow Datasets has prepared imagenet2012; the variable TFDS_DATA_DIR by default. The network, the
images and the optimizer are those of configs/alexnet.py, dropout and lighting included; a field is changed as in
training, such as --config.model.dropout=0. After every step of each strategy the loss and every array of parameters
and momentum are compared with those of the network on one device. Devices that the machine lacks are simulated.

A split changes the order of sums. In float32 at full width that alone sends some maximum of a pool or some ReLU the
other way, and the difference grows from step to step. How much is shown by the control: the network on one device with
every initial weight moved to the next larger number. The two columns add no new order: every sum over both of them has
two terms. Hence the claim, without which the command ends with status 1.

It is a claim about the sums, not about the compiler: XLA may round `momentum * v + u` once (a fused multiply-add) or
twice, and decides that for each program by what stands around it, in the optimizer's update too. So programs for x86
processors are compiled without the instruction. --fma leaves it to XLA, as training does.

The table, the figure and the numbers are written to alexnet_columns.txt, .png and .json (alexnet_columns_fma with
--fma). The trajectory on one device is kept in memory: at full size 0.5 GB a step.

Result (two busy CPU cores, a quarter of an hour; benchmarks/results/alexnet_columns.txt and .png): after each of ten
steps none of 121,930,448 values differs in a bit, nor any loss. The other strategies' losses differ by 4e-06 to 3e-05
after ten steps, the control's by 7e-05; their parameters by 2 to 4 per cent of the largest value of an array that
began at zero (the bias of conv1 or conv3), the control's by 3. With --fma the ten losses of the two columns are still
equal, and the first six steps but for 919 values; then the difference spreads (alexnet_columns_fma.txt).
"""

import dataclasses
import functools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags
from jax.extend.backend import clear_backends
from ml_collections import config_flags

from alexnet_resnet import cli
from alexnet_resnet import config as config_lib
from alexnet_resnet.data import loaders, normalisation, sources
from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.models.layers import COMPUTE_TYPES
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel import strategies
from alexnet_resnet.parallel.host import keep_freed_memory
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib
from experiments.benchmarks import provenance

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNSPLIT, CONTROL, CLAIM = "data:1x1", "control", "columns:1x2"
SPREADS = [CLAIM, "columns:2x2", "data:2x2", "hybrid:1x2", "hybrid:2x2", "fsdp:2x1", "fsdp:2x2"]
WHAT = ("loss", "parameters", "momentum")
# The newest instructions of x86 that have no fused multiply-add.
NO_FMA = "--xla_cpu_max_isa=AVX"

CONFIG = config_flags.DEFINE_config_file(
    "config", os.path.join(ROOT, "configs", "alexnet.py"), "The training; --config.FIELD=VALUE.", lock_config=True
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the images are, as --config.data.data_dir.")
OUT = flags.DEFINE_string("out", None, "The folder for the table, the figure and the numbers; made if it is missing.")
STEPS = flags.DEFINE_integer("steps", 10, "Steps that are compared.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Examples a step.")
WIDTH = flags.DEFINE_float("width", None, "As --config.model.width.")
DTYPE = flags.DEFINE_string("dtype", None, "As --config.model.dtype; under 'float64' parameters are float64 too.")
FMA = flags.DEFINE_bool("fma", False, "XLA may fuse multiplications and additions on processors, as in training.")
STRATEGIES = flags.DEFINE_list("strategies", SPREADS, "What is compared: STRATEGY:DATAxMODEL, the mesh's axes.")

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Moment:
    """A training after some steps: the loss of the last, parameters and momentum by name, all on the host."""

    loss: float
    parameters: Arrays
    momentum: Arrays


def spread(name: str, config) -> tuple[str, int, int]:
    """The strategy and the devices along data and model that 'columns:1x2' names."""
    match = re.fullmatch(r"(\w+):(\d+)x(\d+)", name)
    if not match:
        raise UserError(f"strategies={name!r}: expected STRATEGY:DATAxMODEL, such as {CLAIM!r}.")
    check_choice("strategies", match[1], strategies.supported(config.model))
    return match[1], int(match[2]), int(match[3])


def strategy(name: str, config) -> strategies.Strategy:
    """The strategy that 'columns:1x2' names, on the first devices."""
    how, data, model = spread(name, config)
    config = config.copy_and_resolve_references()
    config.parallel.update(strategy=how, data=data, model=model)
    return strategies.create(config, jax.devices()[: data * model])


def without_fma() -> bool:
    """Has XLA compile without fused multiply-adds, where the processor is one that it can be told so for."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_FMA}".strip()
    return True


def devices(count: int) -> list[jax.Device]:
    """The first devices of this machine, or simulated ones where it has fewer than `count`."""
    if jax.device_count() < count:
        clear_backends()
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    return jax.devices()[:count]


class Training:
    """The first steps of the training that the configuration describes, on images that are read once."""

    def __init__(self, config, steps: int):
        examples = sources.load(config.data, config.data.train_split, "data.train_split")
        loader = loaders.create(config.data, examples)
        self.config, self.steps, self.examples = config, steps, examples
        self.network = state_lib.from_config(config)
        canvases = functools.partial(loader.evaluation_batches, 64, whole_canvas=True)
        self.measured = normalisation.measure(config.data, examples, lambda rows: canvases(rows=rows), say)
        self.batches = list(loader.training_batches(config.train.batch_size, config.seed, 0, steps))
        an_epoch = len(examples) / config.train.batch_size
        total = config_lib.steps("train.duration", config.train.duration, an_epoch)
        self.rate = optimizer_lib.schedule(config.optimizer, total, an_epoch)
        self.optimizer = optimizer_lib.create(config.optimizer, self.rate)

    def begin(self, strategy: strategies.Strategy, moved: bool) -> state_lib.TrainState:
        """The state before the first step; `moved` by one unit in the last place of every weight."""
        wide = self.config.model.dtype == "float64"

        def create():
            state = state_lib.create(self.network, self.optimizer, self.config.seed, *self.measured)
            return jax.tree.map(lambda x: x.astype(np.float64) if wide and x.dtype == np.float32 else x, state)

        def move(path, x):
            return jax.device_put(np.nextafter(x, np.inf), x.sharding) if optimizer_lib.is_weight(path) else x

        state = state_lib.jit_once(create, out_shardings=state_lib.shardings(self.network, self.optimizer, strategy))()
        if moved:
            state = dataclasses.replace(state, params=jax.tree_util.tree_map_with_path(move, state.params))
        return state

    def moments(self, strategy: strategies.Strategy, moved: bool = False) -> Iterator[Moment]:
        """The state before the first step, whose loss is not a number, and after each."""
        step = step_lib.compile_train_step(self.network, self.optimizer, self.rate, strategy, self.config.data)
        state, loss = self.begin(strategy, moved), np.nan
        for batch in [*self.batches, None]:
            yield Moment(loss, by_name(state.params), by_name(state.opt_state))
            if batch is not None:
                state, measured = step(state, mesh_lib.put_batch(batch, strategy.batch))
                loss = float(measured["loss"])


def by_name(tree) -> Arrays:
    """The named arrays of a tree, copied: the next step writes where they lie."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        if names:
            found["/".join(names)] = np.array(leaf)
    return found


def difference(ours: Arrays, expected: Arrays) -> tuple[float, str, int]:
    """The largest difference as a share of its array's largest value; that array; how many values differ in a bit."""
    if ours.keys() != expected.keys():
        raise ValueError(f"expected the arrays {sorted(expected)}, found {sorted(ours)}")
    shares, count = {"": 0.0}, 0
    for name, b in expected.items():
        a = ours[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise ValueError(f"{name}: expected {b.dtype}{b.shape}, found {a.dtype}{a.shape}")
        bits = np.dtype(f"u{b.dtype.itemsize}")
        differing = np.count_nonzero(a.view(bits) != b.view(bits))
        if differing:
            scale = np.abs(b).max()
            shares[name] = float(np.abs(a - b).max() / scale) if scale else np.inf
            count += int(differing)
    # What is not a number is larger than all.
    name = max(shares, key=lambda name: np.nan_to_num(shares[name], nan=np.inf))
    return shares[name], name, count


def compare(name: str, ours: Iterator[Moment], expected: list[Moment]) -> dict:
    """A row of the result: the differences before the first step (but for losses) and after each."""
    row = {what: [] for what in ("losses", *WHAT, "parameters_at", "values_that_differ")}
    began = time.monotonic()
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        parameters, largest_in, p = difference(a.parameters, b.parameters)
        momentum, _, m = difference(a.momentum, b.momentum)
        row["parameters"].append(parameters)
        row["parameters_at"].append(largest_in)
        row["momentum"].append(momentum)
        row["values_that_differ"].append(p + m)
        if step:
            row["losses"].append(a.loss)
            row["loss"].append(abs(a.loss - b.loss) / abs(b.loss))
        lost = f"loss {a.loss:.4f}, " if step else ""
        say(f"{name}: step {step}: {lost}{p + m:,} values differ; {time.monotonic() - began:.0f} s")
    return row


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def judge(result: dict) -> list[dict]:
    """The claims, and whether they hold."""
    rows, values, found = result["rows"], result["values"], []
    bits = f"{result['steps']} losses, {values:,} values of parameters and momentum after each step"
    if CLAIM in rows:
        row = rows[CLAIM]
        same = not any(row["values_that_differ"]) and row["losses"] == result["losses"]
        found.append((f"{title(CLAIM)} is {title(UNSPLIT)}, bit for bit ({bits})", same))
    others = [row for name, row in rows.items() if name != CONTROL]
    found.append(("every strategy begins with the same bits", not any(row["values_that_differ"][0] for row in others)))
    # Else equality would mean nothing.
    seen = all(rows[CONTROL]["values_that_differ"])
    found.append(("a change of one unit in the last place is seen, at every step", seen))
    return [dict(claim=claim, holds=bool(holds)) for claim, holds in found]


def title(name: str) -> str:
    """A row's name for people."""
    return {UNSPLIT: "the network on one device", CONTROL: "control"}.get(name, name.replace(":", " "))


def describe(result: dict) -> str:
    """What was trained, in one line."""
    return (
        f"{result['network']} of {result['parameters']:,} parameters, {result['dtype']}, batches of "
        f"{result['batch_size']} of {result['examples']}, {result['image_size']}x{result['image_size']} pixels"
    )


def table(result: dict) -> str:
    """The result as text."""
    where, rows, lines = result["machine"], result["rows"], []
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines += [f"{where['cores']} cores, {where['processor']}, {where['platform']}"]
    lines += [f"{where['date']}, commit {where['commit']}, {versions}", where["command"], ""]
    rounding = "where XLA puts them" if result["fma"] else f"none (XLA_FLAGS={NO_FMA})"
    lines += [describe(result), f"on {result['devices']}, against one of them; fused multiply-adds: {rounding}", ""]
    heads = {
        "loss": "loss: difference, relative",
        "parameters": "parameters: largest difference, as a share of the largest value of its array",
        "momentum": "momentum: likewise",
    }
    for what, head in heads.items():
        lines += [head, f"{'step':>4}" + "".join(f"{title(name):>13}" for name in rows)]
        for step in range(1, result["steps"] + 1):
            figures = (row[what][step - (what == "loss")] for row in rows.values())
            lines.append(f"{step:4}" + "".join(f"{figure:13.1e}" if figure else f"{'0':>13}" for figure in figures))
        lines.append("")
    lines.append("control: on one device, every initial weight moved to the next larger number. 0 is exactly equal.")
    lines.append("")
    lines += [f"{found['claim']}: {'yes' if found['holds'] else 'no'}" for found in result["claims"]]
    return "\n".join(lines)


def chart(result: dict, path: str) -> None:
    """The difference of losses and of parameters after each step; exact zeros on a line of their own below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = dict(zip(("loss", "parameters"), figure.subplots(1, 2, sharey=True), strict=True))
    colours = dict(columns="C3", data="C0", hybrid="C2", fsdp="C1")
    markers = dict(columns="s", data="D", hybrid="^", fsdp="o")
    rows, steps = result["rows"], result["steps"]
    figures = {(what, name): row[what][-steps:] for what in panels for name, row in rows.items()}
    positive = [value for values in figures.values() for value in values if 0 < value < np.inf]
    lowest, highest = (int(np.floor(np.log10(f(positive)))) for f in (min, max))
    zero = 10.0 ** (lowest - 1.5)
    for (what, name), values in figures.items():
        if name == CONTROL:
            style = dict(color="black", ls=":", lw=2, label="control: one device, weights moved by 1 ulp")
        else:
            how, shape = name.split(":")
            few = np.prod([int(side) for side in shape.split("x")]) <= 2
            style = dict(color=colours[how], marker=markers[how], ls="-" if few else "--", label=f"{how}, {shape}")
            # Lines that lie on each other: the later ones are thinner.
            place = list(rows).index(name) / len(rows)
            style |= dict(lw=4.5 - 4 * place, ms=9 - 6 * place, mfc=colours[how] if few else "white")
        panels[what].plot(range(1, steps + 1), [value or zero for value in values], clip_on=False, **style)
    decades = range(lowest, highest + 2, max(1, (highest - lowest) // 8))
    labels = ["0\nexactly equal", *(f"$10^{{{n}}}$" for n in decades)]
    for what, axes in panels.items():
        after = "of the step" if what == "loss" else "after the step"
        axes.set(yscale="log", ylim=(zero / 3, 10.0 ** (highest + 1)), xlabel="training step", title=f"{what} {after}")
        axes.set_yticks([zero, *(10.0**n for n in decades)], labels)
        axes.minorticks_off()
        axes.axhspan(zero / 3, zero * 3, color="0.92", zorder=0)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels["loss"].set_ylabel("largest relative difference from one device")
    handles = panels["loss"].get_legend_handles_labels()
    title = "strategy, devices (data x model)"
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8, title=title, title_fontsize=8)
    where = result["machine"]
    figure.suptitle(f"{describe(result)}\n{where['processor']}, {where['date']}, commit {where['commit']}", fontsize=9)
    figure.savefig(path, dpi=120)


def settings():
    """The configuration with the flags' values."""
    config = CONFIG.value
    check_at_least("steps", STEPS.value, 1)
    for section, field, flag in (
        ("data", "data_dir", DATA_DIR),
        ("train", "batch_size", BATCH_SIZE),
        ("model", "width", WIDTH),
        ("model", "dtype", DTYPE),
    ):
        if flag.value is not None:
            config[section][field] = flag.value
    check_choice("dtype", config.model.dtype, COMPUTE_TYPES)
    config_lib.check(config)
    return config


def main() -> None:
    out = cli.require(OUT, "results")
    config = settings()
    names = list(dict.fromkeys(STRATEGIES.value))
    shapes = [spread(name, config)[1:] for name in names]
    where = provenance.machine()
    # Before the first device is looked for, which is when XLA reads it.
    fma = FMA.value or not without_fma()
    found = devices(max([1, *(data * model for data, model in shapes)]))
    spreads = {name: strategy(name, config) for name in [UNSPLIT, *names]}
    keep_freed_memory()
    with jax.enable_x64(config.model.dtype == "float64"):
        training = Training(config, STEPS.value)
        try:
            os.makedirs(out, exist_ok=True)
        except OSError as error:
            raise UserError(f"out={out!r}: expected a folder that can be made ({error.strerror}).") from error
        say(f"{training.network.parameter_count:,} parameters; {training.steps} steps on one device")
        reference = list(training.moments(spreads[UNSPLIT]))
        rows = {name: compare(title(name), training.moments(spreads[name]), reference) for name in names}
        control = training.moments(spreads[UNSPLIT], moved=True)
        rows[CONTROL] = compare(title(CONTROL), control, reference)
    first = reference[0]
    result = dict(
        machine=where,
        devices=f"{len(found)} {'simulated ' * (found[0].platform == 'cpu')}devices ({found[0].device_kind})",
        fma=fma or found[0].platform != "cpu",
        network=config.model.name,
        parameters=training.network.parameter_count,
        values=sum(a.size for arrays in (first.parameters, first.momentum) for a in arrays.values()),
        dtype=config.model.dtype,
        batch_size=config.train.batch_size,
        examples=f"{training.examples.name} ({len(training.examples):,} images)",
        image_size=config.data.image_size,
        steps=training.steps,
        losses=[moment.loss for moment in reference[1:]],
        rows=rows,
    )
    result["claims"] = judge(result)
    text, path = table(result), os.path.join(out, "alexnet_columns_fma" if FMA.value else "alexnet_columns")
    print(text)
    for ending, content in (("json", json.dumps(result, indent=1) + "\n"), ("txt", text + "\n")):
        with open(f"{path}.{ending}", "w") as file:
            file.write(content)
    chart(result, f"{path}.png")
    if not all(claim["holds"] for claim in result["claims"]):
        sys.exit(cli.FAILURE)


if __name__ == "__main__":
    cli.run(main)
