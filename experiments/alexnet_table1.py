"""AlexNet on ILSVRC-2010's test set (AlexNet's table 1).

    python -m experiments.alexnet_table1 --data_dir=FOLDER

ILSVRC-2010 is not in TFDS: FOLDER has the folders train, validation and test with one folder of images a class in
each. With --set=data.dataset=prepared it is what `alexnet_resnet.prepare` made of it, and with --set=data.test_split=
the validation split is judged where there is no test split.

Krizhevsky et al. 2012, table 1, top-1 / top-5: sparse coding 47.1 / 28.2, SIFT + FVs 45.7 / 25.7, CNN 37.5 / 17.0;
section 6: 39.0 / 18.3 without averaging over ten patches. The author's log (layers/layer-params-145-2010.cfg) has
37.47 / 17.00 and 39.02 / 18.30, and the schedule that the net is trained by here.
"""

from experiments.study import Conclusion, Outcome, Row, Run, Study, command, imagenet
from experiments.study.imagenet import CENTRE, NONE, TEN

NET = "CNN"
REFERENCES = {"sparse coding": (47.1, 28.2), "SIFT + FVs": (45.7, 25.7)}
PAPER = {TEN: (37.5, 17.0), CENTRE: (39.0, 18.3)}
LOGGED = {TEN: "log: 37.47 / 17.00", CENTRE: "log: 39.02 / 18.30"}
DATA = {"data.dataset": "folder", "data.test_split": "test"}


def runs(options) -> list[Run]:
    return [imagenet.alexnet(NET, preset=imagenet.NET_2010, name="ilsvrc2010", fields=DATA)]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    rows = [
        Row(label, f"top-{k} error (%)", value, note="another method, for reference: not to be run here")
        for label, pair in REFERENCES.items()
        for k, value in zip((1, 5), pair, strict=True)
    ]
    found = {views: imagenet.judge(outcome, NET, views) for views in PAPER}
    for views, paper in PAPER.items():
        note = "; ".join(filter(None, (LOGGED[views], imagenet.diverged(outcome, NET))))
        rows += imagenet.rows(NET, views, paper, found[views], outcome.budget(NET), note)
    labels = [*REFERENCES, *(f"{NET}, {imagenet.SAID[views]}" for views in PAPER)]
    ours = [*(NONE for _ in REFERENCES), *map(imagenet.pair, found.values())]
    figure = imagenet.draw(
        folder, "table1.png", labels, [*REFERENCES.values(), *PAPER.values()], ours, "error (%), test set"
    )
    return Conclusion(rows, [figure])


STUDY = Study(
    name="alexnet_table1",
    title="AlexNet on ILSVRC-2010's test set",
    source="Krizhevsky et al. 2012, table 1",
    runs=runs,
    conclude=conclude,
)

if __name__ == "__main__":
    command.main(STUDY)
