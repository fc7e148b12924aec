"""The table and the figure of survival.py's result."""

from experiments import survival_damage as damage
from experiments import survival_kills as killing

COLOURS = {
    damage.PASSED_OVER: "#8cc6e7",
    damage.HARMLESS: "#b9dfb5",
    damage.REFUSED: "#f5d58a",
    damage.UNCHANGED: "0.93",
}


def short(row: dict, newest: int) -> str:
    """A file's name, with its random part cut and its size."""
    name = row["file"]
    folder, _, last = name.rpartition("/")
    if folder.endswith("d") and len(last) == 32:
        name = f"{folder}/{last[:6]}..."
    whose = "" if row["step"] == newest else f" of the best, {row['step']}"
    return f"{name}{whose} ({row['bytes']:,} bytes)"


def grid(result: dict) -> dict[str, dict[str, str]]:
    """The outcome of each harm by the file's short name."""
    found = {}
    for row in result["damage"]:
        found.setdefault(short(row, result["damaged_step"]), {})[row["harm"]] = row["outcome"]
    return found


def describe(result: dict) -> str:
    """What was trained, in one line."""
    what = result["training"]
    return (
        f"{what['network']}; {what['data']}, batches of {what['batch_size']}; {what['steps']} steps, a checkpoint "
        f"every {what['save_every']} and at a validation every {what['evaluate_every']}"
    )


def table(result: dict) -> str:
    """The result as text."""
    where = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [f"{where['cores']} cores, {where['processor']}, {where['platform']}, load {where['load_before']}"]
    lines += [f"{where['date']}, commit {where['commit']}, {versions}", where["command"], ""]
    lines += [describe(result), ""]
    head = ("life", "began after", "killed at step", "seconds", "during a save", "files of it", "newest", "next began")
    lines.append("  ".join(head) + "  life's end")
    for number, life in enumerate(result["lives"], start=1):
        for kill in killing.kills(life):
            began, after = ("killed first" if step is None else step for step in (kill["resumed"], kill["next"]))
            saving = "yes" if kill["saving"] else "no"
            values = (number, began, kill["step"], kill["seconds"], saving, kill["files_of_the_save"])
            values = (*values, kill["newest"] or "none", after)
            cells = [f"{value!s:>{len(name)}}" for value, name in zip(values, head, strict=True)]
            lines.append("  ".join(cells) + ("  differs" if life["differs"] else "  equal"))
    files = grid(result)
    harms = list(dict.fromkeys(row["harm"] for row in result["damage"]))
    wide = max(map(len, files))
    lines += [
        "",
        f"checkpoint {result['damaged_step']}: {'file':<{wide}}"[: wide + 2] + "".join(f"{h:>19}" for h in harms),
    ]
    lines += [f"{name:<{wide + 2}}" + "".join(f"{files[name].get(h, ''):>19}" for h in harms) for name in files]
    lines += ["", "the command on a damaged folder"]
    for run in result["commands"]:
        end = "equal" if not run["differs"] else "differs"
        lines.append(f"{run['harm']}: {run['file']}: {run['outcome']}, began after step {run['resumed']}, {end}")
    for life in result["lives"]:
        lines += [f"difference: {text}" for text in [*life["lost"], *life["differs"]][:5]]
    bad = [row for row in result["damage"] if row["outcome"] not in damage.GOOD]
    lines += [f"{row['outcome']}: {row['harm']}: {row['file']}: {row['said']}" for row in bad]
    lines += ["", *(f"{found['claim']}: {'yes' if found['holds'] else 'no'}" for found in result["claims"])]
    return "\n".join(lines)


def chart(result: dict, path: str) -> None:
    """Each process as a bar from the step it began after to the one it ended at; beside it the outcomes of damage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 9), layout="constrained")
    timeline, outcomes = figure.subplots(1, 2, width_ratios=(1, 1.05))
    _draw_lives(timeline, result)
    _draw_damage(outcomes, result)
    where = result["machine"]
    figure.suptitle(f"{describe(result)}\n{where['processor']}, {where['date']}, commit {where['commit']}", fontsize=9)
    figure.savefig(path, dpi=110)


def _draw_lives(axes, result: dict) -> None:
    marks = {True: dict(marker="X", color="C3", label="killed during a save")}
    marks |= {False: dict(marker="X", color="black", label="killed, no save going on")}
    total, y, ticks = result["training"]["steps"], 0, []
    for number, life in enumerate(result["lives"], start=1):
        top = y
        for process in life["processes"]:
            began = process["resumed"] or 0
            axes.barh(y, process["step"] - began, left=began, height=0.62, color="#c9d6e8", zorder=2)
            if "aim" in process:
                style = marks[process["saving"]]
                axes.scatter(process["step"], y, s=70, zorder=4, linewidths=0, **style)
                style.pop("label", None)
            if process["resumed"] is None:
                axes.text(3, y, "killed while starting", va="center", fontsize=7, color="0.35")
            elif process is not life["processes"][0]:
                text = f"from {began}" if began else "from the beginning"
                # Before the bar, or where there is no room in it, or else behind it.
                beside = dict(x=process["step"] + 4, ha="left")
                if began > total / 8:
                    beside = dict(x=began - 1, ha="right")
                elif process["step"] - began > total / 4:
                    beside = dict(x=began + 1, ha="left")
                axes.text(y=y, s=text, va="center", fontsize=7, **beside)
            y += 1
        end = "differs" if life["differs"] else "equal"
        axes.text(
            total + 2, y - 1, end, va="center", fontsize=8, color="C3" if life["differs"] else "C2", weight="bold"
        )
        ticks.append(((top + y - 1) / 2, f"life {number}"))
        axes.axhline(y - 0.1, color="0.8", lw=0.8)
        y += 0.8
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set(ylim=(y - 0.9, -1.6), xlim=(-2, total * 1.12), xlabel="training step")
    axes.set_title(f"{result['kills']} kills (-9): a bar is a process, below it the next", fontsize=10)
    axes.axvline(total, color="0.6", lw=1, ls=":")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right", fontsize=8, ncols=2)


def _draw_damage(axes, result: dict) -> None:
    files = grid(result)
    harms = list(dict.fromkeys(row["harm"] for row in result["damage"]))
    for y, found in enumerate(files.values()):
        for x, how in enumerate(harms):
            outcome = found.get(how, "")
            axes.add_patch(_cell(x, y, COLOURS.get(outcome, "#e05050")))
            axes.text(x, y, outcome, ha="center", va="center", fontsize=7)
    axes.set(xlim=(-0.5, len(harms) - 0.5), ylim=(len(files) - 0.5, -0.5))
    axes.set_xticks(range(len(harms)), harms, fontsize=8)
    axes.set_yticks(range(len(files)), list(files), fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    step = result["damaged_step"]
    axes.set_title(f"damage to each file of the newest checkpoint, {step}: what a start made of it", fontsize=10)


def _cell(x: float, y: float, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour)
