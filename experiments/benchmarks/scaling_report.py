"""The table and the chart of `scaling.py`."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.benchmarks.scaling_model import ACTIVATIONS, BOUNDS, GRADIENTS, PARAMETERS, STATISTICS

SHOWN = (ACTIVATIONS, PARAMETERS, GRADIENTS, STATISTICS)
COLOURS = {"data": "tab:blue", "columns": "tab:orange", "hybrid": "tab:green", "fsdp": "tab:red"}
BOUND_TITLES = {"apart": "no overlap", "overlapped": "full overlap"}
MARKERS = "osD^"
WAYS = {"weak": "{batch_per_device} examples a device", "strong": "{global_batch} examples in all"}


def table(result: dict) -> str:
    """The result as text, without where it was made."""
    parts = [_heading(result), _traffic(result)]
    for found in result["links"].values():
        parts += [_link(found)] + [_times(result, found, way) for way in WAYS]
    if any(found["crossover"]["weak"] for found in result["links"].values()):
        parts += [_crossovers(result), _batches(result)]
    return "\n\n".join([*parts, _measured(result)])


def _heading(result: dict) -> str:
    first, *_ = result["programs"]["data"].values()
    formula = 6 * result["multiply_adds"] * result["batch_per_device"]
    return (
        f"{result['network']}: {result['parameters']:,} parameters, {result['multiply_adds']:,} multiply-adds an "
        f"example, float32\nA device computes 6 x multiply-adds x {result['batch_per_device']} examples = "
        f"{formula / 1e9:,.3f} GFLOP a step by every strategy; the compiler counts "
        f"{first['operations'] / 1e9:,.3f} for data, without a gradient of the images and with all that is no product"
    )


def _traffic(result: dict) -> str:
    lines = [("strategy", "devices", "mesh", *SHOWN, "total", "least", "parameters held", "optimizer", "GFLOP")]
    for name, programs in result["programs"].items():
        for count, one in programs.items():
            sums = [sum(t["bytes"] for t in one["traffic"] if t["what"] == what) for what in SHOWN]
            sizes = (*sums, one["received"], one["least"], one["parameter_bytes"], one["optimizer_bytes"])
            lines.append(
                (name, f"{count}", f"{one['data']}x{one['model']}", *(f"{size / 1e6:,.3f}" for size in sizes))
                + (f"{one['operations'] / 1e9:,.3f}",)
            )
    title = (
        f"Read from the programs compiled for simulated devices, {WAYS['weak'].format(**result)}: MB (10^6 bytes) that "
        f"each device receives in a step, beside the least, and holds; GFLOP as the compiler counts"
    )
    checked = result["checked"]
    off = max(
        abs(one["scaled"] / one["compiled"] - 1) if one["compiled"] else 0 for one in checked["strategies"].values()
    )
    note = (
        f"Scaled to {checked['batch_per_device']} examples a device on {checked['devices']}, the total of "
        f"{' and '.join(checked['strategies'])} is that of programs compiled for it to {100 * off:.2g}%."
    )
    return "\n".join([title, *_columns(lines, left=(0, 2)), note])


def _link(found: dict) -> str:
    return (
        f"{found['title']}: {found['source']}. Computes at a share of {found['peak'] / 1e12:,.1f} TFLOP/s "
        f"({found['device_kind']}, float32 at JAX's default precision)."
    )


def _times(result: dict, found: dict, way: str) -> str:
    times = found["times"][way]
    lines = [("devices", "computes", *(f"{name}" for name in times))]
    for count, data in times["data"].items():
        cells = [_both(at[count]) if count in at else "" for at in times.values()]
        lines.append((f"{count}", f"{1e3 * data['compute']:,.3f}", *cells))
    title = f"{found['title']}, {WAYS[way].format(**result)}: ms a step with no overlap (with full overlap)"
    return "\n".join([title, *_columns(lines)])


def _both(step: dict) -> str:
    apart, overlapped = (1e3 * step[bound] for bound in BOUNDS)
    return f"{apart:,.3f} ({overlapped:,.3f})"


def _crossovers(result: dict) -> str:
    heads = [f"{way}, {BOUND_TITLES[bound]}" for way in WAYS for bound in BOUNDS]
    lines = [("links", "strategy", *heads)]
    for found in result["links"].values():
        for name in found["crossover"]["weak"]:
            cells = [_where(found["crossover"][way][name][bound]) for way in WAYS for bound in BOUNDS]
            lines.append((found["title"], name, *cells))
    last = max(map(max, result["programs"].values()))
    title = (
        f"Number of devices from which on, up to {last}, a step is shorter than data's by more than "
        f"{100 * result['margin']:.0f}%\n(weak: {WAYS['weak'].format(**result)}; strong: "
        f"{WAYS['strong'].format(**result)})"
    )
    return "\n".join([title, *_columns(lines, left=(0, 1))])


def _where(crossover: dict) -> str:
    if crossover["from"]:
        return f"from {crossover['from']}"
    return f"only at {', '.join(map(str, crossover['at']))}" if crossover["at"] else "never"


def _batches(result: dict) -> str:
    pairs = [(name, bound) for name in next(iter(result["links"].values()))["largest_batch"] for bound in BOUNDS]
    lines = [("links", "devices", *(f"{name}, {BOUND_TITLES[bound]}" for name, bound in pairs))]
    for found in result["links"].values():
        largest = found["largest_batch"]
        for count in largest[pairs[0][0]]:
            cells = [largest[name][count][bound] for name, bound in pairs]
            lines.append((found["title"], f"{count}", *(_batch(size, result["most"]) for size in cells)))
    title = "Examples a device up to which a step is shorter than data's by that margin"
    return "\n".join([title, *_columns(lines, left=(0,))])


def _batch(size: int, most: int) -> str:
    return "none" if not size else f"over {most:,}" if size == most else f"{size:,}"


def _measured(result: dict) -> str:
    if not result["measured"]:
        return "No measured points: JAX finds no accelerator here, and simulated devices share one processor."
    lines = [("strategy", "devices", "images/s", "lowest", "highest", "ms a step")]
    for row in result["measured"]:
        rates = [f"{row['images_per_second'][which]:,.1f}" for which in ("median", "lowest", "highest")]
        lines.append((row["strategy"], f"{row['devices']}", *rates, f"{1e3 * row['seconds']:,.3f}"))
    title = f"Measured on {result['measured_on']}, {WAYS['weak'].format(**result)}"
    return "\n".join([title, *_columns(lines, left=(0,))])


def _columns(lines: Sequence[tuple[str, ...]], left: Sequence[int] = ()) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join((cell.ljust if i in left else cell.rjust)(widths[i]) for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def draw(result: dict, path: str) -> None:
    """A panel for each kind of links, one for the bytes, and where strategies compete two for the batches."""
    kinds = list(result["links"].values())
    competing = any(found["largest_batch"] for found in kinds)
    count = len(kinds) + 1 + len(BOUNDS) * competing
    across = min(3, count)
    down = -(-count // across)
    figure = Figure(figsize=(4.2 * across, 3.4 * down + 0.7), layout="constrained", dpi=120)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, found in zip(panels, kinds, strict=False):
        _draw_times(axes, result, found)
    _draw_bytes(panels[len(kinds)], result)
    if competing:
        for axes, bound in zip(panels[len(kinds) + 1 :], BOUNDS, strict=False):
            _draw_batches(axes, kinds, bound)
    for axes in panels[count:]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=COLOURS[name], marker="o", ms=3, label=name) for name in result["programs"]]
    handles += [
        Line2D([], [], color="0.3", ls=style, label=BOUND_TITLES[b]) for b, style in zip(BOUNDS, "-:", strict=True)
    ]
    if competing:
        handles.append(
            Line2D([], [], color="0.3", ls="", marker="*", ms=10, label="from here on beats data (no overlap)")
        )
        for found, marker in zip(kinds, MARKERS, strict=False):
            handles.append(Line2D([], [], color="0.3", marker=marker, ms=4, lw=1, label=found["title"]))
    if result["measured"]:
        handles.append(Line2D([], [], color="0.3", ls="", marker="x", label=f"measured, {result['measured_on']}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8)
    figure.suptitle(
        f"{result['network']}, {WAYS['weak'].format(**result)}, float32, {result['efficiency']:g} of the peak",
        fontsize=10,
    )
    figure.savefig(path)


def _draw_times(axes, result: dict, found: dict) -> None:
    times = found["times"]["weak"]
    for name, at in times.items():
        for bound, style in zip(BOUNDS, ("o-", "o:"), strict=True):
            axes.plot(list(at), [1e3 * one[bound] for one in at.values()], style, ms=3, color=COLOURS[name])
    for name, firsts in found["crossover"]["weak"].items():
        if first := firsts[BOUNDS[0]]["from"]:
            axes.plot(first, 1e3 * times[name][first][BOUNDS[0]], "*", ms=11, color=COLOURS[name], mec="k", mew=0.5)
    if result["measured_on"] == found["device_kind"]:
        for row in result["measured"]:
            axes.plot(row["devices"], 1e3 * row["seconds"], "x", color=COLOURS[row["strategy"]])
    axes.set(title=found["title"], xlabel="devices", ylabel="ms a step", ylim=(0, None))
    _devices(axes, times["data"])


def _draw_bytes(axes, result: dict) -> None:
    for name, programs in result["programs"].items():
        shown = {count: one["received"] / 1e6 for count, one in programs.items()}
        # 'fsdp' exchanges what 'data' does, but for a few bytes.
        axes.plot(list(shown), list(shown.values()), "o-", ms=3, color=COLOURS[name], lw=4 if name == "data" else 1.5)
    axes.set(title="exchanged", xlabel="devices", ylabel="MB that a device receives a step", ylim=(0, None))
    _devices(axes, result["programs"]["data"])


def _draw_batches(axes, kinds: list[dict], bound: str) -> None:
    for found, marker in zip(kinds, MARKERS, strict=False):
        for name, at in found["largest_batch"].items():
            sizes = [one[bound] or float("nan") for one in at.values()]
            axes.plot(list(at), sizes, marker=marker, ms=4, color=COLOURS[name], lw=1)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    axes.set(title=f"beats data up to this batch ({BOUND_TITLES[bound]})", xlabel="devices", ylabel="examples a device")
    _devices(axes, at)


def _devices(axes, counts) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(counts), [str(count) for count in counts])
    axes.grid(alpha=0.3)
