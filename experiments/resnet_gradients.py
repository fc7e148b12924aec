"""Why the shortcut helps: how large the gradient is in each layer of plain and residual nets, from the first step on.

    python -m experiments.resnet_gradients --data_dir=TFDS
    python -m experiments.resnet_gradients --data_dir=TFDS --depths=20,32 --budget=0.2

He et al. 2016, section 4.1, argue that degradation is unlikely to come from vanishing gradients, since batch
normalisation keeps forward signals at non-zero variance and backward ones at "healthy norms"; there is no figure of
it. This takes the gradient of the loss with respect to each block's output and each kernel, at initialisation and at
checkpoints evenly over the first 2,000 steps, on the same training batches throughout, and says how much larger it is
at the first block than at the last.
"""

import os

from alexnet_resnet.analysis import gradients
from alexnet_resnet.errors import check_at_least
from alexnet_resnet.evaluation import inspection
from experiments.study import Conclusion, Outcome, Row, Run, Study, cifar, command, figures
from experiments.study.cifar import depths
from experiments.study.report import Option
from experiments.study.training import Trained

LENGTH = "2000 steps"


def runs(options) -> list[Run]:
    return [
        Run(
            cifar.resnet_label(depth, residual),
            cifar.resnet(depth, residual).config,
            # At the full rate throughout, as the beginning of the whole training is.
            cifar.RESIDENT | cifar.ALL | {"train.duration": LENGTH, "optimizer.boundaries": ()},
            name=f"resnet_cifar-{depth}{'' if residual else '+plain'}-beginning{options['moments']}",
            moments=options["moments"],
        )
        for depth in depths(options["depths"])
        for residual in (False, True)
    ]


def measure(one: Trained, batches: int) -> dict[int, gradients.Gradients]:
    """The norms at initialisation (step 0) and at each checkpoint that was kept."""
    from alexnet_resnet.training.checkpoints import Checkpoints
    from alexnet_resnet.training.workdir import CHECKPOINTS

    checkpoints = Checkpoints(os.path.join(one.workdir, CHECKPOINTS), read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    networks = {0: inspection.fresh(one.config)}
    networks |= {step: inspection.opened(one.workdir, str(step))[1] for step in steps}
    data_dir = one.config.data.data_dir
    return {
        step: gradients.norms(network, inspection.training_batches(one.workdir, batches, data_dir=data_dir))
        for step, network in networks.items()
    }


def first_to_last(found: gradients.Gradients) -> float:
    """The gradient at the first block's output over that at the last one's."""
    values = list(found.outputs.values())
    return values[0] / values[-1]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    found = {label: measure(one, outcome.options["batches"]) for label, one in outcome.sound.items()}
    rows, what = [], "gradient at the first block's output / at the last's"
    for run in outcome.runs:
        moments, budget = found.get(run.label), outcome.budget(run.label)
        start = first_to_last(moments[0]) if moments else None
        end = first_to_last(moments[max(moments)]) if moments else None
        rows.append(Row(f"{run.label} at initialisation", what, None, start))
        rows.append(Row(f"{run.label} after {max(moments):,} steps" if moments else f"{run.label} after training", what,
                        None, end, budget=budget))  # fmt: skip
    names = [draw(found, folder)] if found else []
    for name, moment in (("initial", min), ("last", max)) if found else ():
        names.append(f"by_layer_{name}.png")
        steps = {label: moment(moments) for label, moments in found.items()}
        note = f"step {', '.join(f'{step:,}' for step in sorted(set(steps.values())))}"
        gradients.draw({label: found[label][step] for label, step in steps.items()}, os.path.join(folder, names[-1]),
                       note=note)  # fmt: skip
    return Conclusion(rows, names)


def draw(found: dict[str, dict[int, gradients.Gradients]], folder: str) -> str:
    """A panel for each net, a line for each moment, from the first block to the last."""
    from matplotlib import colormaps

    across = min(len(found), 4)
    down = -(-len(found) // across)
    figure, panels = figures.new(3.2 * across, 3 * down, down, across)
    lowest = min(v for moments in found.values() for one in moments.values() for v in one.outputs.values() if v > 0)
    highest = max(v for moments in found.values() for one in moments.values() for v in one.outputs.values())
    for axes, (label, moments) in zip(panels.flat, found.items(), strict=False):
        for step, one in moments.items():
            colour = colormaps["viridis"](step / max(max(moments), 1) * 0.9)
            axes.plot(range(1, len(one.outputs) + 1), list(one.outputs.values()), color=colour, label=f"step {step:,}")
        axes.set(title=label, xlabel="block", yscale="log", ylim=(lowest / 1.5, 1.5 * highest))
        axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize="x-small")
    for axes in panels[:, 0]:
        axes.set_ylabel("gradient's norm at a block's output")
    for axes in list(panels.flat)[len(found) :]:
        axes.set_axis_off()
    return figures.save(figure, folder, "gradients.png")


def check(options) -> None:
    depths(options["depths"])
    check_at_least("--moments", options["moments"], 1)
    check_at_least("--batches", options["batches"], 1)


STUDY = Study(
    name="resnet_gradients",
    title="The gradient's norm by block, plain against residual, at initialisation and while they train",
    source="He et al. 2016, section 4.1",
    runs=runs,
    conclude=conclude,
    options={
        "depths": Option("20,56", "The depths that are trained, plain and residual."),
        "moments": Option(4, "Checkpoints at which the gradient is taken, evenly over the training."),
        "batches": Option(2, "Training batches that the norms are averaged over."),
    },
    check=check,
)

if __name__ == "__main__":
    command.main(STUDY)
