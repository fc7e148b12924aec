"""Training steps: images a second and the share of the device's peak, beside PyTorch and plain Flax in the same run.

    python -m experiments.benchmarks.train_throughput --out=results/train_throughput

`--networks`, `--dtypes`, `--batch_sizes` and `--peers` choose what is measured; the table is printed and written to
train_throughput.txt and .json, and drawn as .png. By rough estimate the whole takes an hour on two quiet cores, of
which float32 is 20 minutes, and an hour and a half on one GPU, most of it compiling; `--batch_sizes=256` is a third of
that.

A step is forward, backward and optimizer on a batch that lies on the device. Ours is the step of the training command
with the recipe of configs/, on bytes: mean, lighting, dropout and all that is reported of a step are part of it. Peers
start from bytes too, which they subtract a mean from and divide; they have momentum and weight decay, and batch
statistics over the whole batch, where ImageNet's recipes have them over 32 images.
  torch  the same networks in PyTorch: channels last, autocast for bfloat16, fused SGD and torch.compile on a GPU
         (--torch_compile tries it on a processor). Left out with a word where torch is not installed.
  linen  ResNet-50 and ResNet-20 in Flax Linen, as Flax's ImageNet example trains them.
  nnx    ResNet-20 with the stock layers of Flax NNX.
All contenders of a network, a type and a batch size are measured in turns, in one process for each network and type.
The ratio is ours by the peer's, both on one device. With several devices ours is measured on all of them too, AlexNet
by every strategy; the batch is that of all devices together.

Compiling is not part of the rates. It has a column, without any cache: for JAX tracing and compiling, for torch what
the first step took beyond another. The share of the peak is of the operations of a step's matrix products and
convolutions (3 x 2 for each multiply-add of a forward pass) against the maker's figure for the device or, where this
module knows none, a large matrix product. Which one is said below the table.
"""

import json
import subprocess
import sys

from absl import flags

from alexnet_resnet.errors import UserError, check_choice
from experiments.benchmarks import command, throughput_team, timing
from experiments.benchmarks.throughput_team import LOST, OURS
from experiments.benchmarks.training_steps import DTYPES, TITLES

FLAGS = command.own_flags()
NETWORKS = flags.DEFINE_list("networks", list(TITLES), f"Networks, out of {', '.join(TITLES)}.", flag_values=FLAGS)
TYPES = flags.DEFINE_list(
    "dtypes", list(DTYPES), f"Types that they compute in, out of {', '.join(DTYPES)}.", flag_values=FLAGS
)

PASSED_ON = ("batch_sizes", "peers", "torch_compile", "quick", "rounds", "seconds")
COLOURS = {OURS: "C0", "torch": "C1", "linen": "C2", "nnx": "C3"}


def measure() -> dict:
    """All rows, and the peak that they are shares of."""
    sizes = throughput_team.numbers(throughput_team.BATCH_SIZES.value)
    for field, values, known in (
        ("networks", NETWORKS.value, tuple(TITLES)),
        ("dtypes", TYPES.value, DTYPES),
        ("peers", throughput_team.PEERS.value, tuple(throughput_team.PEERS_OF)),
    ):
        for value in values:
            check_choice(field, value, known)
        if not values and field != "peers":
            raise UserError(f"{field}='': expected at least one of {', '.join(map(repr, known))}.")
    rows = []
    for dtype in TYPES.value:
        for network in NETWORKS.value:
            if command.QUICK.value:
                # Where the figures mean nothing, JAX is started once.
                found = throughput_team.measure(network, dtype, sizes, throughput_team.PEERS.value)
                rows += latest(found)
            else:
                rows += _in_a_process(network, dtype)
    # Last: a TPU is one process's, and until here it was the others'.
    peaks = {dtype: timing.peak(dtype) for dtype in TYPES.value}
    judge(rows, {dtype: figure for dtype, (figure, _) in peaks.items()})
    return dict(
        rows=rows, peaks={dtype: dict(flops=figure, source=source) for dtype, (figure, source) in peaks.items()}
    )


def latest(rows) -> list[dict]:
    """The last row of each contender at each batch size, in the order of the first."""
    found = {}
    for row in rows:
        found[row["batch_size"], row["contender"]] = row
    return list(found.values())


def _in_a_process(network: str, dtype: str) -> list[dict]:
    own = [_flag(name).serialize() for name in PASSED_ON]
    arguments = [f"--network={network}", f"--dtype={dtype}", *filter(None, own)]
    team = [sys.executable, "-m", throughput_team.__name__, *arguments]
    done = subprocess.run(team, stdout=subprocess.PIPE, text=True)
    return finished(done.stdout, done.returncode)


def _flag(name: str) -> flags.Flag:
    return (throughput_team.FLAGS if name in throughput_team.FLAGS else command.FLAGS)[name]


