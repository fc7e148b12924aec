"""AlexNet and ResNet on the same images: what each gets wrong, and what it costs.

    python -m experiments.alexnet_or_resnet --data_dir=TFDS
    python -m experiments.alexnet_or_resnet --data_dir=TFDS --budget='30 epochs'
    python -m experiments.alexnet_or_resnet --data_dir=TFDS --data=imagenet2012

On CIFAR-10 the nets of AlexNet's author, 18pct and 11pct (cuda-convnet), and ResNet-20 and ResNet-56 (He et al. 2016,
section 4.2), all on the same 50,000 images. On ILSVRC-2012 AlexNet as run, its author's net of 2014 with one column,
VGG-16, ResNet-18 and ResNet-50. A budget in epochs or steps gives every net as much; the default, 1, or another share
gives each so much of its own published training, with its own augmentation and schedule throughout.

The papers' errors: CIFAR-10, 18% and 11% (published with cuda-convnet; 11pct of nine views), ResNet-20 8.75%, ResNet-56
6.97% (table 6). ILSVRC-2012 validation, ten views, top-1 / top-5: AlexNet 40.7 / 18.2 (Krizhevsky et al. 2012, table
2), VGG-16 28.07 / 9.33, ResNet-50 22.85 / 6.71 (He et al. 2016, table 3), ResNet-18 27.88 (table 2). Multiply-adds:
ResNet-18 1.8 and ResNet-50 3.8 thousand million (table 1). Parameters: AlexNet 60 million (section 1). No paper has the
speeds or the memory, which are those of training where it was run.
"""

import dataclasses

import numpy as np

from alexnet_resnet.errors import check_choice
from experiments.study import (
    Conclusion,
    Outcome,
    Row,
    Run,
    Settings,
    Study,
    cifar,
    command,
    figures,
    imagenet,
    judged,
    plan,
)
from experiments.study.report import Option

DATA = ("cifar10", "imagenet2012")
FIGURE = "alexnet_or_resnet.png"


@dataclasses.dataclass(frozen=True)
class Net:
    """A network and what the papers say of it.

    Attributes:
      run: its training.
      views: what is judged of an image.
      top1: the published error in percent.
      top5: likewise.
      parameters: in millions.
      multiply_adds: likewise.
    """

    run: Run
    views: str
    top1: float | None = None
    top5: float | None = None
    parameters: float | None = None
    multiply_adds: float | None = None


NETS = {
    "cifar10": (
        Net(cifar.cuda_convnet("18pct"), "centre", 18.0),
        Net(cifar.cuda_convnet("11pct"), "nine_crop", 11.0),
        Net(cifar.resnet(20), "centre", 8.75),
        Net(cifar.resnet(56), "centre", 6.97),
    ),
    "imagenet2012": (
        Net(imagenet.alexnet("AlexNet as run"), "ten_crop", 40.7, 18.2, parameters=60),
        Net(Run("AlexNet 2014 (one column)", "alexnet.py:as_run+one_gpu_2014"), "ten_crop"),
        Net(imagenet.vgg(16), "ten_crop", 28.07, 9.33),
        Net(imagenet.resnet(18), "ten_crop", 27.88, multiply_adds=1800),
        Net(imagenet.resnet(50), "ten_crop", 22.85, 6.71, multiply_adds=3800),
    ),
}
SAID = {"centre": "one view", "nine_crop": "nine views", "ten_crop": "ten views"}


def runs(options) -> list[Run]:
    return [net.run for net in NETS[options["data"]]]


def check_files(settings: Settings) -> None:
    for net in NETS[settings.options["data"]]:
        judged.check_files([net.run], settings, (net.views,))


