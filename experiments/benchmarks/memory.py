"""Memory of a training step: rematerialisation lets 1202 layers train where they would not fit, for a slower step.

    python -m experiments.benchmarks.memory --out=results/memory

`--networks`, `--batch_sizes` and `--forms` choose other cases. Ten minutes on two cores without an accelerator, most of
them ResNet-1202's.

Each case is a process of its own, which compiles the step of the training command and takes it once. Planned is what
XLA sets aside for the compiled step: its arguments (parameters, momentum, statistics, the batch), results that do not
take their place, and the buffer for all that it computes meanwhile. Measured is the most that the device has held or,
where devices do not count, as CPUs, the process's largest footprint; then libraries and the compiler are part of it.
Forms: `plain` keeps every activation for the way back; `block` computes each block again from its input (model.remat);
`scan` has a stage's blocks in a loop (model.scan), whose compile time does not depend on their number; `parts` takes
the batch in four parts (train.accumulate).
"""

import dataclasses
import itertools

from absl import flags

from alexnet_resnet.errors import UserError, check_choice
from experiments.benchmarks import command, memory_case, processes
from experiments.benchmarks.memory_case import FORMS, NETWORKS, Case

# A processor takes half an hour to compile a thousand layers that are written out, and a minute a step for the others.
SLOW = {("resnet1202", "plain"), ("resnet1202", "block"), ("resnet1202", "parts")}
QUICK = [("resnet20", "scan+block", 4)]
GIB = 2**30
LIMIT = 8 * GIB

FLAGS = command.own_flags()
NAMES = flags.DEFINE_list("networks", list(NETWORKS), f"Networks, out of {', '.join(NETWORKS)}.", flag_values=FLAGS)
SIZES = flags.DEFINE_list(
    "batch_sizes", [], "Images a step; by default by the network and the device.", flag_values=FLAGS
)
FORM_NAMES = flags.DEFINE_list("forms", list(FORMS), f"Forms, out of {', '.join(FORMS)}.", flag_values=FLAGS)
ALL = flags.DEFINE_bool(
    "all", False, "Also what takes a processor half an hour: ResNet-1202 written out.", flag_values=FLAGS
)


def cases(networks, forms, sizes, on_cpu: bool, all_of_them: bool) -> list[Case]:
    """The cases that the flags ask for, in the order of the table."""
    found = []
    for network, form in itertools.product(networks, forms):
        if on_cpu and (network, form) in SLOW and not all_of_them:
            continue
        found += [Case(network, form, size) for size in sizes or NETWORKS[network][1 if on_cpu else 2]]
    return found


def measure() -> dict:
    """All rows, and the requirements that they decide."""
    for field, values, known in (("networks", NAMES.value, NETWORKS), ("forms", FORM_NAMES.value, FORMS)):
        for value in values:
            check_choice(field, value, tuple(known))
        if not values:
            raise UserError(f"{field}='': expected at least one of {', '.join(map(repr, known))}.")
    for value in SIZES.value:
        if not value.isdecimal() or not int(value):
            raise UserError(f"batch_sizes={value!r}: expected whole numbers above zero, such as 64,128.")
    sizes, on_cpu = [int(size) for size in SIZES.value], processes.platform() == "cpu"
    wanted = cases(NAMES.value, FORM_NAMES.value, sizes, on_cpu, ALL.value)
    if command.QUICK.value:
        wanted = [Case(*case) for case in QUICK]
    rows = []
    for number, case in enumerate(wanted, start=1):
        passed = [f"--one={case}"] + ["--quick"] * command.QUICK.value
        found = processes.run(memory_case.__name__, passed)
        said = found.get("failure") or f"{found['peak'] / GIB:.2f} GiB, compiled in {found['compile_seconds']:.0f} s"
        command.say(f"[{number}/{len(wanted)}] {case}: {said}")
        rows.append(dataclasses.asdict(case) | found)
    return dict(rows=rows, requirements=judge(rows), counted_by="process" if on_cpu else "device")


def judge(rows: list[dict]) -> list[dict]:
    """What ResNet-1202 has to keep to, each with the figure that decides; only of what was measured."""
    of = {(row["network"], row["form"], row["batch_size"]): row for row in rows if "failure" not in row}
    deep, found = of.get(("resnet1202", "scan+block", 64)), []
    shallow = of.get(("resnet110", "scan+block", 64))
    if deep:
        found.append(("ResNet-1202, batch 64, scan+block: GiB at most 8", deep["peak"] / GIB, deep["peak"] <= LIMIT))
    if deep and shallow:
        ratio = deep["compile_seconds"] / shallow["compile_seconds"]
        found.append(("ResNet-1202 compiles within twice ResNet-110's time, scan+block", ratio, ratio <= 2))
    return [dict(requirement=text, figure=figure, holds=bool(holds)) for text, figure, holds in found]


def table(result: dict) -> str:
    """The result as text."""
    head = ("planned", "temporary", "measured", "before", "compile s")
    lines = [f"{'network':<12}{'form':<12}{'batch':>6}" + "".join(f"{word:>12}" for word in head)]
    for row in result["rows"]:
        line = f"{row['network']:<12}{row['form']:<12}{row['batch_size']:>6}"
        if "failure" in row:
            lines.append(f"{line}  {row['failure']}")
            continue
        sizes = "".join(f"{row[name] / GIB:>12.2f}" for name in ("planned", "temporary", "peak", "before"))
        lines.append(f"{line}{sizes}{row['compile_seconds']:>12.1f}")
    lines += [
        "",
        f"GiB; measured is what the {result['counted_by']} has held at most, and before is that of before it compiled",
    ]
    for found in result["requirements"]:
        lines.append(f"{found['requirement']}: {found['figure']:.2f} {'yes' if found['holds'] else 'no'}")
    return "\n".join(lines)


def draw(result: dict, path: str) -> None:
    """A bar for each case, planned and measured, and a line at 8 GiB."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if "failure" not in row]
    figure = Figure(figsize=(9, 0.34 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(
        [p - 0.2 for p in places], [r["peak"] / GIB for r in rows], 0.4, label=f"measured ({result['counted_by']})"
    )
    axes.barh([p + 0.2 for p in places], [r["planned"] / GIB for r in rows], 0.4, label="planned by XLA")
    axes.axvline(LIMIT / GIB, color="0.4", lw=0.8, ls="--", label="8 GiB")
    axes.set_yticks(places, [f"{r['network']}, {r['form']}, batch {r['batch_size']}" for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("memory of one training step, GiB")
    axes.legend(fontsize=8)
    where = result["machine"]
    axes.set_title(f"{where['devices']}, {where['date']}, {where['commit']}", fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    command.main(command.Benchmark("memory", measure, table, draw, (FLAGS,)))
