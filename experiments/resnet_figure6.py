"""Plain nets get worse with depth, residual nets better (ResNet's figures 1 and 6, on CIFAR-10).

    python -m experiments.resnet_figure6 --data_dir=TFDS
    python -m experiments.resnet_figure6 --data_dir=TFDS --depths=20,56 --budget=0.1

He et al. 2016, section 4.2: plain-20 to plain-56 have a higher training error the deeper they are, plain-110 above 60%;
residual nets improve with depth. The test errors of the residual nets are table 6's; those of the plain nets are only
drawn. All nets are trained on all 50,000 images for 64,000 iterations, and judged on single 32x32 views.
"""

from experiments.study import Conclusion, Outcome, Row, Run, Study, cifar, command, figures
from experiments.study.cifar import TABLE6, depths
from experiments.study.report import Option

DEPTHS = "20,32,44,56,110"


def runs(options) -> list[Run]:
    # Pairs from the shallow to the deep, so that whatever has been trained can be compared.
    return [cifar.resnet(depth, residual) for depth in depths(options["depths"]) for residual in (False, True)]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    chosen, rows = depths(outcome.options["depths"]), []
    final = {
        label: 100 * one.final["train/error"] for label, one in outcome.sound.items() if "train/error" in one.final
    }
    for residual in (False, True):
        for depth in chosen:
            label = cifar.resnet_label(depth, residual)
            paper, note = (TABLE6.get(depth), "") if residual else (None, "")
            if not residual and depth == 110:
                note = "the paper: above 60%"
            rows.append(
                Row(label, "test error (%)", paper, outcome.error(label), budget=outcome.budget(label), note=note,
                    missing=outcome.missing(label))
            )  # fmt: skip
            rows.append(
                Row(label, "training error (%), last report", None, final.get(label), budget=outcome.budget(label),
                    missing=outcome.missing(label))
            )  # fmt: skip
    for measure, values in (("test", {label: outcome.error(label) for label in outcome.trained}), ("training", final)):
        for residual, name in ((False, "plain"), (True, "ResNet")):
            first, last = (cifar.resnet_label(depth, residual) for depth in (min(chosen), max(chosen)))
            if len(chosen) > 1:
                both = values.get(first) is not None and values.get(last) is not None
                rows.append(
                    Row(f"{name}-{max(chosen)} less {name}-{min(chosen)}", f"{measure} error, points", None,
                        values[last] - values[first] if both else None, budget=outcome.budget(last),
                        note="the paper: positive, degradation" if not residual else "the paper: negative")
                )  # fmt: skip
    figure, (panels,) = figures.new(10, 4, 1, 2)
    for axes, residual, name in zip(panels, (False, True), ("plain", "residual"), strict=True):
        labels = [cifar.resnet_label(depth, residual) for depth in chosen]
        kept = [
            (f"C{number}", outcome.trained[label]) for number, label in enumerate(labels) if label in outcome.trained
        ]
        figures.draw_errors(axes, [one for _, one in kept], [colour for colour, _ in kept])
        for number, depth in enumerate(chosen):
            if residual and depth in TABLE6:
                axes.axhline(TABLE6[depth], color=f"C{number}", lw=0.8, ls=":")
        axes.set_title(f"{name}: training dashed, test full" + (", paper dotted" if residual else ""), fontsize="small")
    most = max([max(line.get_ydata(), default=0) for axes in panels for line in axes.lines], default=0)
    for axes in panels:
        axes.set_ylim(0, min(100, 1.05 * most) or 100)
    return Conclusion(rows, [figures.save(figure, folder, "figure6.png")])


STUDY = Study(
    name="resnet_figure6",
    title="Plain nets degrade with depth, residual nets do not",
    source="He et al. 2016, figures 1 and 6",
    runs=runs,
    conclude=conclude,
    options={"depths": Option(DEPTHS, "The depths that are trained, plain and residual.")},
    check=lambda options: depths(options["depths"]) and None,
)

if __name__ == "__main__":
    command.main(STUDY)