def size(run: Run, settings: Settings) -> tuple[float, float]:
    """Parameters and multiply-adds of one image, both in millions; counted, not trained."""
    from alexnet_resnet.analysis import summary

    config = plan.resolve(run, settings)
    data = config.data
    rows = summary.rows(dict(config.model), (data.image_size, data.image_size, data.channels), data.num_classes)
    return sum(row.parameters for row in rows) / 1e6, sum(row.multiply_adds for row in rows) / 1e6


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    nets, rows, found = NETS[outcome.options["data"]], [], {}
    sizes = {net.run.label: size(net.run, outcome.settings) for net in nets}
    for net in nets:
        label = net.run.label
        one = outcome.trained.get(label)
        row = judged.judge([one], net.views) if one and not one.diverged else None
        found[label] = judged.percent(row) if row else None
        common = dict(budget=outcome.budget(label))
        for k, paper in ((1, net.top1), (5, net.top5)):
            if k == 1 or outcome.options["data"] == "imagenet2012":
                rows.append(
                    Row(label, f"top-{k} error (%), {SAID[net.views]}", paper, judged.percent(row, k) if row else None,
                        interval=judged.interval(row, k) if row else None, note=one.diverged if one else "", **common)
                )  # fmt: skip
        (parameters, multiply_adds), final = sizes[label], one.final if one else {}
        memory = "" if not one or "train/device_memory_gib" in final else "not measured: the device does not tell"
        rows += [
            Row(label, "parameters (million)", net.parameters, parameters),
            Row(label, "multiply-adds an image (million)", net.multiply_adds, multiply_adds, digits=1),
            Row(label, "training, images/s", None, final.get("train/images_per_second"), digits=0, **common),
            Row(label, "device memory, most (GiB)", None, final.get("train/device_memory_gib"), note=memory, **common),
        ]
    rows = sorted(rows, key=_measure)
    notes = ["Parameters and multiply-adds are counted, whatever was trained; speed and memory are training's."]
    return Conclusion(rows, [_draw(outcome, nets, sizes, found, folder)], notes)


def _measure(row: Row) -> int:
    """Where a row's measure stands in the table; the nets of one measure stand together."""
    order = ("top-1", "top-5", "parameters", "multiply", "training", "device")
    return next(place for place, begin in enumerate(order) if row.measure.startswith(begin))


def _draw(outcome: Outcome, nets, sizes: dict, found: dict, folder: str) -> str:
    """Error against multiply-adds with an area for the parameters, and the learning curves over the images seen."""
    figure, ((plane, curves),) = figures.new(11, 4.4, 1, 2)
    most = max(parameters for parameters, _ in sizes.values())
    for number, net in enumerate(nets):
        label, colour = net.run.label, f"C{number}"
        parameters, multiply_adds = sizes[label]
        area = 20 + 1200 * parameters / most
        if net.top1 is not None:
            plane.scatter(multiply_adds, net.top1, area, facecolors="none", edgecolors=colour, linestyles="--")
        if found[label] is not None:
            plane.scatter(multiply_adds, found[label], area, color=colour, alpha=0.5)
        place = found[label] if found[label] is not None else net.top1
        if place is not None:
            right = (area / np.pi) ** 0.5 + 3, 0  # of the circle, in points
            text = f"{label}\n{parameters:.3g} M"
            plane.annotate(text, (multiply_adds, place), right, textcoords="offset points", va="center", fontsize=8)
        if label in outcome.trained:
            _draw_curve(curves, outcome.trained[label], colour)
    plane.set(xscale="log", xlabel="multiply-adds an image (million)", ylabel="top-1 error (%)")
    work = [multiply_adds for _, multiply_adds in sizes.values()]
    plane.set(xlim=(min(work) / 1.6, 3 * max(work)), ylim=(0, 1.15 * plane.get_ylim()[1]))
    plane.set_title("full: ours; dashed: the paper; the area: parameters", fontsize="small")
    curves.set(xlabel="images seen (million)", ylabel="top-1 error (%)")
    curves.set_title("training dashed, test or validation (as the run judges) full", fontsize="small")
    if curves.lines:
        curves.legend(fontsize="small")
    else:
        curves.set(xticks=[], yticks=[])
        curves.text(0.5, 0.5, "nothing has been trained", transform=curves.transAxes, ha="center")
    for axes in (plane, curves):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figures.save(figure, folder, FIGURE)


def _draw_curve(axes, one, colour: str) -> None:
    """Errors of one training in percent over the images that it has seen."""
    split = "test" if "test/error" in one.final else "validation"
    for metric, smooth, style in (("train/error", 4, dict(ls="--", lw=1)), (f"{split}/error", 1, dict(lw=2))):
        steps, values = figures.series(one, metric, smooth)
        marker = "o" if len(values) < 3 else None
        label = one.run.label if smooth == 1 else None
        axes.plot(
            steps * one.config.train.batch_size / 1e6, 100 * values, color=colour, label=label, marker=marker, **style
        )


STUDY = Study(
    name="alexnet_or_resnet",
    title="AlexNet and ResNet on the same images: errors and costs",
    source="Krizhevsky et al. 2012, table 2; He et al. 2016, tables 1 to 3 and 6",
    runs=runs,
    conclude=conclude,
    options={"data": Option("cifar10", "The images: cifar10 or imagenet2012.")},
    check=lambda options: check_choice("--data", options["data"], DATA),
    check_files=check_files,
)

if __name__ == "__main__":
    command.main(STUDY)
