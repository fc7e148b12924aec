"""Starting: the second start of a training reaches its first step several times sooner than the first.

    python -m experiments.benchmarks.startup --out=results/startup

`--networks` and `--depths` choose what is started and compiled. A quarter of an hour on two cores without an
accelerator, most of it the deepest networks' compiler.

Two tables. The first is of the training command on 512 images of noise that lie on the device (the resident loader),
from the start of its process until the first step is handed to the device: without a cache of compiled programs, with
an empty one, and with the one that this start has filled; the median over the rounds, each with a folder of its own.
Beside them when that step is reported, which is one step of computing later or two, and what importing takes, which no
cache saves. Other programs of the same run, the evaluation's say, are compiled later.

The second is of the CIFAR-10 family by depth, written out and scanned (model.scan): tracing and lowering, and XLA's
compiler, without a cache, each in a process of its own and once. What takes longer than --limit says so.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from alexnet_resnet.errors import UserError, check_at_least, check_choice
from experiments.benchmarks import command, processes, startup_case, startup_first

NETWORKS = {
    "digits": ("configs/digits.py", ()),
    "resnet20": ("configs/resnet_cifar.py:20", ()),
    "resnet110": ("configs/resnet_cifar.py:110", ()),
    "resnet110-scan": ("configs/resnet_cifar.py:110", ("--config.model.scan=True",)),
}
STARTS = {"none": "no cache", "empty": "first start", "filled": "second start"}
FORMS = ("written out", "scanned")

FLAGS = command.own_flags()
NAMES = flags.DEFINE_list(
    "networks", ["resnet20", "resnet110"], f"Those started, out of {', '.join(NETWORKS)}.", flag_values=FLAGS
)
DEPTHS = flags.DEFINE_list(
    "depths", ["20", "56", "110", "1202"], "Depths of the CIFAR-10 network that are compiled.", flag_values=FLAGS
)
LIMIT = flags.DEFINE_integer("limit", 600, "Seconds after which a compilation is given up.", flag_values=FLAGS)

REPORTED = "step 1/"


def noise(path: str, count: int) -> None:
    """CIFAR-10's shapes, made here."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = np.arange(count) % 10
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:16], test_labels=labels[:16])


def start(network: str, data: str, workdir: str, cache: str) -> tuple[float, float]:
    """Seconds from the start of the training command until its first step begins, and until it is reported.

    Raises:
      UserError: it ended before.
    """
    config, fields = NETWORKS[network]
    arguments = [f"--config={config}", f"--workdir={workdir}", f"--compilation_cache={cache}", *fields]
    changes = {
        "data.dataset": "npz",
        "data.data_dir": data,
        "data.train_split": "train",
        "data.validation_split": "",
        "data.test_split": "test",
        "data.channels": 3,
        "data.image_size": 32,
        "data.canvas_size": 40,
        "data.loader": "resident",
        "train.batch_size": 8 if command.QUICK.value else 128,
        "train.duration": "2 steps",
        "log.every": "1 step",
        "log.tensorboard": False,
    }
    arguments += [f"--config.{name}={value}" for name, value in changes.items()]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    before, begun, reported = time.perf_counter(), None, None
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", startup_first.__name__, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(startup_first.BEGUN):
            begun = time.perf_counter() - before
        elif reported is None and line.startswith(REPORTED):
            reported = time.perf_counter() - before
    if process.wait() or begun is None or reported is None:
        raise UserError(f"a training ended with status {process.returncode}: {''.join(lines[-5:]).strip()}")
    return begun, reported


def import_seconds() -> float:
    """What a process takes to import what training imports."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import alexnet_resnet.training.loop"], check=True)
    return time.perf_counter() - begun


def starts(networks: Sequence[str], kinds: Sequence[str], rounds: int) -> list[dict]:
    """A row for each network and each state of the cache, out of `STARTS`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "noise.npz")
        noise(data, 512)
        for network in networks:
            seconds = {kind: [] for kind in kinds}
            for number in range(rounds):
                place = os.path.join(folder, f"{network}-{number}")
                for kind, taken in seconds.items():
                    cache = "" if kind == "none" else os.path.join(place, "cache")
                    taken.append(start(network, data, os.path.join(place, kind), cache))
                    command.say(f"round {number + 1}: {network}, {STARTS[kind]}: {taken[-1][0]:.1f} s")
            for kind, taken in seconds.items():
                begun, reported = zip(*taken, strict=True)
                rows.append(
                    dict(
                        network=network,
                        cache=kind,
                        seconds=statistics.median(begun),
                        lowest=min(begun),
                        highest=max(begun),
                        reported=statistics.median(reported),
                        rounds=rounds,
                    )
                )
    return rows


