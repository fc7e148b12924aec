"""The error of residual nets on CIFAR-10 falls with their depth, from 20 to 110 layers (ResNet's table 6).

    python -m experiments.resnet_table6 --data_dir=TFDS
    python -m experiments.resnet_table6 --data_dir=TFDS --depths=20,56,110 --seeds=1

He et al. 2016, table 6, test error: 20 layers 8.75%, 32 7.51%, 44 7.17%, 56 6.97%, 110 6.43% (the best of five; 6.61 +-
0.16), 1202 7.93%. 64,000 iterations on all 50,000 training images, single 32x32 views. The nets are those that figure 6
draws, so that whatever has been trained for one is there for the other. 1,202 layers are 1.9e10 multiply-adds an
image over 64,000 steps: --depths leaves them out unless they are asked for.
"""

import numpy as np

from alexnet_resnet.errors import check_at_least
from experiments.study import Conclusion, Outcome, Row, Run, Study, cifar, command, figures
from experiments.study.cifar import TABLE6, depths
from experiments.study.report import Option

MANY = 110


def labels(depth: int, seeds: int) -> list[str]:
    """The runs of a depth: one, but of 110 layers one for each seed."""
    first = cifar.resnet_label(depth, residual=True)
    return [first] + [f"{first} (seed {seed})" for seed in range(1, seeds if depth == MANY else 1)]


def runs(options) -> list[Run]:
    return [
        cifar.resnet(depth, seed=seed, label=label)
        for depth in depths(options["depths"])
        for seed, label in enumerate(labels(depth, options["seeds"]))
    ]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    rows, points, seeds = [], [], outcome.options["seeds"]
    for depth in TABLE6 | dict.fromkeys(depths(outcome.options["depths"])):
        every = labels(depth, seeds)
        found = [outcome.error(label) for label in every if outcome.error(label) is not None]
        budget = next(filter(None, map(outcome.budget, every)), "")
        missing = next(filter(None, map(outcome.missing, every)), "")
        best = min(found) if found else None
        note = f"the best of {len(found)} seeds" if len(found) > 1 else ""
        note = "the paper: the best of five" + (f"; ours {note}" if note else "") if depth == MANY else note
        rows.append(Row(every[0], "test error (%)", TABLE6.get(depth), best, budget=budget, note=note, missing=missing))
        if depth == MANY:
            mean, spread = (float(np.mean(found)), float(np.std(found, ddof=1))) if len(found) > 1 else (None, None)
            note = f"{len(found)} of five seeds; standard deviation of the sample" if found else ""
            rows.append(
                Row(f"{every[0]}, mean over seeds", "test error (%)", 6.61, mean, spread, 0.16, None, budget, note)
            )
        points.append((depth, TABLE6.get(depth), best))
    figure, ((axes,),) = figures.new(6.4, 4)
    for values, style, name in ((1, "s--", "paper"), (2, "o-", "ours")):
        kept = sorted((point[0], point[values]) for point in points if point[values] is not None)
        if kept:
            axes.plot(*zip(*kept, strict=True), style, color="0.6" if name == "paper" else "C0", label=name)
    axes.set(xscale="log", xlabel="layers", ylabel="test error (%)")
    every = sorted({depth for depth, _, _ in points})
    axes.set_xticks(every, list(map(str, every)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return Conclusion(rows, [figures.save(figure, folder, "table6.png")])


def check(options) -> None:
    depths(options["depths"])
    check_at_least("--seeds", options["seeds"], 1)


STUDY = Study(
    name="resnet_table6",
    title="Residual nets on CIFAR-10: the error falls with depth, but for 1,202 layers",
    source="He et al. 2016, table 6",
    runs=runs,
    conclude=conclude,
    options={
        "depths": Option("20,32,44,56,110", "The depths that are trained; 1202 is one."),
        "seeds": Option(5, "How often 110 layers are trained; the paper's row is of five."),
    },
    check=check,
)

if __name__ == "__main__":
    command.main(STUDY)
