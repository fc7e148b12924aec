"""The roofline: what binds each network's training step on this device, arithmetic or memory, and how near it comes.

    python -m experiments.benchmarks.roofline --out=results/roofline

`--networks`, `--dtypes` and `--batch_size` choose what is measured. Ten minutes on two cores without an accelerator.

The arithmetic of a step is that of its convolutions and matrix products, three times the forward pass's; its traffic is
what XLA counts for the compiled step: each operation's operands and results, once, as they lie in memory. The ratio,
operations a byte, against the device's own (its peak by its bandwidth) says which of the two binds. What the device
could then reach is the smaller of its peak and the ratio times its bandwidth; the measured rate is a share of that.
Caches serve some of the traffic that XLA counts, so that a processor's share of a memory bound can exceed 1.

Peak and bandwidth are the maker's where known, else measured here: a large matrix product, and adding two arrays that
no cache holds.
"""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
from absl import flags

from alexnet_resnet.errors import UserError, check_at_least, check_choice
from experiments.benchmarks import command, processes, timing, training_steps
from experiments.benchmarks.training_steps import DTYPES, TITLES

FLAGS = command.own_flags()
NETWORKS = flags.DEFINE_list("networks", list(TITLES), f"Networks, out of {', '.join(TITLES)}.", flag_values=FLAGS)
TYPES = flags.DEFINE_list("dtypes", ["float32"], f"Out of {', '.join(DTYPES)}.", flag_values=FLAGS)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Images a step; 0 for 128 of CIFAR's and 8 of ImageNet's, on accelerators 128.", flag_values=FLAGS
)

# Bytes a second between a device and its memory, as makers state them, by JAX's name of the device: the data sheets of
# `timing.STATED`.
STATED = {
    "Tesla V100-SXM2-16GB": 0.9e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H200": 4.8e12,
    "TPU v4": 1.2e12,
    "TPU v5 lite": 0.819e12,
    "TPU v5": 2.765e12,
}


@functools.cache
def bandwidth() -> tuple[float, str]:
    """Bytes a second between one device and its memory, and where the figure is from."""
    kind = jax.devices()[0].device_kind
    if kind in STATED:
        return STATED[kind], f"stated by the maker for {kind}"
    size = 2**20 if command.QUICK.value else 2**27
    a, b = jnp.ones(size, jnp.float32), jnp.ones(size, jnp.float32)
    add, _ = timing.compiled(jax.jit(jnp.add), a, b)
    best = float("inf")
    for _ in range(2 if command.QUICK.value else 8):
        start = time.perf_counter()
        add(a, b).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 3 * 4 * size / best, f"measured: adding two arrays of {4 * size / 2**20:,.0f} MiB, the best of several"


def batch_size(name: str) -> int:
    """Images a step."""
    if command.QUICK.value:
        return 2
    small = name in ("resnet20", "resnet110") or jax.default_backend() != "cpu"
    return BATCH_SIZE.value or (128 if small else 8)


def row(name: str, dtype: str) -> dict:
    """A network's step: what it asks for, and how fast it is."""
    size = batch_size(name)
    config = training_steps.config(name, dtype, size, command.QUICK.value)
    program, seconds, step = training_steps.create(config, jax.devices()[:1])
    spread = timing.measure({f"{name}, {dtype}": step})[f"{name}, {dtype}"]
    found = dict(
        network=name,
        dtype=dtype,
        batch_size=size,
        flops=training_steps.training_flops(config) * size,
        bytes=float(program.cost_analysis()["bytes accessed"]),
        compile_seconds=seconds,
        seconds=spread.median,
        images_per_second=spread.rate(size),
    )
    return found | bound(found["flops"], found["bytes"], found["seconds"], timing.peak(dtype)[0], bandwidth()[0])


def bound(flops: float, traffic: float, seconds: float, peak: float, rate: float) -> dict:
    """What binds a step, and how near it comes to that.

    Args:
      flops: floating-point operations of the step.
      traffic: bytes that it moves.
      seconds: that it takes.
      peak: operations a second of the device.
      rate: bytes a second of its memory.
    """
    least = dict(arithmetic=flops / peak, memory=traffic / rate)
    bind = max(least, key=least.get)
    return dict(
        intensity=flops / traffic, bound=bind, share=least[bind] / seconds, share_of_peak=flops / peak / seconds
    )


