"""AlexNet on ILSVRC-2012, alone and in ensembles (AlexNet's table 2).

    python -m experiments.alexnet_table2 --data_dir=TFDS

Krizhevsky et al. 2012, table 2, validation set, ten views, top-1 / top-5: 1 CNN 40.7 / 18.2, the mean of 5 CNNs'
predictions 38.1 / 16.4; 1 CNN* 39.0 / 16.6; 7 CNNs* 36.7 / 15.4, which are the five and two CNN*. The author's log
has 40.66 / 18.21 for the first. The members of an ensemble differ by their seeds.

CNN* has a sixth convolution after the last pool and was trained on ImageNet's Fall 2011 release (15 million images,
22,000 classes) before ILSVRC-2012. That pre-training is not repeated here: ours is CNN*'s network, trained on
ILSVRC-2012 alone.
"""

import statistics

from experiments.study import Conclusion, Outcome, Row, Run, Study, command, imagenet, judged
from experiments.study.imagenet import TEN

CNN, STAR = "CNN", "CNN*"
CNNS, STARS = 5, 2
PAPER = {"1 CNN": (40.7, 18.2), "5 CNNs": (38.1, 16.4), "1 CNN*": (39.0, 16.6), "7 CNNs*": (36.7, 15.4)}
UNTAUGHT = "ours without the paper's pre-training on ImageNet Fall 2011"


def labels(kind: str) -> list[str]:
    """The labels of the nets of a kind."""
    return [f"{kind} {number}" for number in range(1, (CNNS if kind == CNN else STARS) + 1)]


def runs(options) -> list[Run]:
    return [
        *(imagenet.alexnet(label, seed=seed) for seed, label in enumerate(labels(CNN))),
        *(imagenet.alexnet(label, "cnn_star", seed=seed) for seed, label in enumerate(labels(STAR))),
    ]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    good = {label for label, one in outcome.trained.items() if not one.diverged}
    cnns, stars = ([label for label in labels(kind) if label in good] for kind in (CNN, STAR))
    five = imagenet.judge(outcome, cnns, TEN) if cnns else None
    starred = imagenet.judge(outcome, stars, TEN) if stars else None
    seven = imagenet.judge(outcome, cnns + stars, TEN) if cnns and stars else None
    whole = len(cnns) == CNNS, len(cnns) == CNNS and len(stars) == STARS
    budget = next((outcome.budget(label) for label in cnns + stars), "")

    rows = [*_single("1 CNN", five, budget, "log: 40.66 / 18.21")]
    rows += imagenet.rows("5 CNNs", TEN, PAPER["5 CNNs"], five if whole[0] else None, budget if whole[0] else "")
    rows += _single("1 CNN*", starred, budget, UNTAUGHT)
    note = f"five CNNs and two CNN*; {UNTAUGHT}"
    rows += imagenet.rows(
        "7 CNNs*", TEN, PAPER["7 CNNs*"], seven if whole[1] else None, budget if whole[1] else "", note
    )
    # Ensembles of what there is so far are not the paper's.
    if len(cnns) > 1 and not whole[0]:
        rows += imagenet.rows(f"{len(cnns)} CNNs", TEN, imagenet.NONE, five, budget, "of those trained so far")
    if seven and not whole[1]:
        what = f"{len(cnns)} CNN and {len(stars)} CNN*"
        rows += imagenet.rows(what, TEN, imagenet.NONE, seven, budget, f"of those trained so far; {UNTAUGHT}")
    ours = [
        tuple(row.ours for row in rows if row.what == what and row.measure.startswith(f"top-{k} "))[0]
        for what in PAPER
        for k in (1, 5)
    ]
    pairs = list(zip(ours[::2], ours[1::2], strict=True))
    figure = imagenet.draw(folder, "table2.png", list(PAPER), list(PAPER.values()), pairs, "error (%), ten views")
    out = [f"{label}, which is in no row, {said}." for run in outcome.runs
           if (said := imagenet.diverged(outcome, label := run.label))]  # fmt: skip
    return Conclusion(rows, [figure], out)


def _single(what: str, found: imagenet.Found, budget: str, note: str) -> list[Row]:
    """The mean over the members that were judged together, each by itself, with the standard deviation."""
    if not found or len(found["members"]) == 1:
        return imagenet.rows(what, TEN, PAPER[what], found, budget if found else "", note)
    rows = imagenet.rows(what, TEN, PAPER[what], None, budget, note)
    mean = []
    for row, k in zip(rows, (1, 5), strict=True):
        errors = [judged.percent(member, k) for member in found["members"]]
        said = f"{note}; mean of {len(errors)}, each by itself, on {found['dataset']} {found['split']}, "
        mean.append(
            Row(row.what, row.measure, row.paper, statistics.mean(errors), statistics.stdev(errors), budget=budget,
                note=f"{said}{found['examples']:,} images")
        )  # fmt: skip
    return mean


STUDY = Study(
    name="alexnet_table2",
    title="AlexNet on ILSVRC-2012, alone and in ensembles",
    source="Krizhevsky et al. 2012, table 2",
    runs=runs,
    conclude=conclude,
)

if __name__ == "__main__":
    command.main(STUDY)
