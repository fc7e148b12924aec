"""On accelerators, what each form of ours is worth to a whole training step, beside XLA's plain one in the same run.

    python -m experiments.benchmarks.accelerator_forms --out=results/accelerator_forms

AlexNet and ResNet-50 in bfloat16 (`--networks`, `--dtype`, `--batch`), as they are and with one form at a time, then
all, replaced by the plain one. By what an H100 took for such programs, three minutes there, most of it compiling.
  images as they are       the first convolution on 3 channels with its stride, not over blocks of pixels
                           (`alexnet_resnet.ops.space_to_depth`)
  a convolution a column   also where AlexNet's columns see the same maps
  XLA's max pooling        its select-and-scatter for the gradient (`alexnet_resnet.ops.pool_gradient`)
  moments in two passes    batch normalisation's (`alexnet_resnet.ops.batch_norm`)
  one group of examples    batch normalisation's moments over the whole batch, as peers have them, and not over the
                           paper's 32: no form but another computation, to compare with
On processors the networks are computed otherwise: there the command says so, and ends.
"""

import contextlib
import dataclasses
from unittest import mock

import jax
from absl import flags

from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.models import layers
from alexnet_resnet.ops import batch_norm, pool_gradient, pooling, space_to_depth
from experiments.benchmarks import command, timing, training_steps
from experiments.benchmarks.training_steps import DTYPES, TITLES

FLAGS = command.own_flags()
NETWORKS = flags.DEFINE_list(
    "networks", ["alexnet", "resnet50"], f"Networks, out of {', '.join(TITLES)}.", flag_values=FLAGS
)
DTYPE = flags.DEFINE_string("dtype", "bfloat16", f"The type, out of {', '.join(DTYPES)}.", flag_values=FLAGS)
BATCH = flags.DEFINE_integer("batch", 256, "Images of a step.", flag_values=FLAGS)

OURS, ALL, ONE_GROUP = "as it is", "all of these", "one group of examples"
PLAIN = {
    "images as they are": (space_to_depth, "applies", lambda *of: False),
    "a convolution a column": (layers, "is_wide", lambda xs: False),
    "XLA's max pooling": (pooling, "max_pool_compared", pool_gradient.largest),
    "moments in two passes": (batch_norm, "one_pass", batch_norm.two_passes),
}


def has(name: str, form: str) -> bool:
    """Whether a form is of a network at all."""
    columns, norm = name == "alexnet", name.startswith("resnet")
    return {
        "a convolution a column": columns,
        "moments in two passes": norm,
        ONE_GROUP: norm,
        "XLA's max pooling": name not in ("resnet20", "resnet110"),
        "images as they are": name not in ("resnet20", "resnet110", "vgg16"),
    }.get(form, True)


@contextlib.contextmanager
def plainly(*forms: str):
    """Replaces forms by XLA's plain ones."""
    with contextlib.ExitStack() as stack:
        for form in forms:
            stack.enter_context(mock.patch.object(*PLAIN[form]))
        yield


def measure_network(name: str, batch: int) -> list[dict]:
    """A row for each form of a network."""
    own = [form for form in PLAIN if has(name, form)]
    teams = {OURS: ()} | {form: (form,) for form in own} | {ALL: own}
    teams |= {ONE_GROUP: ()} if has(name, ONE_GROUP) else {}
    rows, contenders = [], {}
    for title, forms in teams.items():
        config = training_steps.config(name, DTYPE.value, batch, command.QUICK.value)
        if title == ONE_GROUP:
            config.model.ghost_batch = 0
        command.say(f"{name}: compiling {title}")
        with plainly(*forms):
            program, seconds, contenders[title] = training_steps.create(config, jax.devices()[:1])
        memory = program.memory_analysis()
        planned = memory.temp_size_in_bytes if memory else None
        rows.append(dict(network=name, form=title, compile_seconds=seconds, temporary_bytes=planned))
    spreads = timing.measure(contenders)
    for row in rows:
        row["seconds"] = dataclasses.asdict(spreads[row["form"]])
        row["to_ours"] = spreads[row["form"]].median / spreads[OURS].median
        row["images_per_second"] = batch / spreads[row["form"]].median
    return rows


def measure() -> dict:
    """All rows."""
    for name in NETWORKS.value:
        check_choice("networks", name, tuple(TITLES))
    if not NETWORKS.value:
        raise UserError(f"networks='': expected at least one of {', '.join(map(repr, TITLES))}.")
    check_choice("dtype", DTYPE.value, DTYPES)
    check_at_least("batch", BATCH.value, 1)
    names, batch, platform = NETWORKS.value, BATCH.value, contextlib.nullcontext()
    if command.QUICK.value:
        # Where the figures mean nothing, one will do.
        names, batch = names[:1], min(batch, 4)
    if jax.default_backend() == "cpu":
        if not command.QUICK.value:
            raise UserError(
                "JAX finds no accelerator here: expected a GPU or TPU (or --quick, which measures nothing)."
            )
        platform = mock.patch.object(jax, "default_backend", lambda: "gpu")
    with platform:
        return dict(batch=batch, dtype=DTYPE.value, rows=[r for n in names for r in measure_network(n, batch)])


def table(result: dict) -> str:
    """The result as text."""
    lines = [f"{'':<30}{'ms a step':>10}{'to ours':>9}{'images/s':>11}{'temporary GiB':>15}{'compiled s':>12}"]
    for name in dict.fromkeys(row["network"] for row in result["rows"]):
        lines.append(f"{TITLES[name]}, {result['batch']} images, {result['dtype']}")
        for row in (row for row in result["rows"] if row["network"] == name):
            planned = row["temporary_bytes"]
            lines.append(
                f"  {row['form']:<28}{1e3 * row['seconds']['median']:10.3f}{row['to_ours']:8.2f}x"
                f"{row['images_per_second']:11,.0f}{'?' if planned is None else f'{planned / 2**30:.2f}':>15}"
                f"{row['compile_seconds']:12.1f}"
            )
    return "\n".join([*lines, "", "Times are medians; ratios are to ours, above 1 is slower."])


def draw(result: dict, path: str) -> None:
    """The time of a step in each form, as a multiple of ours."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["network"] for row in result["rows"]))
    figure = Figure(figsize=(5 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = [row for row in result["rows"] if row["network"] == name][::-1]
        bars = axes.barh([row["form"] for row in rows], [row["to_ours"] for row in rows], color="C0")
        axes.bar_label(bars, [f"{1e3 * row['seconds']['median']:.2f} ms" for row in rows], fontsize=7, padding=2)
        axes.axvline(1, color="0.4", lw=0.8, zorder=0)
        axes.margins(x=0.2)
        axes.tick_params(labelsize=8)
        axes.set(title=TITLES[name], xlabel="time of a step (ours = 1)")
    where = result["machine"]
    heading = f"{where['devices']}, {result['batch']} images, {result['dtype']}, {where['date']}, {where['commit']}"
    figure.suptitle(heading, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    command.main(command.Benchmark("accelerator_forms", measure, table, draw, (FLAGS,)))
