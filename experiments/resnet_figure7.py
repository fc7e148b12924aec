"""The layers of residual nets respond more weakly than those of plain nets, deeper ones more weakly still (figure 7).

    python -m experiments.resnet_figure7 --data_dir=TFDS
    python -m experiments.resnet_figure7 --data_dir=TFDS --depths=20,32 --budget='2 epochs'

He et al. 2016, section 4.2, figure 7: the standard deviation of each 3x3 layer's output on CIFAR-10, after batch
normalisation and before the ReLU or the addition, in plain-20, plain-56, ResNet-20, ResNet-56 and ResNet-110. The paper
draws it and gives no numbers. Ours is over test images, with the moments that an evaluation uses; the networks are
those of figure 6. What is said of each net is the mean over its layers, the first convolution among them.
"""

import os

import numpy as np

from alexnet_resnet.analysis import responses
from alexnet_resnet.errors import UserError, check_at_least
from alexnet_resnet.evaluation import inspection
from alexnet_resnet.evaluation import runs as runs_lib
from experiments.study import Conclusion, Outcome, Row, Run, Settings, Study, cifar, command, plan
from experiments.study.cifar import depths
from experiments.study.report import Option

DEEPEST = 110  # of which the paper shows the residual net alone


def runs(options) -> list[Run]:
    return [
        cifar.resnet(depth, residual)
        for depth in depths(options["depths"])
        for residual in (False, True)
        if residual or depth < DEEPEST
    ]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    found, count = {}, outcome.options["images"]
    for label, one in outcome.sound.items():
        _, network = inspection.opened(one.workdir)
        data_dir = one.config.data.data_dir
        batches = inspection.evaluation_batches(one.workdir, -(-count // 128), batch_size=128, data_dir=data_dir)
        found[label] = responses.standard_deviations(network, (images for images, _ in batches))
    mean = {label: float(np.mean(list(values.values()))) for label, values in found.items()}
    measure = "mean standard deviation of a layer"
    rows = [
        Row(run.label, measure, None, mean.get(run.label), budget=outcome.budget(run.label), digits=3,
            missing=outcome.missing(run.label))
        for run in outcome.runs
    ]  # fmt: skip
    chosen = depths(outcome.options["depths"])
    pairs = [(f"plain-{depth}", f"ResNet-{depth}", "residual against plain") for depth in chosen if depth < DEEPEST]
    pairs += [(f"ResNet-{a}", f"ResNet-{b}", "deeper") for a, b in zip(chosen, chosen[1:], strict=False)]
    for first, second, what in pairs:
        ratio = mean[second] / mean[first] if {first, second} <= mean.keys() else None
        rows.append(
            Row(f"{second} / {first}", f"{what}: ratio of the means", None, ratio, note="the paper: below 1", digits=3,
                budget=outcome.budget(second))
        )  # fmt: skip
    names = []
    if found:
        responses.draw(found, os.path.join(folder, "figure7.png"))
        names.append("figure7.png")
    return Conclusion(rows, names)


def check_files(settings: Settings) -> None:
    """Refuses more images than there are."""
    from alexnet_resnet.data import sources

    data, count = plan.resolve(runs(settings.options)[0], settings).data, settings.options["images"]
    examples = sources.load(data, runs_lib.default_split(data), "data.test_split")
    if count > len(examples):
        raise UserError(f"--images={count}: expected at most {len(examples):,}, the images of {examples.name}.")


def check(options) -> None:
    depths(options["depths"])
    check_at_least("--images", options["images"], 1)


STUDY = Study(
    name="resnet_figure7",
    title="Residual functions respond weakly: the standard deviation of each layer's output",
    source="He et al. 2016, figure 7",
    runs=runs,
    conclude=conclude,
    options={
        "depths": Option("20,56,110", "The depths; plain nets up to 109 layers, residual nets of all."),
        "images": Option(1024, "Test images that the responses are taken over, in whole batches of 128."),
    },
    check=check,
    check_files=check_files,
)

if __name__ == "__main__":
    command.main(STUDY)
