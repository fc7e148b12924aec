"""Residual networks on ImageNet, ten views (ResNet's table 3).

    python -m experiments.resnet_table3 --data_dir=TFDS
    python -m experiments.resnet_table3 --data_dir=TFDS --collect --weights=ResNet-50=keras:resnet50.h5

He et al. 2016, table 3, validation set, ten views, top-1 / top-5: VGG-16 28.07 / 9.33; plain-34 28.54 / 10.02;
ResNet-34 A 25.03 / 7.76, B 24.52 / 7.46, C 24.19 / 7.40; ResNet-50 22.85 / 6.71, 101 21.75 / 6.05, 152 21.43 / 5.71.
The authors' release of the last three gives their errors of one crop: 24.7 / 7.8, 23.6 / 7.1, 23.0 / 6.7.

--weights judges published weights in place of a training; the table says which row is of such.
"""

from experiments.study import Conclusion, Outcome, Run, Settings, Study, command, imagenet, judged, published
from experiments.study.imagenet import CENTRE, TEN

PAPER = {
    "VGG-16": (28.07, 9.33),
    "plain-34": (28.54, 10.02),
    "ResNet-34 A": (25.03, 7.76),
    "ResNet-34 B": (24.52, 7.46),
    "ResNet-34 C": (24.19, 7.40),
    "ResNet-50": (22.85, 6.71),
    "ResNet-101": (21.75, 6.05),
    "ResNet-152": (21.43, 5.71),
}
RELEASED = {"ResNet-50": (24.7, 7.8), "ResNet-101": (23.6, 7.1), "ResNet-152": (23.0, 6.7)}
MODELS = {
    "VGG-16": "vgg:16",
    "ResNet-34 B": "resnet:34",
    "ResNet-50": "resnet:50",
    "ResNet-101": "resnet:101",
    "ResNet-152": "resnet:152",
}


def runs(options) -> list[Run]:
    found = [
        imagenet.vgg(16),
        imagenet.resnet(34, residual=False),
        *(imagenet.resnet(34, shortcut) for shortcut in "ABC"),
        *(imagenet.resnet(depth) for depth in (50, 101, 152)),
    ]
    return published.without(found, options, MODELS)


def check_files(settings: Settings) -> None:
    published.check_files(settings, MODELS, (TEN, CENTRE))
    judged.check_files(runs(settings.options), settings, (TEN,))


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    table = published.Table(outcome, MODELS, folder)
    found = {label: table.judge(label, TEN) for label in PAPER}
    rows = [row for label, pair in PAPER.items() for row in table.rows(label, TEN, pair, found[label])]
    for label, pair in RELEASED.items():
        rows += table.rows(label, CENTRE, pair, table.judge(label, CENTRE), "paper's column: the authors' release")
    return Conclusion(rows, [table.draw("table3.png", PAPER, found, TEN)])


STUDY = Study(
    name="resnet_table3",
    title="Residual networks of 34 to 152 layers on ImageNet, ten views",
    source="He et al. 2016, table 3",
    runs=runs,
    conclude=conclude,
    options={"weights": published.OPTION},
    check=lambda options: published.parse(options["weights"], MODELS) and None,
    check_files=check_files,
)

if __name__ == "__main__":
    command.main(STUDY)
