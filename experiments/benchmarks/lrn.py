"""AlexNet's normalisation takes one pass over memory in each direction, and keeps its input alone for the second.

    python -m experiments.benchmarks.lrn --out=results/lrn

`alexnet_resnet.ops.lrn` against the other ways to sum the squares of neighbouring channels, at the two places where
AlexNet normalises (55x55x96 and 27x27x256), in float32 and in bfloat16. Nine minutes on two cores, at 8 images; on an
accelerator as long, at 128.

The contenders differ in the sum alone. All compute in float32, as ours does under bfloat16 too, and take the power of
-3/4 by two square roots, as ours does; but JAX differentiates what is not ours:
  shifted slices  the sum as ours has it, without ours' own gradient
  reduce_window   lax.reduce_window over the channels
  banded matrix   a product with the matrix [C, C] that is one in the band around its diagonal, at highest precision
  cumulative sum  differences of the running sum over the channels
  general power   shifted slices with the power by `**`, as one writes the formula down first

Forward is the output alone; both is the output and the gradient by the input, as in training. Kept is what the forward
pass leaves for the backward pass as JAX sees it (the leaves of `jax.vjp`'s function), in bytes an activation; ours is
the input, which the layer before keeps anyway. Temporary is the compiled program's memory besides its arguments and
results, in bytes an activation: what the compiler makes of it where both passes are one program. Errors are the
largest difference from NumPy's float64 on the first image, as a share of the largest value there.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from alexnet_resnet.errors import check_at_least
from experiments.benchmarks import command, timing
from experiments.benchmarks.lrn_contenders import CONTENDERS, both, difference, kept_bytes, reference

FLAGS = command.own_flags()
BATCH = flags.DEFINE_integer("batch", None, "Images; by default 8 on processors, 128 elsewhere.", flag_values=FLAGS)

# Section 3.5: what conv1 and conv2 hand on, [H, W, C].
PLACES = {"after conv1": (55, 55, 96), "after conv2": (27, 27, 256)}
QUICK_PLACES = {"after conv1": (3, 3, 96), "after conv2": (2, 2, 256)}
DTYPES = ("float32", "bfloat16")


def measure_place(shape: tuple[int, ...], dtype: str) -> dict[str, dict]:
    """A row for each contender at activations [N, H, W, C] of a type."""
    random = np.random.default_rng(0)
    # Rectified, and large enough that the sum of squares matters, as AlexNet's are.
    x = jnp.asarray(np.maximum(random.normal(size=shape, scale=50), 0), dtype)
    g = jnp.asarray(random.normal(size=shape), dtype)
    wanted = reference(x[:1], g[:1])
    rows, programs = {}, {}
    for name, function in CONTENDERS.items():
        forward, forward_seconds = timing.compiled(jax.jit(function), x)
        backward, both_seconds = timing.compiled(jax.jit(both(function)), x, g)
        programs |= {f"{name}: forward": (forward, x), f"{name}: both": (backward, x, g)}
        memory = backward.memory_analysis()
        found = backward(x, g)
        rows[name] = dict(
            kept_bytes=kept_bytes(function, jax.ShapeDtypeStruct(x.shape, x.dtype)),
            temporary_bytes=memory.temp_size_in_bytes if memory else None,
            output_error=difference(found[0], wanted[0]),
            gradient_error=difference(found[1], wanted[1]),
            compile_seconds=forward_seconds + both_seconds,
        )
    spreads = timing.measure({title: timing.repeatedly(*program) for title, program in programs.items()})
    for title, spread in spreads.items():
        name, direction = title.split(": ")
        rows[name][f"{direction}_seconds"] = dataclasses.asdict(spread)
    for row in rows.values():
        for direction in ("forward", "both"):
            ours = rows["ours"][f"{direction}_seconds"]["median"]
            row[f"{direction}_to_ours"] = row[f"{direction}_seconds"]["median"] / ours
    return rows


def measure() -> dict:
    """All rows, by place and type."""
    batch = BATCH.value
    if batch is None:
        batch = 8 if jax.default_backend() == "cpu" else 128
    check_at_least("batch", batch, 1)
    places = PLACES
    if command.QUICK.value:
        batch, places = min(batch, 2), QUICK_PLACES
    found = []
    for place, shape in places.items():
        for dtype in DTYPES:
            command.say(f"{place}, {dtype}")
            rows = measure_place((batch, *shape), dtype)
            found.append(dict(place=place, shape=[batch, *shape], dtype=dtype, rows=rows))
    return dict(places=found)


def table(result: dict) -> str:
    """The result as text."""
    head = f"{'ms':>9}{'ratio':>7}"
    lines = [
        f"{'':<18}{'forward':^16}{'forward, backward':^20}{'bytes an activation':^21}{'largest error':^21}",
        f"{'':<18}{head}{'':<4}{head}{'kept':>10}{'temporary':>11}{'output':>10}{'gradient':>11}{'compiled s':>12}",
    ]
    for place in result["places"]:
        shape = "x".join(map(str, place["shape"]))
        count = np.prod(place["shape"])
        lines.append(f"{place['place']}, {shape}, {place['dtype']}")
        for name, row in place["rows"].items():
            times = [
                f"{1e3 * row[f'{direction}_seconds']['median']:9.3f}{row[f'{direction}_to_ours']:6.2f}x"
                for direction in ("forward", "both")
            ]
            temporary = row["temporary_bytes"]
            temporary = f"{'?':>11}" if temporary is None else f"{temporary / count:11.1f}"
            lines.append(
                f"  {name:<16}{times[0]}    {times[1]}{row['kept_bytes'] / count:10.1f}{temporary}"
                f"{row['output_error']:10.1e}{row['gradient_error']:11.1e}{row['compile_seconds']:12.1f}"
            )
    return "\n".join([*lines, "", "Times are medians; ratios are to ours, above 1 is slower."])


def draw(result: dict, path: str) -> None:
    """Times as multiples of ours, and what is kept from the forward to the backward pass."""
    from matplotlib.figure import Figure

    places = result["places"]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    times, bytes_kept = figure.subplots(1, 2, width_ratios=(3, 2))
    width = 0.8 / len(CONTENDERS)
    for number, name in enumerate(CONTENDERS):
        for axes, of in ((times, lambda place, row: row["both_to_ours"]), (bytes_kept, _kept_each)):
            places_of_bars = [group + (number - (len(CONTENDERS) - 1) / 2) * width for group in range(len(places))]
            heights = [of(place, place["rows"][name]) for place in places]
            bars = axes.bar(places_of_bars, heights, width, color=f"C{number}", label=name)
            axes.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=6, rotation=90, padding=2)
    names = [f"{place['place']}\n{place['dtype']}" for place in places]
    for axes in (times, bytes_kept):
        axes.set_xticks(range(len(places)), names, fontsize=7)
        axes.margins(y=0.15)
    times.axhline(1, color="0.4", lw=0.8, zorder=0)
    times.set_ylabel("time, forward and backward (ours = 1)")
    bytes_kept.set_ylabel("kept for the backward pass (bytes an activation)")
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=len(CONTENDERS), fontsize=8)
    where = result["machine"]
    shape = places[0]["shape"]
    figure.suptitle(f"{where['devices']}, {shape[0]} images, {where['date']}, {where['commit']}", fontsize=8)
    figure.savefig(path, dpi=120)


def _kept_each(place: dict, row: dict) -> float:
    return row["kept_bytes"] / np.prod(place["shape"])


if __name__ == "__main__":
    command.main(command.Benchmark("lrn", measure, table, draw, (FLAGS,)))
