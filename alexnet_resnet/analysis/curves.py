"""Error curves of runs, in the style of ResNet's figures: training dashed, validation or test in full."""

import os

from alexnet_resnet.training import workdir as workdir_lib


def draw(workdirs: list[str], path: str) -> None:
    """Draws the error of each run over its steps and saves the figure.

    Args:
      workdirs: the runs' folders.
      path: the figure's file; its ending decides the format.

    Raises:
      UserError: a folder has no measurements.
    """
    # Not pyplot, which would choose a backend for a notebook that calls this.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    highest = 0.0
    for number, workdir in enumerate(workdirs):
        rows = list(workdir_lib.read_metrics(workdir))
        name = os.path.basename(os.path.normpath(workdir))
        colour = f"C{number}"
        judged = "validation" if any("validation/error" in row for row in rows) else "test"
        for split, style in (("train", dict(ls="--", lw=1)), (judged, dict(ls="-", lw=2))):
            points = [(row["step"], 100 * row[f"{split}/error"]) for row in rows if f"{split}/error" in row]
            if points:
                steps, errors = zip(*points, strict=True)
                final = f" ({errors[-1]:.2f}%)" if split == judged else ""
                marker = "o" if len(points) == 1 else None
                axes.plot(steps, errors, color=colour, label=f"{name}: {split}{final}", marker=marker, **style)
                highest = max(highest, *errors)
    axes.set(xlabel="step", ylabel="error (%)", ylim=(0, min(100.0, 1.05 * highest) or 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
