"""ReLU reaches 25% training error on CIFAR-10 six times sooner than tanh (AlexNet's figure 1).

    python -m experiments.alexnet_figure1 --data_dir=TFDS

Krizhevsky et al. 2012, section 3.1: a four-layer convolutional network, no regularization of any kind, the learning
rate of each chosen independently to make training as fast as possible. Neither the network nor the rates are given;
ours are those of configs/cuda_convnet.py:fig1_relu and :fig1_tanh, which says how they were chosen. The rate is
constant, so that a shorter budget is the beginning of the same curve.

The training error is that of the batches as they come, averaged over one epoch: the mean over an epoch first falls
to 25% where the curve below does.
"""

import numpy as np

from alexnet_resnet.training import workdir as workdir_lib
from experiments.study import Conclusion, Outcome, Row, Run, Study, cifar, command, figures

TARGET, PAPER_RATIO = 25.0, 6.0
NETS = {"ReLU": "fig1_relu", "tanh": "fig1_tanh"}


def runs(options) -> list[Run]:
    return [cifar.cuda_convnet(config, label) for label, config in NETS.items()]


def epochs_and_errors(one) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and the training error in percent averaged over the epoch before."""
    per_epoch = workdir_lib.read_dataset(one.workdir)["examples"] / one.config.train.batch_size
    steps, _ = figures.series(one, "train/error")
    reports = max(1, round(per_epoch / steps[0])) if len(steps) else 1
    steps, errors = figures.series(one, "train/error", reports)
    return steps / per_epoch, 100 * errors


def reached(one) -> float | None:
    """The epoch in which the training error fell to the target; None if it did not."""
    epochs, errors = epochs_and_errors(one)
    below = np.flatnonzero((errors <= TARGET) & (epochs >= 1))
    return float(epochs[below[0]]) if len(below) else None


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    found = {label: reached(one) for label, one in outcome.trained.items()}
    relu, tanh = found.get("ReLU"), found.get("tanh")
    rows = [
        Row(label, f"epochs to {TARGET:.0f}% training error", None, found.get(label), budget=outcome.budget(label),
            note=_unreached(outcome, label, found), digits=1, missing="not reached" if label in outcome.trained else "")
        for label in NETS
    ]  # fmt: skip
    ratio = tanh / relu if relu and tanh else None
    rows.append(
        Row("tanh / ReLU", "ratio of epochs", PAPER_RATIO, ratio, digits=1, budget=outcome.budget("tanh"),
            missing="not reached" if len(outcome.trained) == len(NETS) else "")
    )  # fmt: skip
    figure, ((axes,),) = figures.new(6.4, 4)
    for label, style in (("ReLU", "-"), ("tanh", "--")):
        if label in outcome.trained:
            epochs, errors = epochs_and_errors(outcome.trained[label])
            axes.plot(epochs, errors, style, color="k", label=label)
            if found[label]:
                axes.annotate(f"{found[label]:.1f}", (found[label], TARGET), (0, 8), textcoords="offset points")
                axes.plot(found[label], TARGET, "ko", ms=4)
    axes.axhline(TARGET, color="C3", lw=1, label=f"{TARGET:.0f}%: the paper has tanh there {PAPER_RATIO:g} times later")
    axes.set(xlabel="epochs", ylabel="training error (%), mean over the last epoch", ylim=(0, 80), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return Conclusion(rows, [figures.save(figure, folder, "figure1.png")])


def _unreached(outcome: Outcome, label: str, found: dict) -> str:
    if label not in outcome.trained or found[label]:
        return ""
    epochs, errors = epochs_and_errors(outcome.trained[label])
    return f"{errors[-1]:.1f}% after {epochs[-1]:.1f} epochs" if len(epochs) else ""


STUDY = Study(
    name="alexnet_figure1",
    title="ReLU reaches 25% training error six times sooner than tanh",
    source="Krizhevsky et al. 2012, figure 1",
    runs=runs,
    conclude=conclude,
)

if __name__ == "__main__":
    command.main(STUDY)