def compilations(depths: Sequence[int], forms: Sequence[str]) -> list[dict]:
    """A row for each depth and form, out of `FORMS`."""
    rows = []
    for depth in depths:
        for form in forms:
            arguments = [f"--depth={depth}", *["--scan"] * (form == "scanned"), *["--quick"] * command.QUICK.value]
            found = processes.run(startup_case.__name__, arguments, LIMIT.value)
            said = found.get("failure") or f"{found['trace_seconds']:.1f} + {found['compile_seconds']:.1f} s"
            command.say(f"{depth} layers, {form}: {said}")
            rows.append(dict(depth=depth, form=form) | found)
    return rows


def measure() -> dict:
    """Both tables, and the requirement on the first."""
    for name in NAMES.value:
        check_choice("networks", name, tuple(NETWORKS))
    for depth in DEPTHS.value:
        if not depth.isdecimal() or int(depth) < 8 or (int(depth) - 2) % 6:
            raise UserError(f"depths={depth!r}: expected numbers of layers 6n + 2, such as 20,110.")
    check_at_least("limit", LIMIT.value, 1)
    quick = command.QUICK.value
    imports = statistics.median(import_seconds() for _ in range(command.rounds()))
    rows = starts(["digits"] if quick else NAMES.value, list(STARTS)[quick:], command.rounds())
    compiled = compilations([8], FORMS[1:]) if quick else compilations([int(d) for d in DEPTHS.value], FORMS)
    return dict(import_seconds=imports, starts=rows, compilations=compiled, requirements=judge(rows))


def judge(rows: list[dict]) -> list[dict]:
    """How many times sooner the second start is at its first step."""
    of = {(row["network"], row["cache"]): row["seconds"] for row in rows}
    found = []
    for network in dict.fromkeys(row["network"] for row in rows):
        ratio = of[network, "empty"] / of[network, "filled"]
        text = f"{network}: the second start at least 3 times sooner at its first step"
        found.append(dict(requirement=text, ratio=ratio, holds=ratio >= 3))
    return found


def table(result: dict) -> str:
    """The result as text."""
    lines = [f"importing takes {result['import_seconds']:.1f} s of each start", ""]
    lines.append(
        f"{'seconds to the first step':<28}"
        + "".join(f"{word:>10}" for word in ("median", "lowest", "highest", "reported"))
    )
    for row in result["starts"]:
        name = f"{row['network']}, {STARTS[row['cache']]}"
        lines.append(
            f"{name:<28}{row['seconds']:10.1f}{row['lowest']:10.1f}{row['highest']:10.1f}{row['reported']:10.1f}"
        )
    lines += ["", f"{'layers':>6}  {'form':<12}{'trace s':>10}{'compile s':>10}{'program':>12}"]
    for row in result["compilations"]:
        line = f"{row['depth']:>6}  {row['form']:<12}"
        if "failure" in row:
            lines.append(f"{line}  {row['failure']}")
        else:
            lines.append(f"{line}{row['trace_seconds']:10.1f}{row['compile_seconds']:10.1f}{row['lines']:>12,}")
    lines += ["", "program: lines of the lowered module", ""]
    for found in result["requirements"]:
        lines.append(f"{found['requirement']}: {found['ratio']:.1f} {'yes' if found['holds'] else 'no'}")
    return "\n".join(lines)


def draw(result: dict, path: str) -> None:
    """Starts as bars, and compilation by depth as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    networks = list(dict.fromkeys(row["network"] for row in result["starts"]))
    for place, (kind, title) in enumerate(STARTS.items()):
        rows = [row for row in result["starts"] if row["cache"] == kind]
        if not rows:
            continue
        heights = [row["seconds"] for row in rows]
        spread = [[r["seconds"] - r["lowest"] for r in rows], [r["highest"] - r["seconds"] for r in rows]]
        places = [number + 0.27 * (place - 1) for number in range(len(rows))]
        left.bar(places, heights, 0.25, yerr=spread, label=title, ecolor="0.3", capsize=2)
    left.axhline(result["import_seconds"], color="0.4", ls="--", lw=0.8, label="importing alone")
    left.set_xticks(range(len(networks)), networks)
    left.set_ylabel("seconds to the first step")
    left.legend(fontsize=8)
    for form, marker in zip(FORMS, "os", strict=True):
        rows = [row for row in result["compilations"] if row["form"] == form and "failure" not in row]
        for field, style in (("compile_seconds", "-"), ("trace_seconds", ":")):
            label = f"{form}, {'compiling' if field.startswith('c') else 'tracing'}"
            colour = f"C{FORMS.index(form)}"
            right.plot(
                [r["depth"] for r in rows], [r[field] for r in rows], style, marker=marker, color=colour, label=label
            )
    right.set(xlabel="layers", ylabel="seconds", xscale="log", yscale="log")
    depths = sorted({row["depth"] for row in result["compilations"]})
    right.set_xticks(depths, map(str, depths))
    right.minorticks_off()
    right.legend(fontsize=8)
    where = result["machine"]
    figure.suptitle(f"{where['devices']}, {where['cores']} cores, {where['date']}, {where['commit']}", fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    command.main(command.Benchmark("startup", measure, table, draw, (FLAGS,)))
