"""AlexNet with local response normalisation as written, as run, with batch normalisation, and with none.

    python -m experiments.alexnet_norms --data_dir=TFDS

The net, its initial weights and its course are the same in all: those of net 145 as its author ran it. As run, the
first normalisation comes before conv1's ReLU and pool, alpha is divided by the window, and conv2's maps are also
normalised each within itself; as written (Krizhevsky et al. 2012, section 3.3), normalisation follows the ReLU, alpha
stands on the plain sum, and there is no second one. Batch normalisation stands where that of net 145 does, over the
whole batch, and has no second one either.

Paper's numbers, ten views on ILSVRC-2012's validation set, from the author's log (layers/layer-params-145.cfg and
-148): as run 40.66 / 18.21, without 42.03 / 19.36. The other two have none.
"""

from experiments.study import Conclusion, Outcome, Run, Study, command, figures, imagenet
from experiments.study.imagenet import CENTRE, NONE, TEN

WRITTEN, RUN, BATCH, WITHOUT = "LRN as written", "LRN as run", "batch normalisation", "none"
PAPER = {WRITTEN: NONE, RUN: (40.66, 18.21), BATCH: NONE, WITHOUT: (42.03, 19.36)}
NOTES = {RUN: "log: net 145", WITHOUT: "log: net 148"}
AS_WRITTEN = {"model.lrn_alpha_over": "sum", "model.conv1_order": "pool_last", "model.conv2_second_norm": "none"}


def runs(options) -> list[Run]:
    return [
        imagenet.alexnet(WRITTEN, name="lrn_as_written", fields=AS_WRITTEN),
        imagenet.alexnet(RUN),
        imagenet.alexnet(BATCH, "batch_norm"),
        imagenet.alexnet(WITHOUT, "without_norm"),
    ]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    rows, ten = [], {}
    for label, paper in PAPER.items():
        budget, trouble = outcome.budget(label), imagenet.diverged(outcome, label)
        ten[label] = imagenet.judge(outcome, label, TEN)
        rows += imagenet.rows(label, CENTRE, NONE, imagenet.judge(outcome, label, CENTRE), budget, trouble)
        note = "; ".join(filter(None, (NOTES.get(label, ""), trouble)))
        rows += imagenet.rows(label, TEN, paper, ten[label], budget, note)
    for label, paper in ((WRITTEN, NONE), (RUN, (-1.4, -1.2)), (BATCH, NONE)):
        rows += imagenet.difference(
            f"{label}, against none", TEN, paper, ten[label], ten[WITHOUT], budget=outcome.budget(label)
        )
    figure, ((curves, bars),) = figures.new(11, 4, 1, 2)
    colours = {label: f"C{number}" for number, label in enumerate(PAPER)}
    figures.draw_errors(curves, list(outcome.trained.values()), [colours[label] for label in outcome.trained])
    curves.set_title("training dashed, validation (centre view) full", fontsize="small")
    paper = [top1 for top1, _ in PAPER.values()]
    figures.draw_bars(bars, list(PAPER), paper, [imagenet.percent(ten[label]) for label in PAPER])
    bars.set(ylabel="top-1 error (%), ten views")
    bars.margins(y=0.25)
    bars.set_xlim(-0.6, len(PAPER) - 0.4)
    return Conclusion(rows, [figures.save(figure, folder, "norms.png")])


STUDY = Study(
    name="alexnet_norms",
    title="AlexNet's normalisation: as written, as run, of batches, none",
    source="Krizhevsky et al. 2012, section 3.3, and the author's source",
    runs=runs,
    conclude=conclude,
)

if __name__ == "__main__":
    command.main(STUDY)
