"""Which classes a network gets wrong, and for which others it takes them: a table and two figures."""

import csv
import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from alexnet_resnet.evaluation.outputs import Answers

# As many classes, or confusions of two, as can be read in one figure.
READABLE = 30
# Classes up to which a matrix has its numbers written into it.
NUMBERED = 20
TABLE, CLASSES, CONFUSION = "classes.csv", "classes.png", "confusion.png"


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How often each class was taken for each.

    Attributes:
      counts: [right class, most probable class].
      top1_errors: of each class's examples, those whose most probable class is wrong.
      top5_errors: those whose five most probable classes are all wrong.
    """

    counts: Int[np.ndarray, "K K"]
    top1_errors: Int[np.ndarray, "K"]
    top5_errors: Int[np.ndarray, "K"]

    @property
    def examples(self) -> Int[np.ndarray, "K"]:
        """Of each class."""
        return self.counts.sum(1)

    def worst(self) -> Int[np.ndarray, "C"]:
        """The classes that have examples, those with the largest top-1 error first, then the largest top-5 error."""
        examples = np.maximum(self.examples, 1)
        order = np.lexsort((np.arange(len(examples)), -self.top5_errors / examples, -self.top1_errors / examples))
        return order[self.examples[order] > 0]

    def pairs(self) -> list[tuple[int, int, int]]:
        """(right class, the one that it was taken for, how often), the most frequent first."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        right, taken = np.nonzero(wrong)
        order = np.argsort(-wrong[right, taken], kind="stable")
        return [(int(right[i]), int(taken[i]), int(wrong[right[i], taken[i]])) for i in order]


def count(answers: Answers, classes: int) -> Confusion:
    """Counts the confusions of `classes` classes."""
    of_all = np.zeros((classes, classes), np.int64)
    np.add.at(of_all, (answers.labels, answers.classes[:, 0]), 1)
    of = lambda wrong: np.bincount(answers.labels[wrong], minlength=classes)  # noqa: E731
    return Confusion(of_all, of(answers.top1_wrong), of(answers.top5_wrong))


def draw(answers: Answers, names: Sequence[str], title: str, folder: str) -> list[str]:
    """Writes the table of all classes and draws both figures; a line about each.

    With more classes than can be read the figures show the worst and the most frequent confusions.

    Args:
      answers: what was said of each example.
      names: one a class.
      title: what was judged.
      folder: where they go; it exists.
    """
    found = count(answers, len(names))
    paths = [os.path.join(folder, name) for name in (TABLE, CLASSES, CONFUSION)]
    _write_table(found, names, paths[0])
    _draw_classes(found, names, title, paths[1])
    _draw_confusion(found, names, title, paths[2])
    return [f"errors of each class in {paths[0]} and {paths[1]}", f"confusions in {paths[2]}"]


def _write_table(found: Confusion, names: Sequence[str], path: str) -> None:
    wrong = found.counts - np.diag(np.diag(found.counts))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "class",
                "name",
                "examples",
                "top1_errors",
                "top1_error",
                "top5_errors",
                "top5_error",
                "taken_for",
                "times",
            ]
        )
        for index in found.worst().tolist():
            examples, other = int(found.examples[index]), int(wrong[index].argmax())
            times = int(wrong[index, other])
            shares = [
                entry
                for errors in (found.top1_errors[index], found.top5_errors[index])
                for entry in (int(errors), f"{errors / examples:.4f}")
            ]
            writer.writerow([index, names[index], examples, *shares, names[other] if times else "", times])


def _draw_classes(found: Confusion, names: Sequence[str], title: str, path: str) -> None:
    order = found.worst()
    shown = order[:READABLE]
    examples = found.examples[shown]
    many = len(order) > len(shown)
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.25 * len(shown) + 2.2 * many), layout="constrained")
    rows = figure.subplots(1 + many, squeeze=False, height_ratios=[2, 0.25 * len(shown)] if many else None)[:, 0]
    bars = rows[-1]
    places = np.arange(len(shown))
    top1, top5 = (100 * errors[shown] / examples for errors in (found.top1_errors, found.top5_errors))
    bars.barh(places, top1, color="C0", alpha=0.4, label="top-1")
    bars.barh(places, top5, color="C0", height=0.4, label="top-5")
    for place, index in enumerate(shown.tolist()):
        text = f"{found.top1_errors[index]} and {found.top5_errors[index]} of {examples[place]}"
        bars.text(top1[place] + 0.5, place, text, va="center", fontsize=7)
    bars.set_yticks(places, [names[index][:32] for index in shown], fontsize=8, parse_math=False)
    bars.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.15 * max(float(top1.max()), 1)), xlabel="error (%)")
    bars.legend(loc="lower right", fontsize=8)
    if many:
        shares = 100 * found.top1_errors[order] / found.examples[order]
        rows[0].hist(shares, bins=np.linspace(0, 100, 41), color="C0", alpha=0.4)
        rows[0].set(xlabel="top-1 error (%)", ylabel="classes", xlim=(0, 100))
        bars.set_title(f"the {len(shown)} worst of {len(order):,} classes", fontsize=9)
    rows[0].set_title(title if not many else f"{title}: all {len(order):,} classes", fontsize=10, parse_math=False)
    figure.savefig(path, dpi=120)


def _draw_confusion(found: Confusion, names: Sequence[str], title: str, path: str) -> None:
    from matplotlib.figure import Figure

    if len(names) > READABLE:
        _draw_pairs(found, names, title, path)
        return
    side = 2.5 + 0.4 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = 100 * found.counts / np.maximum(found.examples, 1)[:, None]
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axes, label="share of the class (%)", shrink=0.8)
    short = [name[:20] for name in names]
    axes.set_xticks(range(len(names)), short, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), short, fontsize=8, parse_math=False)
    axes.set(xlabel="most probable class", ylabel="right class")
    for right, taken in zip(*np.nonzero(found.counts), strict=True) if len(names) <= NUMBERED else ():
        colour = "white" if shares[right, taken] > 50 else "black"
        axes.text(taken, right, found.counts[right, taken], ha="center", va="center", fontsize=7, color=colour)
    axes.set_title(title, fontsize=10, parse_math=False)
    figure.savefig(path, dpi=120)


def _draw_pairs(found: Confusion, names: Sequence[str], title: str, path: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    pairs = found.pairs()
    shown = pairs[:READABLE]
    figure = Figure(figsize=(10, 1.5 + 0.25 * max(len(shown), 4)), layout="constrained")
    axes = figure.subplots()
    places, counts = np.arange(len(shown)), [times for *_, times in shown]
    axes.barh(places, counts, color="C0", alpha=0.4)
    for place, (right, _, times) in enumerate(shown):
        axes.text(times, place, f" {times} of {found.examples[right]}", va="center", fontsize=7)
    words = [f"{names[right][:28]} taken for {names[taken][:28]}" for right, taken, _ in shown]
    axes.set_yticks(places, words, fontsize=8, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="examples", ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.15 * max(counts, default=1)))
    axes.set_title(
        f"{title}: the {len(shown)} most frequent of {len(pairs):,} confusions", fontsize=10, parse_math=False
    )
    figure.savefig(path, dpi=120)
