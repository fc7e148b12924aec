"""Single residual networks on ImageNet, five scales (ResNet's table 4).

    python -m experiments.resnet_table4 --data_dir=TFDS
    python -m experiments.resnet_table4 --data_dir=TFDS --collect --weights=ResNet-50=keras:resnet50.h5

He et al. 2016, table 4, validation set, top-1 / top-5: ResNet-34 B 21.84 / 5.71, C 21.53 / 5.60; ResNet-50 20.74 /
5.25, 101 19.87 / 4.60, 152 19.38 / 4.49. Images are judged whole, with their shorter side at 224, 256, 384, 480 and
640 pixels, and the softmax outputs averaged (section 3.4). Table 4's other networks are not here. The trainings are
those of resnet_table3; --weights as there.
"""

from experiments.study import Conclusion, Outcome, Run, Study, command, imagenet, published
from experiments.study.imagenet import SCALES

PAPER = {
    "ResNet-34 B": (21.84, 5.71),
    "ResNet-34 C": (21.53, 5.60),
    "ResNet-50": (20.74, 5.25),
    "ResNet-101": (19.87, 4.60),
    "ResNet-152": (19.38, 4.49),
}
MODELS = {label: f"resnet:{label.split('-')[1].split()[0]}" for label in PAPER if label != "ResNet-34 C"}


def runs(options) -> list[Run]:
    weights = published.parse(options["weights"], MODELS)
    return [run for run in imagenet.best_residual_nets() if run.label not in weights]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    weights = published.parse(outcome.options["weights"], MODELS)
    rows, found = [], {}
    for label, paper in PAPER.items():
        if label in weights:
            found[label] = published.judge(weights[label], SCALES, outcome.settings, folder)
            note = weights[label].note
        else:
            found[label] = imagenet.judge(outcome, label, SCALES)
            note = imagenet.diverged(outcome, label)
        rows += imagenet.rows(label, SCALES, paper, found[label], outcome.budget(label), note)
    names = [f"{label}*" if label in weights else label for label in PAPER]
    figure = imagenet.draw(
        folder, "table4.png", names, list(PAPER.values()), [imagenet.pair(found[label]) for label in PAPER],
        "error (%), five scales" + ("; * published weights" if weights else ""),
    )  # fmt: skip
    return Conclusion(rows, [figure])


STUDY = Study(
    name="resnet_table4",
    title="Single residual networks on ImageNet, five scales",
    source="He et al. 2016, table 4",
    runs=runs,
    conclude=conclude,
    options={"weights": published.OPTION},
    check=lambda options: published.parse(options["weights"], MODELS) and None,
)

if __name__ == "__main__":
    command.main(STUDY)
