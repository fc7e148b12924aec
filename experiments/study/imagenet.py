"""The trainings on ImageNet that several studies share, and how their tables are made."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import figures, judged
from experiments.study.plan import Run
from experiments.study.report import Row
from experiments.study.training import Outcome

# Net 145 of AlexNet's author as he ran it, by the schedule that his log has for ILSVRC-2012; and for ILSVRC-2010.
NET_2012, NET_2010 = "as_run+schedule_2012", "as_run"
CENTRE, TEN, SCALES = "centre", "ten_crop", "multi_scale"
SAID = {CENTRE: "centre view", TEN: "ten views", SCALES: "five scales"}

# Top-1 and top-5, in percent or in points.
Pair = tuple[float | None, float | None]
NONE: Pair = (None, None)
# A row of results.jsonl; None where nothing was judged.
Found = Mapping[str, Any] | None


def alexnet(
    label: str,
    *variants: str,
    preset: str = NET_2012,
    seed: int = 0,
    name: str = "",
    fields: Mapping[str, Any] | None = None,
) -> Run:
    """An AlexNet; changed `fields` need a `name` for their folder, which is joined to the variant's."""
    argument = "+".join((preset, *variants))
    return Run(label, f"alexnet.py:{argument}", fields or {}, seed, f"alexnet-{argument}-{name}" if name else "")


def resnet(depth: int, shortcut: str = "", residual: bool = True, seed: int = 0, label: str = "") -> Run:
    """A residual or plain network of table 1; without `shortcut` it has A up to 34 layers, and from 50 B."""
    usual = "A" if depth < 50 else "B"
    argument = f"{depth}" + ("" if shortcut in ("", usual) else f"+{shortcut}") + ("" if residual else "+plain")
    kind = "ResNet" if residual else "plain"
    return Run(label or " ".join(filter(None, (f"{kind}-{depth}", shortcut))), f"resnet.py:{argument}", seed=seed)


def vgg(depth: int) -> Run:
    """A network of Simonyan and Zisserman."""
    return Run(f"VGG-{depth}", f"vgg.py:{depth}")


def best_residual_nets() -> list[Run]:
    """The networks of ResNet's table 4, most of which are in table 3 too."""
    return [*(resnet(34, shortcut) for shortcut in "BC"), *(resnet(depth) for depth in (50, 101, 152))]


def judge(outcome: Outcome, labels: str | Sequence[str], views: str) -> Found:
    """The errors of one run, or of several as an ensemble; None where one was not trained, or diverged."""
    labels = [labels] if isinstance(labels, str) else labels
    members = [outcome.trained.get(label) for label in labels]
    if not all(one and not one.diverged for one in members):
        return None
    return judged.judge(members, views)


def rows(
    what: str, views: str, paper: Pair, found: Found, budget: str = "", note: str = "", ks: Sequence[int] = (1, 5)
) -> list[Row]:
    """A row for each error, with the images that ours is of."""
    counted = f"ours on {found['dataset']} {found['split']}, {found['examples']:,} images" if found else ""
    return [
        Row(
            what,
            f"top-{k} error (%), {SAID[views]}",
            paper[0 if k == 1 else 1],
            judged.percent(found, k) if found else None,
            interval=judged.interval(found, k) if found else None,
            budget=budget,
            note="; ".join(filter(None, (note, counted))),
        )
        for k in ks
    ]


def difference(
    what: str, views: str, paper: Pair, found: Found, base: Found, note: str = "", budget: str = ""
) -> list[Row]:
    """How many points of error more than the base, top-1 and top-5; what the paper has no number for is left out."""
    return [
        Row(what, f"top-{k} error, {SAID[views]}, points", value, points(found, base, k), note=note, budget=budget)
        for k, value in zip((1, 5), paper, strict=True)
        if value is not None or k == 1
    ]


def points(found: Found, base: Found, k: int = 1) -> float | None:
    """The difference of two top-k errors in points; None where one is missing."""
    return judged.percent(found, k) - judged.percent(base, k) if found and base else None


def percent(found: Found, k: int = 1) -> float | None:
    """The top-k error in percent; None where there is none."""
    return judged.percent(found, k) if found else None


def draw(folder: str, name: str, labels: Sequence[str], paper: Sequence[Pair], ours: Sequence[Pair], said: str) -> str:
    """Bars of the paper's and our top-1 and top-5, in a panel each; gives the figure's name.

    Args:
      folder: of the report.
      name: of the file.
      labels: what is below the bars.
      paper: top-1 and top-5 of each.
      ours: likewise.
      said: what the heights are, after 'top-1 '.
    """
    figure, (panels,) = figures.new(max(8, 2.5 + 1.2 * len(labels)), 4, 1, 2)
    for place, (axes, k) in enumerate(zip(panels, (1, 5), strict=True)):
        figures.draw_bars(axes, labels, [pair[place] for pair in paper], [pair[place] for pair in ours])
        axes.set(ylabel=f"top-{k} {said}")
        axes.margins(y=0.12)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.get_legend().remove()
    # Not among the bars, which may fill a panel.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figures.save(figure, folder, name)


def pair(found: Found) -> Pair:
    """Top-1 and top-5 error in percent."""
    return percent(found, 1), percent(found, 5)


def diverged(outcome: Outcome, label: str) -> str:
    """What was said where a run's loss was no longer finite; empty otherwise."""
    said = outcome.trained[label].diverged if label in outcome.trained else ""
    return f"diverged: {said}" if said else ""
