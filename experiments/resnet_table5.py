"""An ensemble of six residual networks on ImageNet (ResNet's table 5).

    python -m experiments.resnet_table5 --data_dir=TFDS

He et al. 2016, table 5: six models of different depths, two of them of 152 layers, have a top-5 error of 3.57 on the
test set of ILSVRC, by its server. Ours are judged on the validation set, as the test set's labels are not public: the
two are not of the same images. Which the other four are is not said. Here they are table 4's other networks,
ResNet-34 B and C, 50 and 101, and the second 152 has another seed, so that one training is added to those of
resnet_table4. All images are judged whole at five scales, as there.
"""

from experiments.resnet_table4 import PAPER as SINGLE
from experiments.study import Conclusion, Outcome, Run, Study, command, imagenet, judged
from experiments.study.imagenet import NONE, SCALES

SECOND = "ResNet-152 of another seed"
ENSEMBLE, PAPER = "six models", 3.57
MEMBERS = (*SINGLE, SECOND)


def runs(options) -> list[Run]:
    return [*imagenet.best_residual_nets(), imagenet.resnet(152, seed=1, label=SECOND)]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    good = [label for label in MEMBERS if label in outcome.trained and not outcome.trained[label].diverged]
    together = imagenet.judge(outcome, good, SCALES) if good else None
    whole = len(good) == len(MEMBERS)
    # What each member answers by itself stands in the ensemble's record too.
    alone = {} if together is None else dict(zip(good, together["members"], strict=True))
    rows = imagenet.rows(
        ENSEMBLE, SCALES, (None, PAPER), together if whole else None, outcome.budget(good[0]) if whole else "",
        "the paper on the test set, by ILSVRC's server; ours on validation",
    )  # fmt: skip
    if len(good) > 1 and not whole:
        what = f"{len(good)} of the six models"
        rows += imagenet.rows(what, SCALES, NONE, together, outcome.budget(good[0]), ", ".join(good))
    for label in MEMBERS:
        # A member's own record has the errors, and what it was judged on is the ensemble's.
        own = {**together, **alone[label]} if label in alone else None
        source = "the paper: its table 4" if label in SINGLE else ""
        note = "; ".join(filter(None, (source, imagenet.diverged(outcome, label))))
        rows += imagenet.rows(label, SCALES, SINGLE.get(label, NONE), own, outcome.budget(label), note)
    labels = [*MEMBERS, f"{ENSEMBLE}\n(the paper: test set)"]
    paper = [SINGLE.get(label, NONE) for label in MEMBERS] + [(None, PAPER)]
    ours = [imagenet.pair(alone.get(label)) for label in MEMBERS] + [imagenet.pair(together if whole else None)]
    figure = imagenet.draw(folder, "table5.png", labels, paper, ours, "error (%), five scales")
    return Conclusion(rows, [figure])


STUDY = Study(
    name="resnet_table5",
    title="An ensemble of six residual networks on ImageNet",
    source="He et al. 2016, table 5",
    runs=runs,
    conclude=conclude,
    check_files=lambda settings: judged.check_files(runs(settings.options), settings, (SCALES,)),
)

if __name__ == "__main__":
    command.main(STUDY)
