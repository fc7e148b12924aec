"""Local response normalisation takes a four-layer net on CIFAR-10 from 13% to 11% test error (AlexNet's section 3.3).

    python -m experiments.alexnet_lrn_cifar --data_dir=TFDS

Krizhevsky et al. 2012, section 3.3: "a four-layer CNN achieved a 13% test error rate without normalization and 11% with
normalization". The nets are the author's published 11pct and 13pct (cuda-convnet), which differ in more than LRN: 13pct
has 32 filters where 11pct has 64 in its first local layer, and another weight cost. So 11pct is also trained with its
two normalisations taken out and nothing else changed. Errors are of nine views, as the author tested.
"""

from experiments.study import Conclusion, Outcome, Row, Run, Study, cifar, command, figures, judged

WITH, WITHOUT, PUBLISHED = "11pct (LRN)", "11pct without LRN", "13pct (no LRN)"
NINE = "nine_crop"
PAPER = {WITH: 11.0, WITHOUT: None, PUBLISHED: 13.0}


def runs(options) -> list[Run]:
    return [
        cifar.cuda_convnet("11pct", WITH),
        cifar.cuda_convnet("11pct", WITHOUT, name="cuda_convnet-11pct-without_lrn", norm=False),
        cifar.cuda_convnet("13pct", PUBLISHED),
    ]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    found = {label: judged.judge([one], NINE) for label, one in outcome.sound.items()}
    errors = {label: judged.percent(row) for label, row in found.items()}
    rows = [
        Row(label, "test error (%), nine views", paper, errors.get(label), budget=outcome.budget(label),
            interval=judged.interval(found[label]) if label in found else None, missing=outcome.missing(label))
        for label, paper in PAPER.items()
    ]  # fmt: skip
    for label, paper in ((PUBLISHED, -2.0), (WITHOUT, None)):
        gain = errors[WITH] - errors[label] if {WITH, label} <= errors.keys() else None
        rows.append(Row(f"LRN, against {label}", "difference in points", paper, gain, budget=outcome.budget(label)))
    figure, ((curves, bars),) = figures.new(10, 4, 1, 2)
    figures.draw_errors(curves, list(outcome.trained.values()))
    curves.set_title("training dashed, test (centre view) full", fontsize="small")
    figures.draw_bars(bars, list(PAPER), list(PAPER.values()), [errors.get(label) for label in PAPER])
    bars.set(ylabel="test error (%), nine views")
    return Conclusion(rows, [figures.save(figure, folder, "lrn.png")])


STUDY = Study(
    name="alexnet_lrn_cifar",
    title="Local response normalisation on CIFAR-10: 13% without, 11% with",
    source="Krizhevsky et al. 2012, section 3.3",
    runs=runs,
    conclude=conclude,
    check_files=lambda settings: judged.check_files(runs(settings.options), settings, (NINE,)),
)

if __name__ == "__main__":
    command.main(STUDY)
