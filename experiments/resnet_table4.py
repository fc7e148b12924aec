"""Single residual networks on ImageNet, five scales (ResNet's table 4).

    python -m experiments.resnet_table4 --data_dir=TFDS
    python -m experiments.resnet_table4 --data_dir=TFDS --collect --weights=ResNet-50=keras:resnet50.h5

He et al. 2016, table 4, validation set, top-1 / top-5: ResNet-34 B 21.84 / 5.71, C 21.53 / 5.60; ResNet-50 20.74 /
5.25, 101 19.87 / 4.60, 152 19.38 / 4.49. Images are judged whole, with their shorter side at 224, 256, 384, 480 and
640 pixels, and the softmax outputs averaged (section 3.4). Table 4's other networks are not here. The trainings are
those of resnet_table3; --weights as there.
"""

from experiments.study import Conclusion, Outcome, Run, Settings, Study, command, imagenet, judged, published
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
    return published.without(imagenet.best_residual_nets(), options, MODELS)


def check_files(settings: Settings) -> None:
    published.check_files(settings, MODELS, (SCALES,))
    judged.check_files(runs(settings.options), settings, (SCALES,))


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    table = published.Table(outcome, MODELS, folder)
    found = {label: table.judge(label, SCALES) for label in PAPER}
    rows = [row for label, pair in PAPER.items() for row in table.rows(label, SCALES, pair, found[label])]
    return Conclusion(rows, [table.draw("table4.png", PAPER, found, SCALES)])


STUDY = Study(
    name="resnet_table4",
    title="Single residual networks on ImageNet, five scales",
    source="He et al. 2016, table 4",
    runs=runs,
    conclude=conclude,
    options={"weights": published.OPTION},
    check=lambda options: published.parse(options["weights"], MODELS) and None,
    check_files=check_files,
)

if __name__ == "__main__":
    command.main(STUDY)
