"""Deeper is worse for plain networks and better for residual ones, on ImageNet (ResNet's table 2 and figure 4).

    python -m experiments.resnet_table2 --data_dir=TFDS

He et al. 2016, table 2, validation set, ten views, top-1: plain-18 27.94, plain-34 28.54; ResNet-18 27.88, ResNet-34
25.03. Shortcuts are A, so that a residual net has the very parameters of the plain one. Figure 4 has their errors
over training: the training error of random crops, and the validation error of centre crops.
"""

from experiments.study import Conclusion, Outcome, Row, Run, Study, command, figures, imagenet
from experiments.study.imagenet import TEN

DEPTHS = (18, 34)
PAPER = {"plain-18": 27.94, "plain-34": 28.54, "ResNet-18": 27.88, "ResNet-34": 25.03}


def runs(options) -> list[Run]:
    return [imagenet.resnet(depth, residual=residual) for depth in DEPTHS for residual in (False, True)]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    found = {label: imagenet.judge(outcome, label, TEN) for label in PAPER}
    rows = []
    for label, paper in PAPER.items():
        budget, trouble = outcome.budget(label), imagenet.diverged(outcome, label)
        rows += imagenet.rows(label, TEN, (paper, None), found[label], budget, trouble, ks=(1,))
    for kind in ("plain", "ResNet"):
        deep, shallow = f"{kind}-34", f"{kind}-18"
        paper = PAPER[deep] - PAPER[shallow]
        more = imagenet.points(found[deep], found[shallow])
        what, measure = f"{deep} less {shallow}", "top-1 error, ten views, points"
        rows.append(Row(what, measure, paper, more, budget=outcome.budget(deep)))
    figure, (panels,) = figures.new(10, 4, 1, 2)
    for axes, kind in zip(panels, ("plain", "ResNet"), strict=True):
        labels = [label for label in PAPER if label.startswith(kind)]
        shown = [(f"C{place}", label) for place, label in enumerate(labels) if label in outcome.trained]
        figures.draw_errors(axes, [outcome.trained[label] for _, label in shown], [colour for colour, _ in shown])
        for place, label in enumerate(labels):
            axes.axhline(PAPER[label], color=f"C{place}", lw=1, ls=":", label=f"paper's {label}, ten views, at its end")
        axes.legend(fontsize="small")
        axes.set_title(f"{kind}: training dashed, validation (centre view) full", fontsize="small")
    most = max(line.get_ydata()[0] if line.get_ls() == ":" else max(line.get_ydata(), default=0)
               for axes in panels for line in axes.lines)  # fmt: skip
    for axes in panels:
        axes.set_ylim(min(20, *_lows(panels)), min(102, 1.05 * most))
    return Conclusion(rows, [figures.save(figure, folder, "figure4.png")])


def _lows(panels) -> list[float]:
    """The least of each curve, for where an easier set than ImageNet is learnt."""
    return [0.95 * min(line.get_ydata()) for axes in panels for line in axes.lines if len(line.get_ydata())]


STUDY = Study(
    name="resnet_table2",
    title="Plain networks degrade with depth, residual networks do not, on ImageNet",
    source="He et al. 2016, table 2 and figure 4",
    runs=runs,
    conclude=conclude,
)

if __name__ == "__main__":
    command.main(STUDY)