def finished(printed: str, status: int) -> list[dict]:
    """The rows that a process printed; those that it was ended before say so.

    Raises:
      UserError: it came to nothing.
    """
    rows = latest(json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    if not rows:
        raise UserError(f"a process that measures ended with status {status} before it began; see above.")
    for row in rows:
        if row["failure"] == LOST:
            killed = status == -9
            row["failure"] = "out of memory: the system ended the process" if killed else f"{LOST} (status {status})"
    return rows


def judge(rows: list[dict], peaks: dict[str, float]) -> None:
    """Adds to each row its share of the peak and, for a peer, ours as a multiple of its rate."""
    rates = {_place(row): row["images_per_second"]["median"] for row in rows if not row["failure"]}
    for row in rows:
        rate = rates.get(_place(row))
        if rate is None:
            continue
        row["share_of_peak"] = rate * row["flops_per_image"] / (peaks[row["dtype"]] * row["devices"])
        ours = rates.get((*_place(row)[:3], OURS))
        if not row["contender"].startswith(OURS) and ours:
            row["ours_to_peer"] = ours / rate


def _place(row: dict) -> tuple:
    return row["network"], row["dtype"], row["batch_size"], row["contender"]


def table(result: dict) -> str:
    """The result as text."""
    head = ("images/s", "lowest", "highest", "of peak", "ours/peer", "compile s")
    lines = [f"{'network':<12}{'type':<10}{'batch':>5}  {'contender':<16}" + "".join(f"{word:>10}" for word in head)]
    before = None
    for row in result["rows"]:
        group = row["network"], row["dtype"], row["batch_size"]
        first = f"{TITLES[row['network']]:<12}{row['dtype']:<10}{row['batch_size']:>5}"
        lines.append(f"{first if group != before else '':<27}  {_title(row):<16}{_figures(row)}")
        before = group
    lines.append("")
    for dtype, peak in result["peaks"].items():
        lines.append(f"peak, {dtype}: {peak['flops'] / 1e12:,.4g} Tflop/s a device, {peak['source']}")
    return "\n".join(lines)


def _title(row: dict) -> str:
    return f"{row['contender']} x{row['devices']}" if row["devices"] > 1 else row["contender"]


def _figures(row: dict) -> str:
    if row["failure"]:
        return f"  {row['failure']}"
    rate = [f"{_short(row['images_per_second'][field]):>10}" for field in ("median", "lowest", "highest")]
    ratio = f"{row['ours_to_peer']:9.2f}x" if "ours_to_peer" in row else f"{'':>10}"
    return f"{''.join(rate)}{row['share_of_peak']:10.1%}{ratio}{row['compile_seconds']:10.1f}"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def draw(result: dict, path: str) -> None:
    """A panel for each type: a bar for each contender of each network, at the largest batch that ours has a figure for.

    Where nothing of ours has one, the largest batch is shown.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    dtypes = list(result["peaks"])
    figure = Figure(figsize=(9, 0.6 + 3.9 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), 1, squeeze=False)[:, 0]
    colours = dict(COLOURS)
    for axes, dtype in zip(panels, dtypes, strict=True):
        rows = [row for row in result["rows"] if row["dtype"] == dtype]
        shown = {network: _shown([row for row in rows if row["network"] == network]) for network in TITLES}
        shown = {network: found for network, found in shown.items() if found}
        ticks, place = [], 0.0
        for network, group in shown.items():
            ticks.append((place + (len(group) - 1) / 2, f"{TITLES[network]}\nbatch {group[0]['batch_size']}"))
            for row in group:
                colour = colours.setdefault(row["contender"], f"C{len(colours)}")
                _bar(axes, place, row, colour)
                place += 1
            place += 0.7
        axes.set_xticks([where for where, _ in ticks], [text for _, text in ticks], fontsize=8)
        axes.set(yscale="log", ylabel="images/s", xlim=(-0.8, place - 0.9))
        axes.set_title(f"{dtype} (median, lowest and highest; share of the device's peak)", fontsize=9)
        highest = [row["images_per_second"]["highest"] for group in shown.values() for row in group]
        if highest:
            lowest = min(row["images_per_second"]["lowest"] for group in shown.values() for row in group)
            axes.set_ylim(lowest / 3, max(highest) * 3)
    named = {row["contender"] for row in result["rows"] if not row["failure"]}
    handles = [Patch(color=colour, label=name) for name, colour in colours.items() if name in named]
    figure.legend(handles=handles, loc="outside upper center", ncols=max(1, len(handles)), fontsize=8, frameon=False)
    where = result["machine"]
    figure.supxlabel(f"{where['devices']}, {where['processor']}, {where['date']}, {where['commit']}", fontsize=8)
    figure.savefig(path, dpi=120)


def _shown(rows: list[dict]) -> list[dict]:
    """The rows of one network in one type that the chart has."""
    measured = [row for row in rows if not row["failure"]]
    ours = [row for row in measured if row["contender"] == OURS] or measured
    largest = max((row["batch_size"] for row in ours), default=None)
    return [row for row in measured if row["batch_size"] == largest]


def _bar(axes, place: float, row: dict, colour: str) -> None:
    rate = row["images_per_second"]
    error = [[rate["median"] - rate["lowest"]], [rate["highest"] - rate["median"]]]
    axes.bar(place, rate["median"], 0.9, color=colour, yerr=error, ecolor="0.3", capsize=2)
    share = row["share_of_peak"]
    note = f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"
    axes.text(place, rate["highest"] * 1.15, note, ha="center", va="bottom", fontsize=7)


BENCHMARK = command.Benchmark("train_throughput", measure, table, draw, (FLAGS, throughput_team.FLAGS))

if __name__ == "__main__":
    command.main(BENCHMARK)