def measure() -> dict:
    """All rows, with the device's peaks and bandwidth."""
    for field, values, known in (("networks", NETWORKS.value, tuple(TITLES)), ("dtypes", TYPES.value, DTYPES)):
        for value in values:
            check_choice(field, value, known)
        if not values:
            raise UserError(f"{field}='': expected at least one of {', '.join(map(repr, known))}.")
    check_at_least("batch_size", BATCH_SIZE.value, 0)
    # Where the figures mean nothing, one will do.
    names, dtypes = (NETWORKS.value[:1], TYPES.value[:1]) if command.QUICK.value else (NETWORKS.value, TYPES.value)
    rows = []
    for name, dtype in itertools.product(names, dtypes):
        try:
            rows.append(row(name, dtype))
        except Exception as error:
            if not any(said in str(error) for said in processes.SAID):
                raise
            command.say(f"{name}, {dtype}: {processes.OUT_OF_MEMORY}, left out")
    if not rows:
        raise UserError(f"batch_size={BATCH_SIZE.value}: expected fewer images, for which there is enough memory.")
    peaks = {dtype: dict(zip(("flops", "source"), timing.peak(dtype), strict=True)) for dtype in dtypes}
    return dict(rows=rows, peaks=peaks, bandwidth=dict(zip(("bytes", "source"), bandwidth(), strict=True)))


def table(result: dict) -> str:
    """The result as text."""
    head = ("Gflop", "GB", "flop/byte", "images/s", "of peak", "of bound")
    lines = [f"{'network':<12}{'type':<10}{'batch':>5}" + "".join(f"{word:>10}" for word in head) + "  bound by"]
    for found in result["rows"]:
        line = f"{TITLES[found['network']]:<12}{found['dtype']:<10}{found['batch_size']:>5}"
        line += f"{found['flops'] / 1e9:10,.1f}{found['bytes'] / 1e9:10,.2f}{found['intensity']:10,.1f}"
        rate = found["images_per_second"]["median"]
        line += f"{rate:>10,.1f}{found['share_of_peak']:10.1%}{found['share']:10.1%}  {found['bound']}"
        lines.append(line)
    lines.append("")
    for dtype, peak in result["peaks"].items():
        ridge = peak["flops"] / result["bandwidth"]["bytes"]
        lines.append(f"peak, {dtype}: {peak['flops'] / 1e12:,.3g} Tflop/s, {peak['source']}; {ridge:,.1f} flop/byte")
    lines.append(f"memory: {result['bandwidth']['bytes'] / 1e9:,.4g} GB/s, {result['bandwidth']['source']}")
    return "\n".join(lines)


def draw(result: dict, path: str) -> None:
    """The roof of each type, and each network below it."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    intensities = [found["intensity"] for found in result["rows"]]
    ridges = [peak["flops"] / result["bandwidth"]["bytes"] for peak in result["peaks"].values()]
    reach = np.geomspace(min(intensities + ridges) / 4, max(intensities + ridges) * 4, 200)
    for number, (dtype, peak) in enumerate(result["peaks"].items()):
        roof = np.minimum(peak["flops"], reach * result["bandwidth"]["bytes"]) / 1e9
        axes.plot(reach, roof, "-", color=f"C{number}", label=f"the device, {dtype}")
        found = sorted((one for one in result["rows"] if one["dtype"] == dtype), key=lambda one: one["intensity"])
        rates = [one["flops"] / one["seconds"] / 1e9 for one in found]
        axes.plot([one["intensity"] for one in found], rates, "o", color=f"C{number}")
        for place, (one, rate) in enumerate(zip(found, rates, strict=True)):
            # Neighbours' names on either side of the points.
            left = place % 2 == 0
            axes.annotate(
                f"{TITLES[one['network']]}, {one['share_of_peak']:.0%} of the peak",
                (one["intensity"], rate),
                xytext=(-8, 6) if left else (8, -10),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=8,
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte of traffic", ylabel="Gflop/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}".strip("0.")[:1] in ("2", "5") else "")
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3, which="both")
    where = result["machine"]
    axes.set_title(f"{where['devices']}, {where['cores']} cores, {where['date']}, {where['commit']}", fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    command.main(command.Benchmark("roofline", measure, table, draw, (FLAGS,)))
